"""Every gin file that is shipped: it parses, builds, and its training step lowers."""

import jax
import pytest

import t5x_lite as tl
from t5x_lite import config, gin_files
from t5x_lite.errors import UserError
from t5x_lite.models.model import Model
from t5x_lite.training import checkpoint_layout as layout
from t5x_lite.training.trainable import Trainable

SHIPPED = gin_files.gin_files_under(gin_files.shipped_gin_configs())
MODELS = [name for name in SHIPPED if name.startswith("models/")]
RECIPES = [name for name in SHIPPED if name.startswith("recipes/")]
FAMILIES = {"models/t5_1_0.gin", "models/t5_1_1.gin", "models/lm.gin"}
FAMILIES |= {"models/gemma2.gin", "models/gemma3.gin", "models/bert.gin", "models/xlnet.gin"}

PARAMETERS = {
    "models/t5_1_1_tiny.gin": 518_240,
    "models/t5_1_1_small.gin": 76_961_152,
    "models/t5_1_1_base.gin": 247_577_856,
    "models/t5_1_1_large.gin": 783_150_080,
    "models/t5_1_1_xl.gin": 2_849_757_184,
    "models/t5_1_1_xxl.gin": 11_135_332_352,
    "models/ul2_20b.gin": 19_591_209_984,
    # T5 1.0: as published on the Hugging Face hub (t5-small, ..., t5-11b).
    "models/t5_1_0_small.gin": 60_506_624,
    "models/t5_1_0_base.gin": 222_903_552,
    "models/t5_1_0_large.gin": 737_668_096,
    "models/t5_1_0_3b.gin": 2_851_598_336,
    "models/t5_1_0_11b.gin": 11_307_321_344,
    # As published there, too.
    "models/mt5_small.gin": 300_176_768,
    "models/mt5_base.gin": 582_401_280,
    "models/mt5_large.gin": 1_229_581_312,
    "models/mt5_xl.gin": 3_742_619_648,
    "models/mt5_xxl.gin": 12_921_057_280,
    "models/umt5_small.gin": 306_601_984,
    "models/umt5_base.gin": 592_043_520,
    "models/umt5_xl.gin": 3_768_356_864,
    "models/umt5_xxl.gin": 12_972_531_712,
    "models/byt5_small.gin": 299_637_760,
    "models/byt5_base.gin": 581_653_248,
    "models/llama2_7b.gin": 6_738_415_616,
    "models/llama3_8b.gin": 8_030_261_248,
    "models/llama3_2_1b.gin": 1_235_814_400,
    "models/mistral_7b.gin": 7_241_732_096,
    "models/qwen2_5_0_5b.gin": 494_032_768,
    "models/qwen3_0_6b.gin": 596_049_920,
    "models/gemma2_2b.gin": 2_614_341_888,
    "models/gemma2_9b.gin": 9_241_705_984,
    "models/gemma2_27b.gin": 27_227_128_320,
    "models/gemma3_270m.gin": 268_098_176,
    "models/gemma3_1b.gin": 999_885_952,
    "models/gemma3_4b.gin": 3_880_263_168,  # and of the larger ones without what sees images
    "models/gemma3_12b.gin": 11_766_034_176,
    "models/gemma3_27b.gin": 27_009_346_304,
    "models/mixtral_8x7b.gin": 46_702_792_704,
    "models/qwen3_30b_a3b.gin": 30_532_122_624,
    "models/gpt2.gin": 124_439_808,
    "models/gpt2_medium.gin": 354_823_168,
    "models/gpt2_large.gin": 774_030_080,
    "models/gpt2_xl.gin": 1_557_611_200,
    # The body as published, and the heads of pretraining.
    "models/bert_tiny.gin": 4_385_920 + 47_548,
    "models/bert_mini.gin": 11_170_560 + 97_340,
    "models/bert_small.gin": 28_763_648 + 295_228,
    "models/bert_medium.gin": 41_373_184 + 295_228,
    "models/bert_base.gin": 109_482_240 + 624_188,
    "models/bert_large.gin": 335_141_888 + 1_084_220,
    "models/xlnet_base.gin": 116_718_336 + 32_000,
    "models/xlnet_large.gin": 360_268_800 + 32_000,
    # LM: V d + d + L (4 d^2 + 3 d f + 2 d), and V d more where untied.
    "models/lm_125m.gin": 109_628_160,
    "models/lm_350m.gin": 341_230_592,
    "models/lm_1_3b.gin": 1_280_149_504,
    "models/lm_7b.gin": 6_739_464_192,
}


def model_of(name: str) -> Model:
    config.parse([name], ["MODEL_DIR='x'", "train.model=%MODEL", "train.model_dir=%MODEL_DIR"])
    return Model(config.evaluate("train.model"))


@pytest.fixture(autouse=True)
def fresh_config():
    with config.fresh():
        yield


@pytest.mark.parametrize("name", [name for name in MODELS if name not in FAMILIES])
def test_models_have_their_published_size(name):
    shapes = model_of(name).abstract_params()
    count = sum(x.size for x in jax.tree.leaves(shapes))
    if name in PARAMETERS:
        assert count == PARAMETERS[name]
    else:
        assert "tiny" in name and count < 2_000_000


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_parse_build_and_lower_on_eight_devices(name, tmp_path, capsys):
    """The vocabulary is a stand-in: its file is the user's."""
    bindings = [
        f"MODEL_DIR='{tmp_path}/run'",
        "Task.vocabulary=@ByteVocabulary()",
        "MeshConfig.data=2",
        "MeshConfig.fsdp=4",
    ]
    for macro in ("VOCABULARY_FILE", "TFDS_DATA_DIR", "TEXT", "DATA", "VALIDATION_DATA"):
        if f"%{macro}" in _all_text(name):
            bindings.append(f"{macro}='nowhere'")
    config.parse([name], bindings)
    if any("='nowhere'" in b and "VOCABULARY" not in b for b in bindings):
        with pytest.raises(UserError):  # behind all that needs no data
            config.call("train", dry_run=True)
    else:
        config.call("train", dry_run=True)
    printed = capsys.readouterr().out
    assert "token_embedder/embedding" in printed and "train.batch_size" in printed
    assert "mesh data=2 x fsdp=4" in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_begins_with_what_to_expect(name):
    header = (gin_files.shipped_gin_configs() / name).read_text().split("include")[0]
    for word in ("# Paper:", "# Command:", "# Hardware:", "# Expected:"):
        assert word in header


@pytest.mark.parametrize("name", [name for name in SHIPPED if name.startswith("adapters/")])
def test_adapters_train_less_than_two_percent_of_the_quickstarts_model(name):
    config.parse(
        ["recipes/finetune_cola.gin", name], ["DATA='x'", "VALIDATION_DATA='x'"], root="train.model"
    )
    model = Model(config.evaluate("train.model"))
    sizes = {n: x.size for n, x in layout.by_name(model.abstract_params()).items()}
    transform, trained = Trainable().transform(config.evaluate("train.optimizer"), model)
    assert 0 < sum(sizes[n] for n in trained) < 0.02 * sum(sizes.values())


def _all_text(name: str) -> str:
    text = (gin_files.shipped_gin_configs() / name).read_text()
    for line in text.splitlines():
        if line.startswith("include"):
            text += _all_text(line.split('"')[1])
    return text


def test_the_library_names_exist():
    for name in tl.__all__:
        assert getattr(tl, name) is not None
