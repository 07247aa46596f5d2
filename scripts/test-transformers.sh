#!/usr/bin/env bash
# transformers and torch on the mount: loads all-MiniLM-L6-v2 with AutoModel in both ways (HF_HUB_CACHE=/mnt/hf, and mounted
# on ~/.cache/huggingface), online and offline, and compares the numbers with a plain folder's. Not a part of
# scripts/test.sh because torch alone brings several gigabytes: `scripts/setup.sh transformers` installs it in a venv of
# its own, and without that this script says so and ends well, having tested nothing.
#
#   scripts/test-transformers.sh             run if installed
#   scripts/test-transformers.sh --install   install first
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

case ${1:-} in
--install) scripts/setup.sh build mount redis python transformers ;;
-h | --help)
    help_of "$0"
    exit
    ;;
'') ;;
*) die "no such option: $1" ;;
esac
if [ ! -f "$VENVS/transformers/.made-from" ]; then
    say "skipped: transformers and torch are not installed (scripts/test-transformers.sh --install)"
    exit
fi
need_cargo
cargo build --locked --release --bin hfmount --example standin
HFMOUNT_BIN=${HFMOUNT_BIN:-$(target_dir)/release/hfmount}
HFMOUNT_STANDIN=${HFMOUNT_STANDIN:-$(target_dir)/release/examples/standin}
export HFMOUNT_BIN HFMOUNT_STANDIN
exec "$VENVS/new/bin/python" tests/clients/run.py transformers_suite
