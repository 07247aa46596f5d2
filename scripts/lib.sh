# shellcheck shell=bash disable=SC2034
# Shared by the scripts beside it; sourced, never run.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENVS=${HFMOUNT_VENVS:-$ROOT/.venv}

say() { printf '==> %s\n' "$*"; }
note() { printf '    %s\n' "$*"; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Prints the comment at the head of a script.
help_of() { sed -n '2,/^set -euo/{/^#/s/^# \{0,1\}//p}' "$1"; }

# The same, and ends, if the arguments after the script ask for it.
help_if_asked() {
    local script=$1
    shift
    case " $* " in *" -h "* | *" --help "*) help_of "$script" && exit ;; esac
}

# Runs a command a second time when it failed once: registries and mirrors hiccup.
twice() {
    "$@" && return
    note "failed once, trying again in 5 s: $*"
    sleep 5
    "$@"
}

# Runs a command as root, through sudo when this is not root; says what to do when neither is possible.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root: $*"
    fi
}

# The folder where cargo puts what it builds.
target_dir() { printf '%s' "${CARGO_TARGET_DIR:-$ROOT/target}"; }

need_cargo() {
    if ! command -v cargo >/dev/null && [ -f "$HOME/.cargo/env" ]; then
        # shellcheck disable=SC1091
        . "$HOME/.cargo/env"
    fi
    command -v cargo >/dev/null || die "no cargo: install Rust first, see https://rustup.rs"
}
