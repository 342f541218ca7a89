# shellcheck shell=bash
# Sourced by the scripts here: a virtual environment of the project's own, made once; and, below,
# what the scripts share that launch a run elsewhere.

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
    # Python compiles a module when it is first used: of all that is installed, few are.
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
      --constraint "$root/launch/constraints.txt" --editable "$root${extras:+[$extras]}"
    echo "$wanted" >"$venv/installed-$extras"
  fi
}

# ---------------------------------------------------------------- for the scripts that launch

dry_run=""
# What training ends with when it was asked to stop and has saved: it isn't finished, the same command
# continues (t5x_lite/exit_status.py).
# shellcheck disable=SC2034 # read by the scripts that source this
saved_status=143
left_behind="" # what goes on costing money or running when a script fails, and how to end it

die() {
  echo "error: $*" >&2
  exit 2
}

# quoted WORDS...: one line that a shell reads as these words.
quoted() {
  printf '%q' "$1"
  shift
  (($# == 0)) || printf ' %q' "$@"
}

# run COMMAND...: prints it; executes it, unless this is a dry run.
run() {
  echo "+ $(quoted "$@")" >&2
  [[ -n "$dry_run" ]] || "$@"
}

# ask COMMAND...: as run, for questions whose answer is printed: in a dry run there is none.
ask() {
  [[ -n "$dry_run" ]] && echo "+ $(quoted "$@")" >&2 && return
  "$@"
}

needs() {
  local tool
  [[ -n "$dry_run" ]] && return
  for tool in "$@"; do
    command -v "$tool" >/dev/null || die "$tool is needed and not on the PATH"
  done
}

# Call it with `trap on_exit EXIT`.
on_exit() {
  local status=$?
  ((status == 0)) || [[ -z "$left_behind" ]] || echo "left behind: $left_behind" >&2
}

# parse_flags "name zone spot?" ARGUMENTS...: sets $name, $zone, ... from --name=x or --name x, and
# $spot to 1 from --spot. What follows "--" are the arguments of `t5x_lite train`, in ${flags[@]}.
flags=()
parse_flags() {
  ((BASH_VERSINFO[0] > 4)) || die "bash $BASH_VERSION is too old, 5 is needed: bash --version"
  local known=" $1 dry_run? " argument flag
  shift
  while (($#)); do
    argument="$1"
    shift
    case "$argument" in
      --) flags=("$@") && return ;;
      -h | --help) usage && exit 0 ;;
      --*) flag="${argument%%=*}" && flag="${flag#--}" ;;
      *) die "unexpected '$argument': flags of \`t5x_lite train\` come after --" ;;
    esac
    if [[ "$known" == *" $flag? "* && "$argument" != *=* ]]; then
      printf -v "$flag" 1
    elif [[ "$known" != *" $flag "* ]]; then
      die "unknown flag '$argument'; known: $known(flags of \`t5x_lite train\` come after --)"
    elif [[ "$argument" == *=* ]]; then
      printf -v "$flag" %s "${argument#*=}"
    else
      (($#)) || die "$argument needs a value"
      printf -v "$flag" %s "$1"
      shift
    fi
  done
}

# required NAMES...: flags that must have been given.
required() {
  local flag
  for flag in "$@"; do
    [[ -n "${!flag:-}" ]] || die "--$flag=... is needed; see --help"
  done
}

# A name of a cloud resource or a job: it becomes a part of host names and labels.
check_name() {
  # shellcheck disable=SC2154 # set by parse_flags
  [[ "$name" =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    die "--name='$name': expected lower-case letters, digits and -, from a letter on, at most 40"
}

# A run that is continued on other machines must keep its folder in a bucket.
check_bucket() {
  local flag where=""
  for flag in "${flags[@]}"; do
    [[ "$flag" != --gin.MODEL_DIR=* ]] || where="${flag#*=}"
  done
  [[ "$where" =~ ^[\'\"]*gs://[^/]+/. ]] ||
    die "found MODEL_DIR='$where', expected --gin.MODEL_DIR=gs://BUCKET/FOLDER: a run that is" \
      "continued on another machine must keep its folder in a bucket"
}

# in_buckets FOLDER: flags of training, with gs:// replaced by the folder at which all buckets are
# mounted (gcsfuse), as a run's folder must take appended lines and a lock.
in_buckets() {
  flags=("${flags[@]//gs:\/\//$1/}")
}

# usage: the comment at the top of the calling script.
usage() {
  sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0"
}
