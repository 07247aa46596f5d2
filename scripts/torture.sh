#!/usr/bin/env bash
# Kills and freezes daemons, redis-server and an S3 server under load, for minutes, and checks after each disaster that
# everything that was acknowledged is there; see tests/crash. Ends with the line of the test program.
#
#   scripts/torture.sh [--seconds N] [--seed N] [--rounds N] [--release] [TEST...]
#
#   --seconds N    how long each of the tests works (default 120)
#   --seed N       repeats the choices of an earlier run, though not its timing
#   --rounds N     how many cases of the random model of three nodes run first (default 200; 0: none)
#   TEST           only tests of tests/crash with this in their name, such as `sqlite` or `two_mounts`
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

seconds=120 rounds=200 flags=() tests=()
while [ $# -gt 0 ]; do
    case $1 in
    --seconds) seconds=${2:?} && shift ;;
    --seed) export HFMOUNT_TEST_SEED=${2:?} && shift ;;
    --rounds) rounds=${2:?} && shift ;;
    --release) flags+=(--release) ;;
    -h | --help)
        sed -n '2,/^set -euo/{/^#/s/^# \{0,1\}//p}' "$0"
        exit
        ;;
    -*) die "no such option: $1" ;;
    *) tests+=("$1") ;;
    esac
    shift
done
need_cargo
export HFMOUNT_CRASH_SECONDS=$seconds HFMOUNT_TEST_ROUNDS=$rounds
if [ "$rounds" -gt 0 ]; then
    say "$rounds cases of the model on each engine"
    cargo test --locked "${flags[@]}" --test model
fi
say "$seconds s of disasters in each test"
# One after the other: each is to have the machine for itself.
cargo test --locked "${flags[@]}" --test crash -- --nocapture --test-threads 1 "${tests[@]}"
