#!/usr/bin/env bash
# The part of tpu_vm.sh that runs on each host of a slice, in the home folder.
#   setup          unpacks and installs the checkout, mounts the buckets
#   start FLAGS    starts training in the background, so that it outlives the connection
#   follow         shows the log until training ends, and exits as it did
#   stop           asks training to save and end, and waits for it
#   stopped        says "yes" if it was `stop` that ended it
set -euo pipefail
home="${T5X_LITE_HOME:-$HOME}"
buckets="$home/gs"
log="$home/train.log" pid_file="$home/train.pid" status_file="$home/train.status"
stop_file="$home/train.stop"

running() {
  [[ -f "$pid_file" ]] && kill -0 "$(<"$pid_file")" 2>/dev/null
}

metadata() { # what the cloud knows of this host
  curl --silent --fail --header "Metadata-Flavor: Google" \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

setup() {
  mkdir -p "$home/t5x_lite" "$buckets"
  # Over an older checkout: what isn't in the new one must go, the environment may stay.
  rm -rf "$home/t5x_lite/t5x_lite" "$home/t5x_lite/gin_configs" "$home/t5x_lite/launch"
  tar --extract --gzip --file="$home/t5x_lite.tar.gz" --directory="$home/t5x_lite"
  cd "$home/t5x_lite"
  if ! [[ -x .venv/bin/python ]]; then
    # The hosts' own Python may be too old; uv brings one.
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --seed --python 3.12 .venv
  fi
  # shellcheck source=/dev/null
  source launch/common.sh
  PYTHON="$PWD/.venv/bin/python" make_venv tpu,data
  # No bucket's name: every bucket that this host may read is a folder in it.
  mountpoint --quiet "$buckets" || gcsfuse --implicit-dirs --rename-dir-limit=100000 "$buckets"
}

# The hosts of the slice, from what the cloud tells each of them; nothing for a single one.
process_flags() {
  local endpoints worker address
  endpoints="$(metadata worker-network-endpoints)" || return
  [[ "$endpoints" == *,* ]] || return 0
  worker="$(metadata agent-worker-number)" || return
  address="${endpoints%%,*}"
  # HOST, or in an older form NAME:ID:HOST.
  echo "--coordinator_address=${address##*:}:8476" \
    "--process_count=$(tr -cd , <<<"$endpoints" | wc -c | awk '{print $1 + 1}')" \
    "--process_index=$worker"
}

start() {
  local processes
  # Alone, each host of a slice would wait for the others: no guesses.
  processes="$(process_flags)" || { echo "error: $(hostname) can't be told its slice's hosts" >&2 && exit 1; }
  rm -f "$status_file" "$stop_file"
  cd "$home/t5x_lite"
  # shellcheck disable=SC2016,SC2086 # expanded by that shell; three flags without spaces
  setsid nohup bash -c 'trap : TERM; status=0; "$@" || status=$?; echo $status >"$0"' "$status_file" \
    .venv/bin/t5x_lite train $processes "${@//gs:\/\//$buckets/}" >>"$log" 2>&1 </dev/null &
  echo $! >"$pid_file"
}

follow() {
  [[ -f "$pid_file" ]] || { echo "error: nothing has been started on this host" >&2 && exit 2; }
  tail --lines=100 --follow --pid="$(<"$pid_file")" "$log" || true
  # None was written: the host went down under it, which is what ssh says with 255.
  exit "$(cat "$status_file" 2>/dev/null || echo 255)"
}

stop() {
  running || return 0
  touch "$stop_file"
  kill -TERM -- "-$(<"$pid_file")" # the session: training, and the shell that waits for it
  while running; do sleep 1; done
}

command="$1"
shift
case "$command" in
  setup | start)
    if running; then
      echo "training is under way on $(hostname)"
    else
      "$command" "$@"
    fi
    ;;
  follow | stop) "$command" ;;
  stopped) [[ ! -f "$stop_file" ]] || echo yes ;;
esac
