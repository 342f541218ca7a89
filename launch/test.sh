#!/usr/bin/env bash
# Sets up an environment with everything that the tests need, and runs them.
# Arguments go to pytest: bash launch/test.sh tests/data -k packing
# Runs of several processes and of this script's sibling are apart: bash launch/test.sh -m slow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
make_venv dev
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/python" -m pytest --numprocesses=auto --maxprocesses=4 -m "not slow" "$@"
