#!/usr/bin/env bash
# The job that slurm.sh submits: runs its arguments on all tasks, and queues itself again when its
# time is up before training is finished.
set -uo pipefail

saved_status=143 # of training that was asked to stop and has saved: common.sh isn't here

srun --kill-on-bad-exit=1 "$@" &
tasks=$!
again=""
# To the step, not to srun, which answers SIGTERM with SIGKILL to all tasks.
trap 'again=1; scancel --signal=TERM "$SLURM_JOB_ID.0"' USR1
trap 'scancel --signal=TERM "$SLURM_JOB_ID.0"' TERM
until ! kill -0 "$tasks" 2>/dev/null; do
  wait "$tasks" # a signal ends this, not the tasks
done
wait "$tasks"
status=$?
# With --kill-on-bad-exit the first task that ends in this way ends the others, which have saved, too.
if [[ -n "$again" ]] && ((status == saved_status)); then
  echo "== time is up: saved, and in the queue again, to continue =="
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
