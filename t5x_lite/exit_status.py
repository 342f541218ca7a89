"""What the status of a command says; docs/reliability.md has the table for users.

A scheduler takes 0 for finished and starts again what ends otherwise; 2 it shouldn't.
"""

FINISHED = 0
FAILED = 1
MISTAKE = 2  # the same command would come to the same
INTERRUPTED = 130  # at once, by a second signal or outside of training: nothing was saved
# 128 + SIGTERM, as of a program that SIGTERM ends: what was made is saved, the same command
# continues. xpk, JobSet, Docker and systemd start it again; launch/*.sh know it as saved_status.
SAVED = 143
