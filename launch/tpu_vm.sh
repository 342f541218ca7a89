#!/usr/bin/env bash
# Trains on a Cloud TPU slice, one host or a pod; when a spot slice is taken away, on the next one.
#
#   bash launch/tpu_vm.sh run --name=mine --zone=us-west4-a --accelerator=v5litepod-16 --spot -- \
#     --gin_file=recipes/t5_1_1_base_c4.gin --gin.MODEL_DIR=gs://bucket/mine
#
# Commands:
#   run     asks for the slice unless it is there, installs this checkout, trains, shows the log,
#           and does so again whenever the slice is lost, until training is finished. Interrupted
#           and called again, it goes on where things are: training isn't started twice.
#   status  of the request for the slice
#   logs    follows training
#   stop    ends training, saved; the slice stays, and `run` elsewhere ends, too
#   delete  the slice and the request for it
# Flags: --name, --zone, --accelerator, --runtime (default: by accelerator), --project,
# --service_account, --spot, --restarts=N (on the hosts, after crashes in a row; default 3),
# --delete_after (training is finished), --poll=SECONDS, --settle=SECONDS (after a loss, until the
# lost hosts' lock on the run's folder is stale; default 0: training finds out by itself), --dry_run (prints the commands).
# After --: the flags of `t5x_lite train`. gs://BUCKET in them is read through gcsfuse.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name="" zone="" accelerator="" runtime="" project="" service_account="" spot="" delete_after=""
restarts=3 poll=30 settle=0 command="${1:-}"
(($#)) || { usage >&2 && exit 2; }
[[ "$command" == -* ]] || shift
parse_flags "name zone accelerator runtime project service_account spot? delete_after? restarts poll settle" "$@"
required name zone
check_name
place=(--zone="$zone" ${project:+--project="$project"})
request=(gcloud compute tpus queued-resources)
vm=(gcloud compute tpus tpu-vm)
ours="bash launch/tpu_vm.sh delete --name=$name ${place[*]}"

# The image of the operating system; everything else comes with this checkout.
default_runtime() {
  case "$accelerator" in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v4-*) echo tpu-ubuntu2204-base ;;
    *) die "--accelerator='$accelerator': expected v4-N, v5litepod-N, v5p-N or v6e-N, or a --runtime" ;;
  esac
}

# The request's state; empty if there is none. What can't be asked ends the script: to take it for
# "none" would create a second slice.
state() {
  local answer
  if answer="$(ask "${request[@]}" describe "$name" "${place[@]}" --format='value(state.state)' 2>&1)"; then
    if [[ -n "$dry_run" ]]; then echo "$answer" >&2; else echo "$answer"; fi
  elif [[ "$answer" != *NOT_FOUND* && "$answer" != *"not found"* ]]; then
    echo "$answer" >&2
    return 1
  fi
}

create() {
  # Before the command: it can fail when the request is already made.
  left_behind="perhaps the TPU slice $name or the request for it, which cost money: $ours"
  run "${request[@]}" create "$name" --node-id="$name" "${place[@]}" \
    --accelerator-type="$accelerator" --runtime-version="$runtime" \
    ${spot:+--spot} ${service_account:+--service-account="$service_account"}
}

remove() {
  run "${request[@]}" delete "$name" "${place[@]}" --force --quiet
}

wait_for_slice() {
  local now last="" asked=""
  while true; do
    now="$(state)" || exit 1
    [[ "$now" == "$last" ]] || echo "== $name is $now ==" >&2
    last="$now"
    [[ -z "$now" ]] || left_behind="the TPU slice $name, which costs money: $ours"
    case "$now" in
      ACTIVE) return ;;
      "")
        [[ -z "$asked" ]] || { echo "error: somebody has deleted the request" >&2 && exit 1; }
        create || exit 1
        asked=1
        [[ -z "$dry_run" ]] || return 0
        ;;
      FAILED)
        [[ -z "$asked" ]] || { echo "error: the request failed; $0 status tells why" >&2 && exit 1; }
        remove || exit 1
        ;;
      SUSPENDED) remove || exit 1 ;;
      *) sleep "$poll" ;; # waiting for capacity, or being made or deleted
    esac
  done
}

# on_hosts WORKER COMMAND...: of tpu_worker.sh
on_hosts() {
  local worker="$1"
  shift
  run "${vm[@]}" ssh "$name" "${place[@]}" --worker="$worker" --command="$(quoted bash tpu_worker.sh "$@")"
}

send_checkout() {
  local folder status=0
  folder="$(mktemp -d)"
  tar --create --gzip --file="$folder/t5x_lite.tar.gz" --directory="$root" --exclude=__pycache__ \
    pyproject.toml README.md t5x_lite gin_configs launch
  run "${vm[@]}" scp "$folder/t5x_lite.tar.gz" "$root/launch/tpu_worker.sh" "$name:" \
    "${place[@]}" --worker=all || status=$?
  rm -r "$folder"
  return $status
}

# On the hosts, each step does nothing if training is under way.
attempt() {
  wait_for_slice
  { send_checkout && on_hosts all setup; } || return
  while ((SECONDS - lost_at < settle)); do sleep 1; done
  on_hosts all start --restart="$restarts" "${flags[@]}" &&
    on_hosts 0 follow
}

train() {
  local status lost=0 lost_at=$((-settle))
  while true; do
    status=0
    attempt || status=$?
    ((status != 0)) || return 0
    ((status != 2)) || exit 2 # a mistake in the command: it would come again
    if ((status == saved_status)); then
      # The machine is about to be taken away, which said so to training; or somebody wants it to end.
      echo "== training was asked to stop, and has saved ==" >&2
      if [[ "$(on_hosts 0 stopped 2>/dev/null)" == yes ]]; then
        echo "== by \`tpu_vm.sh stop\`: not started again. The same command continues. ==" >&2
        exit "$saved_status"
      fi
      sleep "$poll"
      [[ "$(state)" == ACTIVE ]] || { echo "== the slice is gone: asking for another ==" >&2; lost=0 lost_at=$SECONDS; }
    elif [[ "$(state)" != ACTIVE ]]; then
      echo "== the slice is gone: asking for another ==" >&2
      lost=0 lost_at=$SECONDS
    elif ((status == 255 && ++lost < 20)); then # ssh's: hosts that are starting or being taken away
      echo "== the hosts can't be reached ($lost of 20) ==" >&2
      sleep "$poll"
    else
      echo "error: failed with $status; its end is in the log: bash launch/tpu_vm.sh logs" >&2
      exit 1
    fi
  done
}

needs gcloud
trap on_exit EXIT
case "$command" in
  run)
    required accelerator
    check_bucket
    [[ -n "$runtime" ]] || runtime="$(default_runtime)"
    train
    if [[ -n "$delete_after" ]]; then
      remove
    else
      echo "== finished; $name is still there and costs money: $ours =="
    fi
    ;;
  status) run "${request[@]}" describe "$name" "${place[@]}" ;;
  logs) on_hosts 0 follow ;;
  stop) on_hosts all stop ;;
  delete) remove ;;
  *) die "unknown command '$command': expected run, status, logs, stop or delete" ;;
esac
