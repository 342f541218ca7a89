#!/usr/bin/env bash
# The job that slurm.sh submits: runs its arguments on all tasks, and queues itself again when its
# time is up before training is finished.
set -uo pipefail

srun --kill-on-bad-exit=1 "$@" &
tasks=$!
again=""
trap 'again=1; kill -TERM "$tasks"' USR1 # srun passes it on; training saves and exits with 0
trap 'kill -TERM "$tasks"' TERM
until ! kill -0 "$tasks" 2>/dev/null; do
  wait "$tasks" # a signal ends this, not the tasks
done
wait "$tasks"
status=$?
if [[ -n "$again" ]] && ((status == 0)); then
  echo "== time is up: in the queue again, to continue =="
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
