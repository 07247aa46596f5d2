#!/usr/bin/env bash
# Kills and freezes daemons, redis-server and an S3 server under load, for minutes, and checks after each disaster that
# everything that was acknowledged is there; see tests/crash. Ends with the line of the test program.
#
#   scripts/torture.sh [--minutes N | --seconds N] [--seed N] [--rounds N] [--release] [TEST...]
#
#   --minutes N    the tests again and again, each time with another seed, until so much time is over (default: each once)
#   --seconds N    how long each of the tests works (default 120; with --minutes 30)
#   --seed N       repeats the choices of an earlier run, though not its timing; with --minutes the first of several
#   --rounds N     how many cases of the random model of three nodes run first (default 200; 0: none)
#   --release      of an optimized build
#   TEST           only tests of tests/crash with this in their name, such as `sqlite` or `two_mounts`
#
# Goes on after a failure and says in the end how to repeat each. Status: 0 if there was none, else 1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

seconds='' minutes=0 seed='' rounds=200 flags=() tests=()
while [ $# -gt 0 ]; do
    case $1 in
    --minutes) minutes=${2:?} && shift ;;
    --seconds) seconds=${2:?} && shift ;;
    --seed) seed=${2:?} && shift ;;
    --rounds) rounds=${2:?} && shift ;;
    --release) flags+=(--release) ;;
    -h | --help)
        help_of "$0"
        exit
        ;;
    -*) die "no such option: $1" ;;
    *) tests+=("$1") ;;
    esac
    shift
done
for number in "$minutes" "${seconds:-0}" "${seed:-0}" "$rounds"; do
    [[ $number =~ ^[0-9]+$ ]] || die "not a number: $number"
done
need_cargo
[ -n "$seconds" ] || { [ "$minutes" -gt 0 ] && seconds=30 || seconds=120; }
# Seeds in use are few enough to be typed.
seed=${seed:-$((SRANDOM % 1000000000))}
export HFMOUNT_CRASH_SECONDS=$seconds HFMOUNT_TEST_ROUNDS=$rounds
failed=()

cargo test --locked "${flags[@]}" --test model --test crash --no-run
if [ "$rounds" -gt 0 ]; then
    say "$rounds cases of the model on each engine"
    cargo test --locked "${flags[@]}" --test model || failed+=("the model: the seed is above")
fi
deadline=$((SECONDS + minutes * 60)) runs=0
while :; do
    say "seed $seed, $seconds s of disasters in each test"
    runs=$((runs + 1))
    # One after the other: each is to have the machine for itself.
    HFMOUNT_TEST_SEED=$seed cargo test --locked "${flags[@]}" --test crash -- --nocapture --test-threads 1 "${tests[@]}" ||
        failed+=("scripts/torture.sh --rounds 0 --seconds $seconds --seed $seed ${tests[*]}")
    [ "$SECONDS" -lt "$deadline" ] || break
    seed=$((seed + 1))
done
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
say "$runs runs, nothing was lost"
