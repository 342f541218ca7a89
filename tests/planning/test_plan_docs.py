"""The commands of docs/plan.md, as they stand."""

import re
import shlex
from pathlib import Path

import pytest

from t5x_lite import cli, config

DOCUMENT = (Path(__file__).parents[2] / "docs" / "plan.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", DOCUMENT, flags=re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]
INLINE = re.findall(r"`(t5x_lite plan --[^`]*)`", DOCUMENT)


def test_commands_run_in_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert len(LINES) == 3
    with config.fresh():
        for line in LINES:
            assert cli.main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    assert (tmp_path / "best.gin").exists()


@pytest.mark.parametrize("line", INLINE)
def test_longer_commands_are_understood(line):
    assert cli.parse_args(shlex.split(line)[1:]).verb == "plan"
