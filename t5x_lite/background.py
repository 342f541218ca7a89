"""The name of threads whose work nothing waits for once a command has failed."""

BACKGROUND = "t5x_lite-background"
