//! A mount and a plain directory beside it, on which the same is done. Needs `mount` beside it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::mount::{Home, Mount};

/// The same is done on both, and must come to the same.
pub struct Both {
    pub home: Home,
    pub mount: Mount,
}

impl Both {
    /// A volume made with these options of `hfmount format`, mounted, and a directory that others can look into.
    pub fn new(format: &[&str]) -> Self {
        let home = Home::formatted(format);
        let mount = home.mount("mnt", &["--offline"]);
        home.dir("plain");
        fs::set_permissions(home.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
        Both { home, mount }
    }

    /// On the mount and on the plain directory; what it came to, which is the same.
    #[track_caller]
    pub fn same<T: PartialEq + std::fmt::Debug>(&self, what: &str, act: impl Fn(&Path) -> T) -> T {
        let plain = act(&self.home.path().join("plain"));
        let ours = act(self.mount.path());
        assert_eq!(ours, plain, "{what}: ours, and a plain directory's");
        ours
    }

    /// The same, for who needs no more than that.
    #[allow(dead_code, reason = "each test binary uses its part")]
    #[track_caller]
    pub fn check<T: PartialEq + std::fmt::Debug>(&self, what: &str, act: impl Fn(&Path) -> T) {
        drop(self.same(what, act));
    }
}
