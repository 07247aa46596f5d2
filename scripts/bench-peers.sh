#!/usr/bin/env bash
# Measures what a cluster costs the Hub, and how long its nodes wait; docs/benchmarks.md ("Peers") says what the lines mean.
#
#   scripts/bench-peers.sh [N...] [--quick] [--scenarios at-once,killed,...] [--size 1G] [--shards 4] [--link 200]
#                          [--hub-rate 400] [--connection-rate 100] [--hub-link 40] [--baseline-all] [--no-baseline]
#                          [--mount OPTION] [--check] [--dir /var/tmp] [--json FILE] [--keep]
#
# N daemons (2, then 4, then 8), each in a network namespace of its own with a link that `tc` caps both ways (--link,
# Mbit/s); in the middle one Redis, one stand-in S3 server, and one stand-in Hub that is capped in all (--hub-rate) and for
# each connection. A model of --size in --shards safetensors files. Each run has a new volume, empty caches and counters at
# zero, and every byte that is read is compared with the source.
#
#   at-once    all nodes read all files in order at the same moment; the same N nodes without peers beside it
#   mapped     the same as safetensors reads: out of a mapping, tensor after tensor in the header's order, page after page
#   staggered  one node begins 0.5 s after the other
#   again      a second read, the kernel's pages dropped
#   killed     kill -9 of one daemon when its reader has 40 %
#   frozen     SIGSTOP of one instead; it goes on after 30 s, or when the others are done
#   slow-hub   all nodes read the first file, and of each node's link only --hub-link is there for the Hub
#   beside     with that, one node has the first file, and then the others read it
#
# --quick takes less than a minute and fails (1) unless each byte left the Hub once, each blob was resolved once and put into
# the bucket once (--check). Wrong bytes, and readers that fail or do not end, always fail it. As root; nothing is left
# behind, whatever ends it short of kill -9. HFMOUNT_BIN and HFMOUNT_STANDIN name binaries, otherwise they are built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

help_if_asked "$0" "$@"
[ "$(id -u)" = 0 ] || die "network namespaces and their links need root"
scripts/setup.sh build mount redis network >&2
if [ -z "${HFMOUNT_BIN:-}" ] || [ -z "${HFMOUNT_STANDIN:-}" ]; then
    need_cargo
    cargo build --locked --release --bin hfmount --example standin
fi
HFMOUNT_BIN=${HFMOUNT_BIN:-$(target_dir)/release/hfmount}
HFMOUNT_STANDIN=${HFMOUNT_STANDIN:-$(target_dir)/release/examples/standin}
export HFMOUNT_BIN HFMOUNT_STANDIN PYTHONDONTWRITEBYTECODE=1
exec python3 scripts/bench/peers.py "$@"
