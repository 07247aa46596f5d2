#!/usr/bin/env bash
# From nothing to a model read through the mount, in one command:
#
#   scripts/quickstart.sh [DIR]      DIR: where to mount, ./hf unless given
#
# Installs what is missing (fuse3, a C compiler, curl), builds hfmount, makes a volume on the embedded default (SQLite and
# a folder, under $HFMOUNT_HOME), mounts it on DIR and reads files of a small public model that nobody downloaded. Without
# a way to the Hub it says so, and does the same with a stand-in Hub on this machine and a model of random numbers, in a
# volume of its own. The mount stays. Run it again as often as you like.
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

case ${1:-} in
-h | --help)
    help_of "$0"
    exit
    ;;
-*) die "no such option: $1" ;;
esac
dir=${1:-hf}
case $dir in /*) ;; *) dir=$here/$dir ;; esac
# As the kernel will name it. The folder itself is not looked at: a dead mount may lie on it.
dir=$(realpath -m "$(dirname "$dir")")/$(basename "$dir")
export HFMOUNT_HOME=${HFMOUNT_HOME:-$HOME/.local/share/hfmount}
endpoint=${HF_ENDPOINT:-https://huggingface.co}
repo=sentence-transformers/all-MiniLM-L6-v2

scripts/setup.sh build mount curl
[ -e /dev/fuse ] || die "there is no /dev/fuse here: hfmount needs a kernel with FUSE"
if [ "$(id -u)" != 0 ] && ! { [ -r /dev/fuse ] && [ -w /dev/fuse ]; }; then
    die "/dev/fuse is closed to you: run this as root, or let root do chmod 666 /dev/fuse"
fi
need_cargo
targets=(--bin hfmount)
hub=1
if curl --silent --fail --output /dev/null --max-time 15 "$endpoint/api/models/$repo"; then
    say "the Hub answers: $endpoint"
else
    hub=
    say "no way to the Hub at $endpoint: going on with a stand-in Hub on this machine"
    targets+=(--example standin)
fi
say "building hfmount (some minutes the first time)"
cargo build --locked --release "${targets[@]}"
hfmount=$(target_dir)/release/hfmount

if [ -z "$hub" ]; then
    standin=$(target_dir)/release/examples/standin
    HFMOUNT_HOME=$HFMOUNT_HOME/quickstart-standin
    repo=standin/random-numbers
    mkdir -p "$HFMOUNT_HOME/hub"
    model=$HFMOUNT_HOME/hub/models/$repo/main
    [ -f "$model/README.md" ] || "$standin" make-model "$model" --size 64MiB
    pid=$(cat "$HFMOUNT_HOME/hub.pid" 2>/dev/null || true)
    running=$([ -z "$pid" ] || readlink "/proc/$pid/exe" || true)
    # Built anew meanwhile, it is "… (deleted)" and goes on serving.
    if [ "${running% (deleted)}" != "$(readlink -f "$standin")" ]; then
        # The same port as before, because the volume remembers it.
        before=$(sed -n 's|.*"endpoint":"http://\([^"]*\)".*|\1|p' "$HFMOUNT_HOME/hub.json" 2>/dev/null || true)
        rm -f "$HFMOUNT_HOME/hub.json"
        setsid "$standin" hub --root "$HFMOUNT_HOME/hub" --listen "${before:-127.0.0.1:0}" --port-file "$HFMOUNT_HOME/hub.json" \
            >"$HFMOUNT_HOME/hub.log" 2>&1 </dev/null &
        echo $! >"$HFMOUNT_HOME/hub.pid"
        for _ in $(seq 100); do
            if [ -f "$HFMOUNT_HOME/hub.json" ]; then break; fi
            sleep 0.1
        done
        [ -f "$HFMOUNT_HOME/hub.json" ] || die "the stand-in Hub did not start: $(cat "$HFMOUNT_HOME/hub.log")"
    fi
    endpoint=$(sed -n 's|.*"endpoint":"\([^"]*\)".*|\1|p' "$HFMOUNT_HOME/hub.json")
    note "stand-in Hub: $endpoint (pid $(cat "$HFMOUNT_HOME/hub.pid")), with the model $repo"
fi

if grep -qsF " $dir fuse.hfmount " /proc/mounts && ls "$dir" >/dev/null 2>&1; then
    "$hfmount" status --json 2>/dev/null | grep -qF "\"$dir\"" || die "another volume is mounted on $dir: name another place"
    say "already mounted: $dir"
else
    say "making the volume (nothing happens if it is there) and mounting it on $dir"
    "$hfmount" format --hub-endpoint "$endpoint" | sed "/^Mount it/d; s/^./    &/"
    # A killed mount may lie there, on which mkdir fails; mounting replaces it.
    mkdir -p "$dir" 2>/dev/null || true
    "$hfmount" mount -d "$dir"
fi

seconds() { date +%s.%N; }
since() { awk -v from="$1" -v to="$(seconds)" 'BEGIN { printf "%.2f s", to - from }'; }
place=$dir/models--${repo//\//--}
say "reading $repo, which nobody has downloaded"
began=$(seconds)
commit=$(cat "$place/refs/main")
snapshot=$place/snapshots/$commit
note "refs/main is $commit"
head -c 400 "$snapshot/config.json" | sed 's/^/    | /'
echo
size=$(stat -Lc %s "$snapshot/model.safetensors")
note "config.json and the size of model.safetensors ($size bytes) after $(since "$began")"
began=$(seconds)
note "sha256 of model.safetensors: $(sha256sum <"$snapshot/model.safetensors" | cut -c1-64), read in $(since "$began")"
began=$(seconds)
note "once more, now from the cache: $(sha256sum <"$snapshot/model.safetensors" | cut -c1-64), in $(since "$began")"

say "done. The cache of every Hub library is now one variable away:"
note "HF_HUB_CACHE=$dir python -c 'from huggingface_hub import snapshot_download; print(snapshot_download(\"$repo\"))'"
note "state:   HFMOUNT_HOME=$HFMOUNT_HOME $hfmount status"
note "unmount: $hfmount umount $dir"
if [ -f "$HFMOUNT_HOME/hub.pid" ]; then
    note "stand-in Hub: kill $(cat "$HFMOUNT_HOME/hub.pid"); programs need HF_ENDPOINT=$endpoint as well"
fi
