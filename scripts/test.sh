#!/usr/bin/env bash
# Installs what the tests need, runs all of them, and ends with one line: `N passed, N failed`.
#
#   scripts/test.sh                       everything: unit, conformance and real-mount tests, pjdfstest, the client suites
#   scripts/test.sh --rust                only cargo test
#   scripts/test.sh --posix               only pjdfstest on SQLite and a folder, then on Redis and S3 (root; left out of
#                                         "everything" for others); scripts/suites.sh has many more
#   scripts/test.sh --clients [SUITE...]  only real Hub libraries: on SQLite and a folder, then on Redis and S3 with two
#                                         mounts; SUITE as in `test_lazy` or `test_users.Tokens`. Without a SUITE also
#                                         nodes with networks of their own (scripts/bench-peers.sh --quick; root)
#   --no-setup                            install nothing: fail if something is missing
#   --release                             test the release build (slower to build, faster to run)
#
# HFMOUNT_TESTS_SKIP_MOUNT=1 leaves out what needs kernel mounts (no /dev/fuse, no root): said at the end, never silently.
# HFMOUNT_TESTS_KEEP=1 keeps the folders of the client suites. Servers are started on free ports and stopped by their
# pids; mounts are made under a temporary folder and unmounted by path. On 2 cores some 8 minutes, and as many again for
# compiling.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

rust=1 posix=1 clients=1 setup=1 profile=debug
flags=()
while [ $# -gt 0 ]; do
    case $1 in
    --rust) clients='' posix='' ;;
    --posix) rust='' clients='' ;;
    --clients) rust='' posix='' ;;
    --no-setup) setup= ;;
    --release) profile=release flags=(--release) ;;
    -h | --help)
        help_of "$0"
        exit
        ;;
    -*) die "no such option: $1" ;;
    *) break ;;
    esac
    shift
done

passed=0 failed=0 skipped=
log=$(mktemp -t hfmount-tests.XXXXXX)
child=
clean_up() {
    # The runner unmounts and stops its servers on SIGTERM; cargo's tests end their own children.
    if [ -n "$child" ] && kill -0 "$child" 2>/dev/null; then
        kill -TERM -- "-$child" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
    fi
    rm -f "$log"
}
trap clean_up EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# run COMMAND...: in the background, so that a signal to this script is acted on at once; its output is shown and kept.
# As a job of its own: the shell would have others ignore ^C, and all that they start with them.
run() {
    set -m
    "$@" > >(tee "$log") 2>&1 </dev/null &
    child=$!
    set +m
    local status=0
    wait "$child" || status=$?
    child=
    # tee may be a moment behind.
    sleep 0.2
    return $status
}

if [ -n "$setup" ]; then
    scripts/setup.sh build mount redis ${clients:+python network}
fi
need_cargo
mounting=1
if [ "${HFMOUNT_TESTS_SKIP_MOUNT:-}" = 1 ]; then
    mounting=
    skipped=" (kernel mounts and the client suites left out: HFMOUNT_TESTS_SKIP_MOUNT=1)"
fi

# Always all targets, so that nothing is compiled twice: what dev-dependencies ask of shared crates changes those.
say "cargo build --all-targets ${flags[*]-}"
cargo build --locked --all-targets "${flags[@]}"

if [ -n "$rust" ]; then
    say "cargo test ${flags[*]-}"
    status=0
    run cargo test --locked --lib --bins --tests --no-fail-fast "${flags[@]}" || status=$?
    totals=$(awk '/^test result:/ { for (i = 1; i < NF; i++) { if ($(i+1) ~ /^passed/) p += $i; if ($(i+1) ~ /^failed/) f += $i } }
        END { print p + 0, f + 0 }' "$log")
    read -r p f <<<"$totals"
    # A test binary that does not compile or that dies reports no number.
    if [ "$status" -ne 0 ] && [ "$f" -eq 0 ]; then f=1; fi
    passed=$((passed + p)) failed=$((failed + f))
fi

if [ -n "$mounting" ]; then
    HFMOUNT_BIN=${HFMOUNT_BIN:-$(target_dir)/$profile/hfmount}
    HFMOUNT_STANDIN=${HFMOUNT_STANDIN:-$(target_dir)/$profile/examples/standin}
    export HFMOUNT_BIN HFMOUNT_STANDIN
fi

if [ -n "$posix" ] && [ -n "$mounting" ] && [ "$(id -u)" != 0 ]; then
    skipped="$skipped (pjdfstest left out: it needs root)"
elif [ -n "$posix" ] && [ -n "$mounting" ]; then
    say "pjdfstest on the mount"
    status=0
    run scripts/suites.sh --no-setup pjdfstest || status=$?
    read -r p f < <(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$log" | tail -1) || p=0 f=1
    if [ "$status" -ne 0 ] && [ "$f" -eq 0 ]; then f=1; fi
    passed=$((passed + p)) failed=$((failed + f))
fi

if [ -n "$clients" ] && [ -n "$mounting" ]; then
    say "client suites: real huggingface_hub, safetensors and tokenizers on the mount"
    status=0
    run "$VENVS/new/bin/python" tests/clients/run.py "$@" || status=$?
    read -r p f < <(sed -n 's/^clients: \([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$log" | tail -1) || p=0 f=1
    if [ "$status" -ne 0 ] && [ "$f" -eq 0 ]; then f=1; fi
    passed=$((passed + p)) failed=$((failed + f))
fi

if [ -n "$clients" ] && [ -n "$mounting" ] && [ "$#" -eq 0 ]; then
    if unshare --net true 2>/dev/null; then
        say "nodes with networks of their own: each byte leaves the Hub once"
        status=0
        run scripts/bench-peers.sh --quick || status=$?
        read -r p f < <(sed -n 's/^peers: \([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$log" | tail -1) || p=0 f=1
        if [ "$status" -ne 0 ] && [ "$f" -eq 0 ]; then f=1; fi
        passed=$((passed + p)) failed=$((failed + f))
    else
        skipped="$skipped (nodes with networks of their own left out: they need root)"
    fi
fi

echo "$passed passed, $failed failed$skipped"
[ "$failed" -eq 0 ]
