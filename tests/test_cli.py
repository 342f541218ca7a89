import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest

import t5x_lite
from t5x_lite import cli, config, verbs
from t5x_lite.data.vocabulary import SentencePieceVocabulary
from t5x_lite.errors import UserError
from t5x_lite.programs import doctor, vocab

ROOT = Path(t5x_lite.__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

GIN_FLAGS = [
    "--gin_file", "--gin_search_paths", "--gin_bindings", "--gin.NAME", "--trust_config",
]  # fmt: skip
PROCESS_FLAGS = ["--coordinator_address", "--process_count", "--process_index"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with config.fresh():
        yield


def run(*arguments, code=None, **options):
    """A command in a process of its own."""
    start = ["-c", code] if code else ["-m", "t5x_lite"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *start, *arguments], capture_output=True, text=True,
                          env=environment, timeout=120, **options)  # fmt: skip


def mistake(*argv) -> str:
    with pytest.raises(UserError) as caught:
        cli.parse_args(argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def verb(monkeypatch):
    """Adds a verb `toast` whose program calls the given function."""

    def add(main, **options):
        monkeypatch.setitem(sys.modules, "toast_program", types.SimpleNamespace(main=main))
        entry = verbs.Verb(
            "toast_program", "make toast", "t5x_lite toast", **{"gin": False} | options
        )
        monkeypatch.setitem(cli.VERBS, "toast", entry)

    return add


# ------------------------------------------------------------------------------- the public surface


def test_verbs_and_flags_are_these():
    """What users type: changing it is a decision, and an entry in the notes of a release."""
    surface = {}
    for name in cli.VERBS:
        actions = cli.verb_parser(name)._actions
        *surface[name], last = [flag for action in actions for flag in action.option_strings][2:]
        assert last == "--debug"
    assert surface == {
        "train": ["--dry_run", "--restart", *PROCESS_FLAGS, *GIN_FLAGS],
        "eval": ["--checkpoint", "--watch", "--html", *PROCESS_FLAGS, *GIN_FLAGS],
        "infer": ["--prompt", "--input", "--output", "--shard", "--overwrite", "--checkpoint",
                  *PROCESS_FLAGS, *GIN_FLAGS],
        "serve": ["--checkpoint", "--host", "--port", "--api_key", *GIN_FLAGS],
        "vocab": ["--input", "--output", "--size", "--model_type", "--extra_ids",
                  "--max_bytes", "--user_symbol", *GIN_FLAGS],
        "data": ["--html", "--records", "--data_dir", "--file_format", "--cache_dir", "--shards",
                 "--num_workers", *GIN_FLAGS],
        "plan": ["--topology", "--price", "--json", "--html", "--search", "--rows_per_chip",
                 "--budget_minutes", "--workers", "--best", "--cache_dir", *GIN_FLAGS],
        "convert": ["--from", "--to", "--format", "--dtype", "--as_causal", "--config",
                    "--vocabulary"],
        "corpus": [*GIN_FLAGS],
        "report": ["--html", "--json"],
        "explain": ["--text", "--target", "--top", "--html", "--json", *GIN_FLAGS],
        "doctor": ["--json"],
    }  # fmt: skip


def test_library_names_are_these():
    assert sorted(t5x_lite.__all__) == [
        "Adafactor", "AdamW", "ArrayRecords", "BatchLoader", "ByteVocabulary", "CachedTokens",
        "CausalLM", "Delimited", "FromFunction", "HuggingFace", "InMemory", "JsonLines", "Lion",
        "Loss", "MeshConfig", "Mixture", "Model", "Muon", "ParallelFiles", "Parquet", "PrefixLM",
        "PythonLibrary", "SentencePieceVocabulary", "SpanCorruption", "Task", "TextFiles",
        "TextToText", "TfRecords", "Tfds", "TrainState", "TrainedVocabulary", "TransformerConfig",
        "UserError", "__version__", "abstract_state", "cosine", "eval_batches", "from_pretrained",
        "generate", "init_state", "make_eval_step", "make_mesh", "make_train_step", "open_files",
        "register", "save_pretrained", "set_up", "train_sentencepiece", "use_mesh",
    ]  # fmt: skip


@pytest.mark.parametrize("name", t5x_lite.__all__)
def test_every_library_name_is_there(name):
    assert getattr(t5x_lite, name) is not None
    assert name in dir(t5x_lite)


def test_an_unknown_library_name():
    with pytest.raises(AttributeError, match="no attribute 'Modle'"):
        _ = t5x_lite.Modle


def test_every_verb_has_its_program():
    for entry in cli.VERBS.values():
        assert callable(__import__(entry.module, fromlist=["main"]).main)


def test_the_version_is_that_of_the_package():
    assert t5x_lite.__version__ == PYPROJECT["project"]["version"]
    assert PYPROJECT["project"]["scripts"]["t5x_lite"] == "t5x_lite.cli:main"


# ----------------------------------------------------------------------------------- quick to start

CHECK_LIGHT = """
import sys, time
start = time.process_time()
{action}
heavy = {{"jax", "tensorflow", "numpy", "flax", "grain", "gin"}} & set(sys.modules)
print(time.process_time() - start, *heavy, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "action, seconds",
    [("import t5x_lite; t5x_lite.__version__, dir(t5x_lite)", 0.3),
     ("from t5x_lite import cli; assert cli.main(['--help']) == 0", 0.5)]
    + [(f"from t5x_lite import cli\ntry: cli.main(['{name}', '--help'])\nexcept SystemExit: pass",
        0.5) for name in cli.VERBS],
)  # fmt: skip
def test_importing_and_help_import_nothing_heavy(action, seconds):
    done = run(code=CHECK_LIGHT.format(action=action))
    assert done.returncode == 0, done.stderr
    took, *heavy = done.stderr.split()
    assert not heavy
    assert float(took) < seconds


@pytest.mark.parametrize("name", cli.VERBS)
def test_help_shows_the_flags_and_an_example(name, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([name, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert f"example:\n  t5x_lite {name}" in text
    assert text.endswith(cli.VERBS[name].example.split("\n")[-1] + "\n")
    assert all(flag in text for flag, _ in cli.VERBS[name].flags)


@pytest.mark.parametrize("name", cli.VERBS)
def test_examples_are_commands_that_are_understood(name):
    import shlex

    for example in cli.VERBS[name].example.split("\n"):
        command, *argv = shlex.split(example)
        assert command == "t5x_lite"
        assert cli.parse_args(argv).verb == name


def test_the_command_alone_shows_the_verbs(capsys):
    assert cli.main([]) == 2
    assert "train" in capsys.readouterr().err
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"t5x_lite {t5x_lite.__version__}\n"


# ----------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "command, message",
    [
        ("trian", "unknown verb 'trian'. Did you mean 'train'?"),
        ("xyz", "Known: train, eval, infer, serve, vocab, data, plan, convert, corpus, report,"),
        ("--gin_file=x train", "the verb comes first: t5x_lite train|"),
        ("train --dryrun", "train has no argument '--dryrun'. Did you mean '--dry_run'?"),
        ("train --gin_flie=a.gin", "Did you mean '--gin_file'?"),
        ("train --train.steps=5", "Did you mean '--gin.train.steps'?"),
        ("train --gni.train.steps=5", "Did you mean '--gin.train.steps'?"),
        ("train --MODEL_DIR=/x", "Did you mean '--gin.MODEL_DIR'?"),
        ("train runs/small.gin", "Did you mean '--gin_file=runs/small.gin'?"),
        ("train --dry", "train has no argument '--dry'."),
        ("train --prompt=x", "It is a flag of infer."),
        ("train --gin.x", "--gin.x needs a value: --gin.x=VALUE"),
        ("train --gin.x --dry_run", "--gin.x needs a value: --gin.x=VALUE"),
        ("doctor --gin_file=x", "doctor has no argument '--gin_file'. See t5x_lite doctor -h."),
        ("vocab --size=x --output=o", "argument --size: invalid int value: 'x'. See"),
        ("vocab", "required: --output"),
        ("vocab --output=o --model_type=word", "--model_type"),
    ],
)
def test_mistakes_in_the_command(command, message):
    assert message in mistake(*command.split())


def test_an_existing_output_is_refused_unless_it_may_be_overwritten(tmp_path):
    output = tmp_path / "out"
    output.write_text("dear")
    assert "exists already; give --overwrite" in mistake("infer", f"--output={output}")
    assert "exists already; give another name" in mistake("vocab", f"--output={output}")
    assert cli.parse_args(["infer", f"--output={output}", "--overwrite"]).overwrite
    assert output.read_text() == "dear"


def test_bindings_keep_their_order_and_take_any_value():
    args = cli.parse_args(
        ["train", "--gin.A=1", "--gin_bindings=B = 2", "--dry_run", "--gin.s/f.x", "-3",
         "--gin_bindings", "A=4", "--gin.D=a=b", "--gin_file=x.gin", "--gin_file", "y.gin",
         "--gin_search_paths=p,q", "--gin_search_paths=r"]
    )  # fmt: skip
    assert args.gin_bindings == ["A=1", "B = 2", "s/f.x=-3", "A=4", "D=a=b"]
    assert args.gin_file == ["x.gin", "y.gin"]
    assert args.gin_search_paths == ["p", "q", "r"]
    assert args.dry_run
    assert cli.parse_args(["train"]).gin_bindings == []


def test_exit_status_and_what_is_printed(verb, capsys):
    def fail(error):
        def main(args):
            raise error

        verb(main)
        return cli.main(["toast"]), capsys.readouterr().err

    assert fail(UserError("bread: none found.\n  In call to ...")) == (
        2,
        "error: bread: none found.\n",
    )
    assert fail(KeyboardInterrupt()) == (130, "interrupted\n")
    verb(lambda args: (_ for _ in ()).throw(UserError("bread: none found.")))
    assert cli.main(["toast", "--debug"]) == 2
    traced = capsys.readouterr().err
    assert traced.startswith("Traceback") and traced.endswith("\nerror: bread: none found.\n")
    status, text = fail(ZeroDivisionError("burnt"))
    assert status == 1 and "Traceback" in text and "burnt" in text
    verb(lambda args: 7)
    assert cli.main(["toast"]) == 7


def test_a_verb_with_a_root_gets_its_config(verb, capsys):
    import gin

    seen = []
    toast = gin.external_configurable(lambda bread, heat=1: seen.append(bread), name="cli_toast")
    verb(lambda args: toast() or 0, gin=True, root="cli_toast")
    Path("t.gin").write_text("cli_toast.bread = 'rye'")
    assert cli.main(["toast", "--gin_file=t.gin"]) == 0
    assert cli.main(["toast", "--gin_file=t.gin", "--gin.cli_toast.bread=/white"]) == 0
    assert seen == ["rye", "/white"]
    assert cli.main(["toast", "--gin_file=t.gin", "--gin.cli_toast.bred=1"]) == 2
    assert "'cli_toast' has no parameter 'bred'" in capsys.readouterr().err
    assert cli.main(["toast"]) == 2
    assert "toast needs --gin_file=FILE" in capsys.readouterr().err


def test_ctrl_c_ends_with_one_line():
    code = """
import signal, sys, time, types
from t5x_lite import cli, verbs
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs inherit "ignore"
def main(args):
    print("started", flush=True)
    time.sleep(600)
sys.modules["sleepy"] = types.SimpleNamespace(main=main)
cli.VERBS["sleep"] = verbs.Verb("sleepy", "sleep", "", gin=False)
sys.exit(cli.main(["sleep"]))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env=environment)  # fmt: skip
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (130, "interrupted\n")


def test_stdout_shows_each_line_at_once_in_a_pipe():
    """The line must arrive while the program is still running."""
    code = """
import sys, time, types
from t5x_lite import cli, verbs
sys.modules["slow"] = types.SimpleNamespace(main=lambda args: print("line") or time.sleep(600))
cli.VERBS["slow"] = verbs.Verb("slow", "be slow", "", gin=False)
cli.main(["slow"])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
                          env=environment) as process:  # fmt: skip
        assert process.stdout.readline() == "line\n"
        assert process.poll() is None  # at its end, everything would be written anyway
        process.kill()


def test_a_reader_that_goes_away_is_no_error():
    code = """
import sys, types
from t5x_lite import cli, verbs
def main(args):
    while True: print("line")
sys.modules["endless"] = types.SimpleNamespace(main=main)
cli.VERBS["endless"] = verbs.Verb("endless", "go on", "", gin=False)
sys.exit(cli.main(["endless"]))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env=environment)  # fmt: skip
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(30) == 141


# ------------------------------------------------------------------------------------------- doctor


def test_doctor_reports_this_machine(capsys):
    status = cli.main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == [] and status == 0
    assert report["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert report["versions"]["jax"] == __import__("jax").__version__
    (cpu,) = report["devices"]
    assert cpu["platform"] == "cpu" and cpu["count"] == len(__import__("jax").devices())
    assert cpu["matmul_seconds"] > 0
    assert report["processes"] == 1
    assert report["host"]["cores"] >= 1 and report["host"]["memory_bytes"] > 2**28
    text = doctor.as_text(report)
    assert "all that is needed works" in text and "cpu" in text


def absent(*names, **versions):
    """metadata.version for a machine without `names` and with these versions."""

    def version(name):
        if name in names:
            raise doctor.metadata.PackageNotFoundError(name)
        return versions.get(name.replace("-", "_"), "99.0")

    return version


def test_doctor_names_what_is_missing_or_too_old():
    versions, problems = doctor.package_versions(absent("grain", optax="0.2.7", flax="0.12.8rc1"))
    assert versions["grain"] is None and versions["optax"] == "0.2.7"
    assert len(problems) == 2
    assert "optax is 0.2.7, needed is 0.2.8 or later" in problems[0]
    assert "grain is missing" in problems[1]


def test_doctor_is_1_if_something_needed_is_broken(monkeypatch, capsys):
    monkeypatch.setitem(doctor.REQUIRED, "no-such-package-x", "1.0")
    assert cli.main(["doctor"]) == 1
    assert "problem: no-such-package-x is missing" in capsys.readouterr().out


def test_doctor_survives_a_jax_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    report = doctor.examine()
    assert any("jax doesn't start" in problem for problem in report["problems"])
    assert "problem: jax doesn't start" in doctor.as_text(report)


def test_doctor_shows_the_extra_for_each_optional_part():
    missing = doctor.missing_extras(absent("libtpu", "array-record", "jax-cuda12-plugin"))
    assert {m["extra"]: m["missing"] for m in missing} == {
        "tpu": ["libtpu"],
        "plan": ["libtpu"],
        "data": ["array-record"],
        "tfds": ["array-record"],  # for CUDA there is the plugin of another version
    }
    assert missing[0]["install"] == "pip install 't5x_lite[tpu]'"


def test_doctor_knows_the_dependencies_of_the_package():
    def names(requirements):
        return {r.split(">=")[0].split("[")[0]: r.partition(">=")[2] for r in requirements}

    assert names(PYPROJECT["project"]["dependencies"]) == {
        name: least for name, least in doctor.REQUIRED.items() if name != "jaxlib"
    }
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(extras)
    for extra in ("tfds", "data", "dev"):
        assert set(doctor.EXTRAS[extra][1]) == set(names(extras[extra])) - {"t5x_lite"}


def test_doctor_hints_at_accelerators_that_jax_does_not_see():
    def hints(platforms=("cpu",), gpus=(), files=(), version=None, **environ):
        return doctor.unseen_accelerators(
            set(platforms), environ, lambda: list(gpus),
            lambda pattern: [f for f in files if f.startswith(pattern.partition("[")[0])],
            version or absent(),
        )  # fmt: skip

    assert hints() == []
    assert hints(["gpu", "cpu"], gpus=["GPU 0"]) == []
    assert hints(["tpu"], files=["/dev/accel0"]) == []
    without = absent("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")
    (hint,) = hints(gpus=["GPU 0", "GPU 1"], version=without)
    assert "2 NVIDIA GPU(s)" in hint and "t5x_lite[cuda]" in hint
    (hint,) = hints(files=["/dev/vfio/0"], version=without)
    assert "TPU" in hint and "t5x_lite[tpu]" in hint
    (hint,) = hints(gpus=["GPU 0"], JAX_PLATFORMS="cpu")
    assert "JAX_PLATFORMS=cpu hides them" in hint
    (hint,) = hints(gpus=["GPU 0"], JAX_PLATFORMS="cuda,cpu")
    assert "driver" in hint


def test_memory_limit(tmp_path):
    limit = tmp_path / "memory.max"
    limit.write_text("1073741824\n")
    assert doctor.memory_limit(str(limit)) == 2**30
    limit.write_text("max\n")
    assert doctor.memory_limit(str(limit)) is None
    assert doctor.memory_limit(str(tmp_path / "none")) is None


# -------------------------------------------------------------------------------------------- vocab

TEXT = "the quick brown fox jumps over a lazy dog while seven wizards brew ninety potions"
WORDS = TEXT.split()
LINES = [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 12)) for i in range(200)]


def test_vocab_from_files(capsys):
    Path("a.txt").write_text("\n".join(LINES[:100]))
    with gzip.open("b.txt.gz", "wt") as file:
        file.write("\n".join(LINES[100:]))
    command = ["vocab", "--input=*.txt", "--input=b.txt.gz", "--output=v.model", "--size=320"]
    assert cli.main([*command, "--extra_ids=10"]) == 0
    made = SentencePieceVocabulary("v.model")
    assert made.size == 320 and made.num_sentinels == 10
    out = capsys.readouterr().out
    assert "2 documents" in out
    assert "size: 320 ids, 10 of them sentinels" in out
    assert f"fingerprint: {made.fingerprint}" in out
    tokens_per_byte = float(out.split("tokens per byte: ")[1].split()[0])
    assert 0.05 < tokens_per_byte < 0.6
    assert f"--gin.SentencePieceVocabulary.path={Path.cwd()}/v.model" in out.splitlines()[-1]
    assert cli.main(command) == 2
    assert "exists already" in capsys.readouterr().err


def test_vocab_of_a_sample_with_symbols(capsys):
    for i in range(10):
        Path(f"{i}.txt").write_text("\n".join(LINES))
    size = Path("0.txt").stat().st_size
    command = ["vocab", "--input=*.txt", "--output=v.model", "--size=330", "--extra_ids=10"]
    symbols = ["--user_symbol=[NLU]", "--user_symbol=<fim>"]
    assert cli.main([*command, *symbols, "--model_type=bpe", f"--max_bytes={2 * size}"]) == 0
    assert "every 5th document is used" in capsys.readouterr().out
    made = SentencePieceVocabulary("v.model")
    assert made.size == 330 and made.encode("[NLU]<fim>").tolist() == [3, 4]


def test_vocab_needs_one_kind_of_text(capsys):
    assert cli.main(["vocab", "--output=v.model"]) == 2
    assert "either --input=GLOB or --gin_file=FILE" in capsys.readouterr().err
    assert cli.main(["vocab", "--output=v.model", "--input=x", "--gin_file=y"]) == 2
    assert cli.main(["vocab", "--output=v.model", "--input=none*.txt"]) == 2
    assert cli.main(["vocab", "--output=v.model", "--input=x", "--max_bytes=0"]) == 2
    assert not Path("v.model").exists()


def test_vocab_from_the_task_of_an_unfinished_config(capsys):
    """The vocabulary, the model and all else are still missing; parts of a mixture are read."""
    Path("a.txt").write_text("\n".join(LINES))
    Path("run.gin").write_text(
        """
train.model_dir = %MODEL_DIR
MODEL_DIR = %REQUIRED
train.optimizer = @AdamW()
train.task = @Mixture()
Mixture.name = "both"
Mixture.tasks = [@lines/Task(), @library/Task()]
Task.objective = @CausalLM()
Task.vocabulary = @SentencePieceVocabulary()
lines/Task.name = "lines"
lines/Task.source = @TextFiles()
TextFiles.files = "a.txt"
library/Task.name = "library"
library/Task.source = @InMemory()
InMemory.records = [{"inputs": "the dog jumps", "targets": "over"}]
"""
    )
    command = ["vocab", "--gin_file=run.gin", "--output=v.model", "--size=320", "--extra_ids=10"]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert "size: 320 ids" in out
    assert "next: t5x_lite train --gin_file=run.gin --gin.SentencePieceVocabulary.path=" in out
    Path("run.gin").write_text("train.task = %TASK\nTASK = %REQUIRED")
    assert cli.main([*command[:2], "--output=w.model"]) == 2
    assert "not given: TASK" in capsys.readouterr().err


class Numbers:
    """A source of n records, as far as `texts` looks at it."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return {"text": str(i), "path": "ignored"}


def test_vocab_thins_out_and_preprocesses():
    drop_odd = lambda record: record if int(record["text"]) % 2 == 0 else None  # noqa: E731
    shout = lambda record: {"inputs": record["text"] + "!", "targets": "t"}  # noqa: E731
    assert list(vocab.texts([(Numbers(7), ())], 3)) == ["0", "3", "6"]
    assert list(vocab.texts([(Numbers(4), (drop_odd, shout))], 1)) == ["0!", "t", "2!", "t"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO])
def test_what_the_system_refuses_is_one_line(capsys, number):
    """A file without rights, a disk without room: its name and the system's words, no stack."""

    def fail():
        raise OSError(number, os.strerror(number), "run/lock.json")

    assert cli.status_of(fail) == 1
    told = capsys.readouterr().err
    assert told == f"error: [Errno {number}] {os.strerror(number)}: 'run/lock.json'\n"
    assert cli.status_of(fail, debug=True) == 1
    assert "Traceback" in capsys.readouterr().err
