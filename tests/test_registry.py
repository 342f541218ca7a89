"""The table of configurables: complete, read without imports, and nothing filled behind anybody."""

import ast
import dataclasses
import inspect
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import gin
import jax
import numpy as np
import pytest
import tiny

import t5x_lite as tl
from t5x_lite import config, config_checks, implied, registry, signatures
from t5x_lite.data.chat import ChatTemplate
from t5x_lite.data.objectives.chat import Chat, LastAnswer
from t5x_lite.errors import UserError
from t5x_lite.evaluation.harness import Judge
from t5x_lite.evaluation.predictions import TextEvaluation
from t5x_lite.inference.decoding import generate
from t5x_lite.planning import compile as compiling
from t5x_lite.programs.early_stopping import EarlyStopping
from t5x_lite.programs.held_out import HeldOut
from t5x_lite.training.schedules import constant
from t5x_lite.training.step import Loss

ROOT = Path(tl.__file__).parent
NAMES = [name for names in registry.TABLE.values() for name in names.split()]


@pytest.fixture(autouse=True)
def fresh_config():
    with config.fresh():
        yield


# ---------------------------------------------------------------------------------- the table


def test_gin_registers_nothing_outside_of_the_registry():
    """gin fills every call of what it decorates, the library's own as well."""
    registers = {"configurable", "external_configurable", "register"}
    found = []
    for file in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Attribute(ast.Name("gin" | "config"), name) if name in registers:
                    found.append(f"{file.name}:{node.lineno} {name}")
                case ast.ImportFrom(module="gin" | "gin.config"):
                    found += [f"{file.name}:{node.lineno} {alias.name}" for alias in node.names
                              if alias.name in registers]  # fmt: skip
    assert [line.split(":")[0] for line in found] == ["registry.py"], found


def test_the_signatures_are_those_of_the_code():
    """What users write in gin files. After a decision: python -m t5x_lite.signatures"""
    text = signatures.FILE.read_text()
    now = signatures.as_text(signatures.current())
    changed = set(now.splitlines()) ^ set(text.splitlines())
    assert now == text, f"{sorted(changed)}; python -m t5x_lite.signatures writes the file anew"


def test_every_name_in_the_table_is_there_and_plain():
    assert len(NAMES) == len(set(NAMES)) == len(signatures.stored())
    for name in NAMES:
        target = registry._ENTRIES[f"t5x_lite.{name}"].target
        assert target.__name__ == name
        call = target.__init__ if inspect.isclass(target) else target
        assert "gin_wrapper" not in repr(getattr(call, "__code__", ""))
    for name, rules in implied.RULES.items():
        assert set(rules) <= set(signatures.stored()[name])


def test_names_are_read_without_importing_what_they_stand_for():
    code = (
        "import sys, time; from t5x_lite import config\n"
        "try: config.parse(['recipes/quickstart.gin'], [sys.argv[1]])\n"
        "except Exception as error: print(error)\n"
        "print({'jax', 'numpy', 'flax'} & set(sys.modules), time.process_time())"
    )
    for binding, told in [
        ("trian.seed=1", "unknown configurable 'trian' (binding 'trian.seed=1'). Did you mean 't"),
        ("train.sede=1", "'train' has no parameter 'sede' (binding 'train.sede=1'). Did you mean"),
        ("SED=1", "nothing in the config uses %SED"),
    ]:
        out = subprocess.run([sys.executable, "-c", code, binding], capture_output=True, text=True)
        message, modules = out.stdout.strip().split("\n")
        assert message.startswith(told), out.stdout + out.stderr
        assert modules.startswith("set() ") and float(modules.split()[1]) < 0.6


# ------------------------------------------------------------------------- what gin fills, and not


def test_gin_fills_what_a_file_names_and_python_what_python_says():
    config.parse([], ["MeshConfig.fsdp=4", "train.mesh=@MeshConfig()"])
    mesh = config.evaluate("train.mesh")
    assert type(mesh) is tl.MeshConfig and mesh.fsdp == 4
    assert tl.MeshConfig().fsdp == 1
    assert pickle.loads(pickle.dumps(mesh)) == mesh
    assert dataclasses.replace(mesh, tensor=2) == tl.MeshConfig(fsdp=4, tensor=2)
    assert config.call("MeshConfig", tensor=2) == tl.MeshConfig(fsdp=4, tensor=2)
    assert "MeshConfig.fsdp = 4" in config.operative_config()
    assert "MeshConfig.data = -1" in config.operative_config()


def test_a_function_named_without_brackets_keeps_its_values_in_another_process():
    config.parse([], [
        "Task.name='x'", "Task.source=@InMemory()", "InMemory.records=[{'text': 'a'}]",
        "Task.objective=@CausalLM()", "Task.vocabulary=@ByteVocabulary()",
        "Task.metrics=[@accuracy, @chinese/bleu]", "chinese/bleu.tokenize='zh'",
    ])  # fmt: skip
    task = config.call("Task")
    config.clear()
    accuracy, bleu = pickle.loads(pickle.dumps(task)).metrics
    assert accuracy(["a"], ["a"]) == {"accuracy": 100.0}
    assert (bleu.__name__, bleu.uses, repr(bleu)) == ("bleu", (), "bleu(tokenize='zh')")
    same = bleu(["你好吗"], ["你好吗"])
    assert same == task.metrics[1](["你好吗"], ["你好吗"]) and "zh" in str(same)


def sums_of_registry_test(index: int, largest: int = 50) -> dict[str, str]:
    return {"text": f"{index} of {largest}"}


def test_a_decorated_function_of_a_users_keeps_its_values_too(monkeypatch):
    decorated = gin.configurable(sums_of_registry_test, module="registry_test")
    monkeypatch.setitem(globals(), "sums_of_registry_test", decorated)  # as the decorator does
    lines = [
        "FromFunction.function=@sums_of_registry_test",
        "FromFunction.length=9",
        "sums_of_registry_test.largest=7",
    ]
    config.parse([], lines)
    source = config.call("FromFunction")
    config.clear()
    assert pickle.loads(pickle.dumps(source))[3]["text"] == source[3]["text"]
    assert source[3]["text"].endswith("of 7")


@tl.register
@dataclasses.dataclass(frozen=True)
class Kite:
    tail: float = 1.0


def test_a_class_of_a_users_is_registered_without_being_changed():
    config.parse([], ["Kite.tail=2.5"])
    assert Kite().tail == 1.0
    assert config.call("Kite") == Kite(2.5)
    with pytest.raises(UserError, match="'Kite' has no parameter 'tale'"):
        config.parse([], ["Kite.tale=2.5"])


OTHER = {bool: lambda v: not v, int: lambda v: v + 3, float: lambda v: v * 0.5 + 0.125,
         str: lambda v: v + "x", type(None): lambda v: 7}  # fmt: skip


def another(parameter: signatures.Parameter):
    """A value of the default's type, but not the default."""
    try:
        value = ast.literal_eval(parameter.default)
    except (ValueError, SyntaxError):
        return "other"
    return OTHER.get(type(value), lambda v: ["other"])(value)


def bind_everything() -> int:
    count = 0
    for name in NAMES:
        for key, parameter in (signatures.stored()[name] or {}).items():
            value = another(parameter) if parameter.default else "other"
            gin.bind_parameter(("", f"t5x_lite.{name}", key), value)
            count += 1
    return count


def numbers(folder: Path) -> dict[str, object]:
    """What the library makes by itself on its ways: everything that could be filled."""
    task = tiny.task()
    model = tl.Model(dataclasses.replace(tiny.LM, scale_tied_logits=False))
    params = jax.jit(model.init)(jax.random.key(0))
    texts = [record["text"] for record in tiny.documents()]
    vocabulary = tl.train_sentencepiece(texts, folder / "v.model", 310, extra_ids=9)
    tl.save_pretrained(folder / "hf", model, params, vocabulary)
    loaded, weights, found = tl.from_pretrained(folder / "hf")
    prompts = np.array([[5, 6, 7]], np.int32)
    tokens = generate(loaded, weights, {}, max_new_tokens=4, prompts=prompts).tokens
    setup = tl.set_up(tiny.LM, tiny.task(tl.CausalLM()), {"targets": 32}, 8, pack=False)
    held_out = HeldOut(setup, 1)
    run = compiling.Run(
        tiny.LM, compiling.stand_in_task(), {"targets": 32}, 8, tl.AdamW(constant(1e-3))
    )
    planned, state = compiling.set_up_state(run, jax.devices())
    shapes = [str(leaf) for leaf in jax.tree.leaves(state)]
    return {
        "config": loaded.config,
        "weights": [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(weights)],
        "vocabulary": (found.fingerprint, found.size, found.num_sentinels),
        "bytes": tl.ByteVocabulary().size,
        "tokens": np.asarray(tokens).tolist(),
        "held-out": held_out.evaluate(params),
        "exported": json.loads((folder / "hf/config.json").read_text()),
        "rules": dict(setup.rules),
        "mesh": (setup.mesh.shape, planned.mesh.shape),
        "planned": shapes,
        "task": (repr(task.objective), task.fingerprint, run.task.fingerprint),
        "templates": (Chat().template, LastAnswer().template),
        "harness": Judge(loaded, weights, found).write(["the quick"], 4),
    }


def test_what_the_library_makes_by_itself_is_filled_by_nothing(tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "bound").mkdir()
    plain = numbers(tmp_path / "plain")
    assert bind_everything() > 500
    bound = numbers(tmp_path / "bound")
    assert list(plain) == list(bound)
    for name, value in plain.items():
        assert bound[name] == value, name


# ------------------------------------------------------------------------- what goes without saying


def test_a_config_of_the_version_before_means_the_same():
    """Values that nothing binds to `train` reach it: early stopping, rules, loss, workers, ..."""
    file = ROOT.parent / "tests/golden/config_of_0_1_0.gin"
    config.parse([str(file)], root="train")
    _, given = registry.arguments(config_checks.find_configurable("train", ""), {})
    assert given["early_stopping"] == EarlyStopping("loss", 5, model_dir="./run")
    assert given["text"] == TextEvaluation(during_training=False)
    assert given["loss"] == Loss(z_loss=0.001, label_smoothing=0.1)
    assert given["rules"]["mlp"] is None and given["rules"]["embed"] == "fsdp"
    assert given["num_workers"] == 1 and given["checkpoint"].period == 1
    assert given["mesh"] == tl.MeshConfig(expert=1) and given["model"].embed_dim == 32
    assert config.evaluate("infer.rules")["mlp"] is None
    config.parse([str(file)], root="evaluate")
    _, given = registry.arguments(config_checks.find_configurable("evaluate", ""), {})
    assert given["text"] == TextEvaluation(during_training=False)
    assert given["loss"].label_smoothing == 0.1 and given["rules"]["mlp"] is None


def test_values_that_go_without_saying_give_way_to_what_is_said():
    config.parse([], ["ChatTemplate.system='<{content}>'", "ContrastiveLoss.pooling='cls'"])
    assert config.call("Chat").template == ChatTemplate(system="<{content}>")
    assert config.call("LastAnswer").template == ChatTemplate("plain", system="<{content}>")
    assert config.call("Chat", template=ChatTemplate("gemma")).template == ChatTemplate("gemma")
    assert config.evaluate("infer.pooling") == "cls"
    config.parse([], ["Chat.template=@ChatTemplate()", "ChatTemplate.name='llama3'"])
    assert config.call("Chat").template == ChatTemplate("llama3")
    config.parse([], ["train.early_stopping=None", "EarlyStopping.metric='loss'"])
    assert config.evaluate("train.early_stopping") is None


def test_contributors_are_told_where_a_name_goes():
    text = (ROOT.parent / "CONTRIBUTING.md").read_text()
    assert "t5x_lite/registry.py" in text and "python -m t5x_lite.signatures" in text
    assert not re.search("CONFIGURABLE_MODULES", text)
