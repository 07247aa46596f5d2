#!/usr/bin/env bash
# Runs file-system suites and ordinary programs on mounts of hfmount, compares with the file system of this machine, and
# prints the counts; the last line is `N passed, N failed`.
#
#   scripts/suites.sh                     all of them, in short, on SQLite and a folder, then on Redis and S3
#   scripts/suites.sh SUITE...            pjdfstest fsx fsx-two stress-ng fio cpython git cargo pip
#   --world embedded|cluster|both         SQLite and a folder; Redis and S3 (servers of its own)
#   --full                                long: fsx 100,000 operations for each of 5 seeds, 10 s a stressor, more of fio
#   --fsx-ops N  --fsx-seeds N  --seed N  operations, seeds, and the first of them
#   --fsx-without OP,...                  operations that fsx is not to do
#   --stress-time S  --fio-size MIB       seconds for each stressor; the size of fio's files
#   --patterns WORD...                    only tests of pjdfstest with these words
#   --mount-options "..."                 further options of hfmount mount
#   --dir DIR                             where volumes and mounts lie (/var/tmp)
#   --logs DIR  --json FILE               where the suites' output goes; the table as JSON
#   --no-setup                            install nothing
#
# pjdfstest, stress-ng and CPython's tests run on a plain folder below --dir first: a test that fails there is not counted
# against the mount. HFMOUNT_BIN and HFMOUNT_STANDIN name other binaries than those that cargo builds (debug). The suites
# of the crate registry are compiled once, into target/suites (HFMOUNT_SUITES_TOOLS names another place). Needs root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

help_if_asked "$0" "$@"
setup=1 arguments=()
for argument in "$@"; do
    case $argument in
    --no-setup) setup= ;;
    *) arguments+=("$argument") ;;
    esac
done
[ "$(id -u)" = 0 ] || die "the suites change owners and make devices: run this as root"
if [ -n "$setup" ]; then
    scripts/setup.sh build mount redis suites >&2
fi
need_cargo
if [ -z "${HFMOUNT_BIN:-}" ] || [ -z "${HFMOUNT_STANDIN:-}" ]; then
    say "cargo build" >&2
    cargo build --locked --quiet --bin hfmount --example standin
fi
export HFMOUNT_BIN=${HFMOUNT_BIN:-$(target_dir)/debug/hfmount}
export HFMOUNT_STANDIN=${HFMOUNT_STANDIN:-$(target_dir)/debug/examples/standin}
export PYTHONDONTWRITEBYTECODE=1
umask 022
exec python3 scripts/suites/suites.py "${arguments[@]}"
