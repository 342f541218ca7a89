import shutil
import subprocess

import pytest

from t5x_lite import cli, completion

LINES = [  # words on the line, some of what is offered
    (["t5x_lite", "tr"], {"train"}),
    (["t5x_lite", "report", "--h"], {"--help", "--html"}),
    (["t5x_lite", "vocab", "--model_type=u"], {"unigram"}),
    (["t5x_lite", "vocab", "--model_type", "b"], {"bpe"}),
    (["t5x_lite", "train", "--gin_file=recipes/quick"], {"recipes/quickstart.gin"}),
    (["t5x_lite", "report", "ru"], {"runs"}),
]


def of(shell, capsys) -> str:
    assert cli.main(["--completion", shell]) == 0
    script = capsys.readouterr().out
    capsys.readouterr()
    assert cli.main([f"--completion={shell}"]) == 0
    assert capsys.readouterr().out == script
    return script


@pytest.mark.parametrize("words, offered", LINES)
def test_bash_completes(words, offered, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    # Bash cuts words at "=", too.
    split = [part for word in words for part in word.replace("=", "\0=\0").split("\0")]
    (tmp_path / "try.sh").write_text(
        f"{of('bash', capsys)}\nCOMP_WORDS=({' '.join(split)})\nCOMP_CWORD={len(split) - 1}\n"
        '_t5x_lite\nprintf "%s\\n" "${COMPREPLY[@]}"\ncomplete -p t5x_lite\n'
    )
    done = subprocess.run(["bash", "-u", "try.sh"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""
    *found, registered = done.stdout.splitlines()
    assert offered <= set(found) and "-F _t5x_lite t5x_lite" in registered
    assert len(found) < 5


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_take_the_script(shell, tmp_path, capsys):
    script = of(shell, capsys)
    for verb in cli.VERBS:
        assert verb in script
    assert "model_type" in script and "unigram bpe" in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} isn't installed")
    (tmp_path / "script").write_text(script)
    done = subprocess.run([shell, "-n", "script"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_shell(capsys):
    assert cli.main(["--completion", "tcsh"]) == 2
    assert capsys.readouterr().err == (
        "error: --completion is for a shell: bash, zsh, fish; found 'tcsh'.\n"
    )


def test_the_shipped_recipes_are_offered():
    assert "recipes/quickstart.gin" in completion.shipped_recipes()
