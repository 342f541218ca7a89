"""`python -m t5x_lite VERB ...`, the same as the command `t5x_lite`."""

from t5x_lite.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
