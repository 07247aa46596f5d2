#!/usr/bin/env bash
# Measures hfmount and prints a table of ratios; docs/benchmarks.md says what they mean.
#
#   scripts/bench.sh [PART...] [--quick] [--size 1G] [--rounds 5] [--minutes N] [--rate 400MB] [--dir /var/tmp] [--json FILE]
#                    [--skip-redis] [--keep]
#
# For a safetensors file of --size: a cold fill through the mount against `curl -o` of the same file from the same stand-in
# Hub (capped at --rate) to the same disk; warm reads, and reads after dropping the page cache, against the same file on the
# local disk, by 1 MiB preads and by copying out of a mapping; stat and open+read+close of 1,000 small files; safetensors'
# load_file of a file twice as large, and from_pretrained of a small model, on a near Redis and on a distant one, against
# a plain folder; Redis commands for each operation; the most memory that the daemon ever had. Files made, looked at and
# removed in one directory by 1, 4 and 16 tasks on one mount and on four, and by nodes in one process, on Redis. A file of
# --size written through the mount into an S3 server against the same bytes put there by object_store. The same cold fill,
# of one file and of two shards, from a Hub that caps each connection too and answers 20 ms late, against what it lets
# through in all. Medians of interleaved rounds. As root, because caches are dropped between rounds. --dir has to lie on a
# real disk with room for eight times --size.
#
# PART: fill, link, warm (brings fill with it), load, pretrained, small, commands, names, write; metadata is commands and
# names, data the rest. Where rclone is installed (scripts/setup.sh rclone), fill, warm and small are measured through
# `rclone mount --vfs-cache-mode full` as well. --quick takes ten minutes at most (--minutes says another bound), --json
# also writes the figures to a file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

help_if_asked "$0" "$@"
[ "$(id -u)" = 0 ] || note "not as root: page caches cannot be dropped, so the figures say less"
scripts/setup.sh build mount redis curl >&2
scripts/setup.sh python >&2 || note "without the client libraries: load and pretrained are left out"
need_cargo
cargo build --locked --release --bin hfmount --example standin --example rates
HFMOUNT_BIN=${HFMOUNT_BIN:-$(target_dir)/release/hfmount}
HFMOUNT_STANDIN=${HFMOUNT_STANDIN:-$(target_dir)/release/examples/standin}
HFMOUNT_RATES=${HFMOUNT_RATES:-$(target_dir)/release/examples/rates}
export HFMOUNT_BIN HFMOUNT_STANDIN HFMOUNT_RATES PYTHONDONTWRITEBYTECODE=1
python=$VENVS/new/bin/python
[ -x "$python" ] || python=python3
exec "$python" scripts/bench/bench.py "$@"
