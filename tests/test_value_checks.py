"""Wrong values of a configuration: one line each, with the place, and never a stack trace."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import gin
import pytest

import t5x_lite as tl
from t5x_lite import cli, config, gin_files, registry, signatures, t5x_names, value_checks
from t5x_lite.data.vocabulary import Vocabulary
from t5x_lite.errors import Mistakes, UserError
from t5x_lite.ranges import Count, Fraction, Range

RECIPES = sorted((gin_files.shipped_gin_configs() / "recipes").glob("*.gin"))
DOCS = Path(tl.__file__).parent.parent / "docs"


@pytest.fixture(autouse=True)
def fresh_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with config.fresh():
        yield


def mistake(*bindings: str, files: Sequence[str] = (), root: str | None = "train") -> str:
    with pytest.raises(UserError) as caught:
        config.parse([*files], [*bindings], root=root)
    return str(caught.value)


# -------------------------------------------------------------------------------- one annotation


@pytest.mark.parametrize(
    "annotation, right, wrong",
    [
        (int, [1, -3], [True, 1.0, "1", None, [1]]),
        (float, [1, 0.5, -2], [True, "1", None, float("nan")]),
        (bool, [True], [1, 0, "True", None]),
        (str, ["", "a"], [1, None, ["a"]]),
        (int | None, [1, None], ["None", 1.5]),
        (Count, [0, 5], [-1, True, 0.0]),
        (Fraction | None, [0, 0.99, None], [1, -0.1, "0.5"]),
        (Annotated[float, Range(0, open_low=True)], [0.1], [0, -1]),
        (Literal["a", 1], ["a", 1], ["b", True, 1.0]),
        (Sequence[int], [[], [1], (1, 2)], ["12", [1, "2"], 3, {1: 2}]),
        (tuple[str, ...] | None, [("a",), ["a"], None], ["a", [1]]),
        (tuple[str, int], [("a", 1)], [("a",), ("a", "b"), (1, "a")]),
        (Mapping[str, int], [{}, {"a": 1}], [{"a": "1"}, {1: 1}, [("a", 1)], "a"]),
        (str | Mapping[str, str], ["a", {"a": "b"}], [{"a": 1}, 1]),
        (Sequence[str | Sequence[str]], [["a", ["b"]]], [[1], [["b", 2]]]),
        (Callable[[int], int], [abs, lambda x: x], [1, "abs", lambda: 0, lambda x, y: 0]),
        (tl.MeshConfig, [tl.MeshConfig()], [tl.MeshConfig, 1, "x", tl.ByteVocabulary()]),
        (Vocabulary, [tl.ByteVocabulary(), tl.SentencePieceVocabulary("no.model")], [1, "x"]),
        (Any, [1, "x", None], []),
    ],
)
def test_what_fits_an_annotation(annotation, right, wrong):
    for value in right:
        assert value_checks.fits(value, annotation, value_checks.is_instance), value
    for value in wrong:
        assert not value_checks.fits(value, annotation, value_checks.is_instance), value


def test_annotations_are_the_same_from_their_text():
    """Those of the file are compared, not run; a class is a stand-in of its name."""
    for parameters in signatures.stored().values():
        for parameter in (parameters or {}).values():
            assert parameter.annotation == "Any" or value_checks.parsed(parameter.annotation) != Any
    text = "Annotated[int, Range(1, inf, False, False)] | Mapping[str, 'Task | None'] | None"
    assert value_checks.described(value_checks.parsed(text), {"Task"}) == (
        "an integer of 1 or more, a dict of text to @Task() or None or None"
    )
    assert value_checks.parsed("__import__('os')") is Any


# ---------------------------------------------------------------------------------- one line each


@pytest.mark.parametrize(
    "bindings, told",
    [
        (["train.batch_size='8'"], "expected an integer of 1 or more; write 8 without quotes"),
        (["train.batch_size=8.0"], "write 8 (binding 'train.batch_size=8.0')"),
        (["train.seed='a'"], "train.seed is 'a'; expected an integer of 0 or more"),
        (["train.model_dir=5"], "expected text; write '5' in quotes"),
        (["train.initial_checkpoint='None'"], None),  # a folder may be called so
        (["train.mesh='None'"], "expected @MeshConfig() or None; write None without quotes"),
        (["train.mesh=@MeshConfig"], "without brackets; write @MeshConfig()"),
        (["train.mesh=MeshConfig"], "is 'MeshConfig'; expected @MeshConfig() or None; write @Mesh"),
        (["train.optimizer=None"], "expected an Optimizer, such as @AdamW()"),
        (["train.lengths={'inputs': 0}"], "expected a dict of text to"),
        (["train.pack=1"], "train.pack is 1; expected True or False"),
        (["AdamW.b1=1.5"], "AdamW.b1 is 1.5; expected a number in [0, 1)"),
        (["open_files.held_out=2"], "open_files.held_out is 2; expected a number in [0, 1)"),
        (["SIZE='x'", "TransformerConfig.embed_dim=%SIZE"], "SIZE (TransformerConfig.embed_dim)"),
        (["A=%B", "B=%A", "train.seed=%A"], "%A (binding 'A=%B') needs %B (binding 'B=%A') needs"),
        (["CachedTokens.source=@CachedTokens()"], "CachedTokens.source (binding"),
    ],
)
def test_a_wrong_value_is_one_line(bindings, told):
    if told is None:
        config.parse([], bindings)
        return
    message = mistake(*bindings, root=None if "Cached" in told else "train.seed")
    assert told in message and "\n" not in message


def test_what_a_call_returns_is_checked_too():
    config.parse([], ["train.mesh=@ByteVocabulary()", "AdamW.schedule=@accuracy"])
    for make in (lambda: config.evaluate("train.mesh"), lambda: config.call("AdamW")):
        with pytest.raises(UserError, match=r"expected .*\(binding '"):
            make()


def test_what_a_class_says_of_its_arguments_has_the_place():
    Path("run.gin").write_text("\n\nMeshConfig.fsdp_split = (2, 2)\nMeshConfig.fsdp = 3\n")
    config.parse(["run.gin"])
    with pytest.raises(UserError, match=r"product is fsdp; .*run.gin:3.*run.gin:4"):
        config.call("MeshConfig")


def test_all_mistakes_are_told_at_once():
    Path("run.gin").write_text(
        "train.sede = 1\nimport no_such_module\ninclude 'no_such.gin'\ntrian.seed = 2\n"
    )
    message = mistake("train.seed", "NAME=1", files=["run.gin"])
    assert message.startswith("5 mistakes in the configuration:\n")
    for place in ("run.gin:1", "run.gin:2", "run.gin:3", "run.gin:4", "binding 'train.seed'"):
        assert place in message
    message = mistake("train.seed='x'", "train.pack=2", "AdamW.b1='y'", root="train.seed")
    assert message.count("; expected ") == 3


def test_all_mistakes_reach_the_console(capsys):
    lines = ["--gin.train.seed='x'", "--gin.train.pack=2"]
    assert cli.main(["data", "recipes/quickstart.gin", *lines]) == 2
    error = capsys.readouterr().err
    assert "2 mistakes" in error and "(train.seed) is 'x'" in error and "(train.pack) is 2" in error


def test_a_file_may_begin_with_a_byte_order_mark():
    Path("run.gin").write_bytes(b"\xef\xbb\xbftrain.seed = 3\n")
    config.parse(["run.gin"], root="train.seed")
    assert config.evaluate("train.seed") == 3


MACROS = ("TEXT", "DATA", "VALIDATION_DATA", "TFDS_DATA_DIR", "VOCABULARY_FILE")
WRONG = ["-8", "'x'", "3.7", "None", "True", "[1, 'a']", "{'a': 1}", "@CausalLM", "@CausalLM()",
         "@train_sentencepiece", "@MeshConfig()"]  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES[::4], ids=lambda path: path.stem)
def test_no_wrong_value_of_a_recipe_ends_in_a_stack_trace(recipe):
    """Each parameter of all that the recipe names gets values of other types."""
    name, told = f"recipes/{recipe.name}", 0
    given = ["MODEL_DIR='none'", *(f"{m}='nowhere'" for m in MACROS)]
    while True:  # without those that it doesn't have
        try:
            config.parse([name], given, root="train")
            break
        except UserError as error:
            unused = set(re.findall(r"nothing in the config uses %(\w+)", str(error)))
            assert unused, error
            given = [line for line in given if line.partition("=")[0] not in unused]
    owners = sorted({selector.split(".")[1] for _, selector in gin.config._CONFIG
                     if selector.startswith("t5x_lite.")})  # fmt: skip
    for owner in owners:
        for parameter in signatures.stored()[owner] or ():
            for value in WRONG:
                key = f"t5x_lite.{owner}.{parameter}"
                try:
                    config.parse([name], [*given, f"{key}={value}"], root="train")
                    if owner not in registry.HIDDEN:
                        config.call(f"t5x_lite.{owner}")
                except (UserError, FileNotFoundError):
                    told += 1
    assert told > 300


# ------------------------------------------------------------------------------------- from T5X


def test_the_names_of_t5x_are_answered_by_ours():
    Path("theirs.gin").write_text(
        "import seqio\ninclude 't5x/examples/t5/t5_1_1/large.gin'\nTRAIN_STEPS = 3\n"
        "utils.SaveCheckpointConfig.keep = 2\ntrain/utils.DatasetConfig.pack = True\n"
    )
    message = mistake(files=["theirs.gin"])
    for line, ours in [
        ("no Python module 'seqio' (theirs.gin:1)", "nothing: all names are known"),
        ("'t5x/examples/t5/t5_1_1/large.gin' (theirs.gin:2)", "models/t5_1_1_base.gin"),
        ("%TRAIN_STEPS (theirs.gin:3)", "TOTAL_STEPS"),
        ("'utils.SaveCheckpointConfig' (theirs.gin:4)", "CheckpointConfig.period, .keep_latest"),
        ("'utils.DatasetConfig' (theirs.gin:5)", "PACK"),
    ]:
        [found] = [text for text in message.split("\n") if line in text]
        assert ours in found.partition("In T5X's place:")[2]
    assert t5x_names.hint("train.seed") == t5x_names.hint("recipes/x.gin") == ""


def test_the_page_has_the_same_table():
    assert t5x_names.as_markdown() in (DOCS / "from_t5x.md").read_text()


def test_one_mistake_is_no_list():
    assert not isinstance(_caught("train.sede=1"), Mistakes)
    assert isinstance(_caught("train.sede=1", "train.paks=1"), Mistakes)


def _caught(*bindings: str) -> UserError:
    with pytest.raises(UserError) as caught:
        config.parse([], bindings)
    return caught.value
