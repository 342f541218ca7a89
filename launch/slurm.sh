#!/usr/bin/env bash
# Trains on the GPUs of a SLURM cluster, one process a GPU; jax finds the processes by itself.
#
#   bash launch/slurm.sh submit --name=mine --nodes=2 --gpus_per_node=8 --time=24:00:00 -- \
#     --gin_file=recipes/t5_1_1_base_c4.gin --gin.MODEL_DIR=/shared/runs/mine
#
# Commands: submit (unless a job of this name is queued or running), status, logs, cancel (saves
# first). The folder of this checkout and the run's must be on a disk that all nodes see. Before its
# time is up the job saves and puts itself into the queue again; so it does when SLURM preempts it.
# Flags: --name, --nodes=1, --gpus_per_node=1, --time, --partition, --account, --constraint,
# --logs=FOLDER (default: runs), --dry_run (prints the commands).
# After --: the flags of `t5x_lite train`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name="" nodes=1 gpus_per_node=1 time="" partition="" account="" constraint="" logs="$root/runs"
command="${1:-}"
(($#)) || { usage >&2 && exit 2; }
[[ "$command" == -* ]] || shift
parse_flags "name nodes gpus_per_node time partition account constraint logs" "$@"
required name
check_name

jobs() { # of this name, and mine
  ask squeue --me --name="$name" --noheader --format=%i
}

case "$command" in
  submit)
    needs sbatch squeue
    found="$(jobs)" || exit 1
    if [[ -n "$found" ]]; then
      echo "== $name is queued or running already, as job $found: not submitted again =="
      exit 0
    fi
    run mkdir -p "$logs"
    [[ -n "$dry_run" ]] || make_venv cuda,data
    # USR1 goes to the script 3 minutes before the end: time to save. No GPU is bound to a task:
    # jax picks by the task's number on its node.
    run sbatch --job-name="$name" --nodes="$nodes" --ntasks-per-node="$gpus_per_node" \
      --gpus-per-node="$gpus_per_node" --requeue --open-mode=append --signal=B:USR1@180 \
      --output="$logs/$name-%j.log" ${time:+--time="$time"} ${partition:+--partition="$partition"} \
      ${account:+--account="$account"} ${constraint:+--constraint="$constraint"} \
      --chdir="$root" "$root/launch/slurm_job.sh" "$venv/bin/t5x_lite" train "${flags[@]}"
    ;;
  status) run squeue --me --name="$name" ;;
  logs)
    newest="$(find "$logs" -name "$name-*.log" -printf '%T@ %p\n' 2>/dev/null | sort -n | tail -n 1)" || true
    [[ -n "$newest$dry_run" ]] || die "no log of $name in $logs"
    run tail --lines=100 --follow "${newest#* }"
    ;;
  cancel)
    # The script passes it on, and doesn't queue again what was told to end.
    run scancel --me --name="$name" --state=PENDING
    run scancel --me --name="$name" --batch --signal=TERM
    ;;
  *) die "unknown command '$command': expected submit, status, logs or cancel" ;;
esac
