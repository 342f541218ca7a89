# Sourced by the scripts here: a virtual environment of the project's own, made once.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${T5X_LITE_VENV:-$root/.venv}"

# make_venv [EXTRAS]: installs this checkout, such as "dev", with the versions of constraints.txt.
make_venv() {
  local python="${PYTHON:-python3}" extras="${1:-}" wanted
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: Python 3.11 or newer is needed, $python is $("$python" --version 2>&1 || true):" \
      "PYTHON=/path/to/python3.11 chooses another" >&2
    exit 2
  fi
  # The mark is written last, so that an interrupted installation is done again.
  wanted="$(cat "$root/pyproject.toml" "$root/launch/constraints.txt" | cksum)"
  # More than is asked for will do: everything needs the base, and "dev" brings that.
  if ! grep -qsF "$wanted" "$venv/installed-$extras" "$venv/installed-dev"; then
    echo "== setting up $venv (once) =="
    [[ -x "$venv/bin/python" ]] || "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
      --constraint "$root/launch/constraints.txt" --editable "$root${extras:+[$extras]}"
    echo "$wanted" >"$venv/installed-$extras"
  fi
}
