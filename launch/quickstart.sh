#!/usr/bin/env bash
# The main job on an embedded default, on any machine with Python 3.11+: sets up, trains a
# vocabulary and a small T5 on Python's own library, evaluates it, fills in blanks.
# A second run continues where the first one stopped. Arguments go to `t5x_lite train`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
make_venv

vocabulary=runs/python_library.4k.model
mkdir -p runs
if [[ ! -f "$vocabulary" ]]; then
  echo "== vocabulary =="
  "$venv/bin/t5x_lite" vocab --gin_file=recipes/quickstart.gin --output="$vocabulary" \
    --size=4096 --model_type=bpe
fi
echo "== training =="
"$venv/bin/t5x_lite" train --gin_file=recipes/quickstart.gin "$@"
