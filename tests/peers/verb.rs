//! `hfmount peer`: the real program.

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use hfmount::config::Volume;
use hfmount::error::{Error, Kind, Result};
use hfmount::meta::kv::Kv;
use hfmount::peer::auth::PeerKey;
use hfmount::peer::{NodeId, PeerOptions, Registry, Role, Server, ServerOptions, Shelf, Shelved, Waited};
use hfmount::types::BlobId;
use serde_json::Value;

use crate::mount::{Home, text};
use crate::redis_server::RedisServer;
use crate::world::{Node, address};

struct World {
    home: Home,
    server: RedisServer,
}

impl World {
    fn new() -> Self {
        let (mut home, server) = (Home::new(), RedisServer::start());
        home.set_env("HFMOUNT_META", &server.url());
        home.run_ok(&["format"]);
        World { home, server }
    }

    /// Not on a thread of the runtime: a program is waited for.
    async fn peer(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = tokio::task::block_in_place(|| self.home.run(&[&["peer"], args].concat()));
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    }

    async fn list(&self) -> Value {
        let (code, out) = self.peer(&["ls", "--json"]).await;
        assert_eq!(code, Some(0), "{out}");
        serde_json::from_str(&out).expect("JSON")
    }
}

fn states(list: &Value) -> Vec<(String, String)> {
    let nodes = list["nodes"].as_array().expect("nodes").iter();
    let word = |node: &Value, name: &str| node[name].as_str().expect("text").to_owned();
    nodes.map(|node| (word(node, "address"), word(node, "state"))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_listed_blocked_and_unblocked() {
    let world = World::new();
    let (code, out) = world.peer(&["ls"]).await;
    assert_eq!((code, out.as_str()), (Some(0), "no node has volume default mounted\n"));
    let zone = PeerOptions { zone: "rack-7".into(), hub: false, ..PeerOptions::default() };
    let a = Node::new(&world.server, 1, &zone).await;
    let b = Node::with_role(&world.server, 2, Role::Seed).await;
    let (_, out) = world.peer(&["ls"]).await;
    let lines: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0][..6], ["ID", "STATE", "ADDRESS", "ROLE", "ZONE", "HUB"]);
    let id = a.id().to_string();
    assert_eq!(lines[1][..6], [&id, "active", "10.0.0.1:9000", "normal", "rack-7", "no"]);
    assert_eq!(lines[2][1..6], ["active", "10.0.0.2:9000", "seed", "-", "yes"]);
    let list = world.list().await;
    assert_eq!(list["nodes"][0]["held_bytes"], 3);
    assert_eq!(list["nodes"][0]["host"], "host-1");

    let (code, out) = world.peer(&["rm", "--for", "2h", "10.0.0.1:9000"]).await;
    assert_eq!((code, out.as_str()), (Some(0), "10.0.0.1:9000 is blocked for 2h\n"));
    world.server.ask(&["DEL", &format!("{{hfmount}}@p:node:{}", b.id())]);
    let list = world.list().await;
    let is = |n: u8, state: &str| (address(n).to_string(), state.to_owned());
    assert_eq!(states(&list), [is(1, "blocked"), is(2, "stale")]);
    assert_eq!(list["nodes"][0]["blocked"]["why"], "by hand");
    let (_, out) = world.peer(&["ls"]).await;
    assert!(out.contains("blocked 10.0.0.1:9000 for 1h 59m: by hand"), "{out}");

    let (code, out) = world.peer(&["add", "10.0.0.1:9000"]).await;
    assert_eq!((code, out.as_str()), (Some(0), "10.0.0.1:9000 is not blocked any more\n"));
    let (code, out) = world.peer(&["add", "10.0.0.1:9000"]).await;
    assert_eq!((code, out.as_str()), (Some(0), "10.0.0.1:9000 is known already\n"));
    // The same by its id.
    let (code, out) = world.peer(&["rm", &id]).await;
    assert_eq!((code, out), (Some(0), format!("{id} is blocked for 30d\n")));
    assert_eq!(states(&world.list().await)[0], is(1, "blocked"));
    assert_eq!(world.peer(&["add", &id]).await.0, Some(0));
    assert_eq!(world.peer(&["add", &id]).await.0, Some(1), "it is not blocked");

    for (args, wanted) in [
        (["rm", "10.0.0.3:9000"], 1),
        (["rm", "nonsense"], 2),
        (["add", "10.0.0.3"], 2),
        (["ls", "--nonsense"], 2),
    ] {
        let (code, out) = world.peer(&args).await;
        assert_eq!(code, Some(wanted), "{args:?}: {out}");
    }
}

/// Holds nothing.
#[derive(Debug)]
struct Empty;

#[async_trait]
impl Shelf for Empty {
    async fn chunk(&self, _: BlobId, _: u64) -> Result<Option<Shelved>> {
        Ok(None)
    }
    async fn wait(&self, _: BlobId, _: u64, _: bool) -> Waited {
        Waited::Absent
    }
    async fn begin(&self, _: BlobId, _: u64, _: u64) -> Result<()> {
        Ok(())
    }
    async fn fill(&self, _: BlobId, _: u64, _: u64) -> Result<()> {
        Err(Error::new(Kind::NotSupported, "fill"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_are_added_are_asked_who_they_are() {
    let world = World::new();
    let silent = Node::silent(&world.server, 1, &PeerOptions::default()).await;
    let (volume, _) = Volume::read(&*silent.kv as &dyn Kv).await.expect("read").expect("volume");
    let registry = Registry::new(silent.tracker.clone());
    registry.refresh().await.expect("refresh");
    let shelf: Arc<dyn Shelf> = Arc::new(Empty);
    let key = PeerKey::from_hex(&volume.peer_key).expect("key");
    let options = ServerOptions::new(Some(([127, 0, 0, 1], 0).into()), 4);
    let weak: Weak<dyn Shelf> = Arc::downgrade(&shelf);
    let server = Server::start(options, NodeId(0xabc), key, weak, registry).await.expect("server");
    let there = server.addr().to_string();
    let nobody = "127.0.0.1:1";
    for place in [&there, nobody] {
        let (code, out) = world.peer(&["add", place]).await;
        assert_eq!((code, out), (Some(0), format!("{place} is added\n")));
    }
    let mut list = states(&world.list().await);
    list.sort();
    let mut wanted = vec![(there.clone(), "active".to_owned()), (nobody.to_owned(), "stale".to_owned())];
    wanted.sort();
    assert_eq!(list, wanted);
    let (_, out) = world.peer(&["ls"]).await;
    assert!(out.lines().any(|line| line.starts_with("0000000000000abc") && line.contains(&there)), "{out}");

    let (code, out) = world.peer(&["rm", nobody]).await;
    assert_eq!((code, out), (Some(0), format!("{nobody} is not among the added nodes any more\n")));
    assert_eq!(world.peer(&["rm", nobody]).await.0, Some(1));
    assert_eq!(states(&world.list().await).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_of_one_machine_has_none() {
    let home = Home::formatted(&[]);
    for args in [&["peer", "ls"][..], &["peer", "add", "a:1"], &["peer", "rm", "a:1"]] {
        let output = home.run(args);
        assert_eq!(output.status.code(), Some(1));
        let said = text(&output.stderr);
        assert!(said.contains("only volumes in Redis have peers"), "{said}");
    }
    assert_eq!(home.run(&["peer"]).status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_reached_where_it_reaches_redis() {
    let world = World::new();
    let node = Node::silent(&world.server, 1, &PeerOptions::default()).await;
    let at = async |bound: &str, said: Option<&str>| {
        let advertise = said.map(|said| said.parse().expect("address"));
        let options = PeerOptions { advertise, ..PeerOptions::default() };
        let found = hfmount::peer::advertised(&node.tracker, &options, bound.parse().expect("address")).await;
        found.map(|addr| addr.to_string()).map_err(|e| e.kind())
    };
    // That is on this machine.
    assert_eq!(at("0.0.0.0:81", None).await, Ok("127.0.0.1:81".into()));
    assert_eq!(at("[::]:81", None).await, Ok("127.0.0.1:81".into()));
    assert_eq!(at("10.9.8.7:81", None).await, Ok("10.9.8.7:81".into()));
    assert_eq!(at("0.0.0.0:81", Some("10.1.1.1")).await, Ok("10.1.1.1:81".into()));
    assert_eq!(at("0.0.0.0:81", Some("10.1.1.1:9")).await, Ok("10.1.1.1:9".into()));
    assert_eq!(at("0.0.0.0:81", Some("no-such-name.invalid")).await, Err(Kind::Config));
}
