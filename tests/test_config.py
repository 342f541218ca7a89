import dataclasses
import re
from pathlib import Path

import gin
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite import config, gin_files
from t5x_lite.errors import UserError

ROOT = Path(config.__file__).parent.parent


@gin.configurable(module="config_test")
@dataclasses.dataclass(frozen=True)
class Cake:
    flour: float
    topping: str = "none"
    layers: tuple = ()


@gin.configurable(module="config_test")
def bake(cake=None, minutes=30, folder="here"):
    return cake, minutes, folder


@gin.configurable(module="config_test")
def serve(plates=gin.REQUIRED):
    return plates


@gin.configurable(module="config_test", denylist=["secret"])
def mix(speed=1, secret=2):
    return speed, secret


@gin.configurable(module="config_test")
def anything(**options):
    return options


@pytest.fixture(autouse=True)
def empty_config(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with config.fresh():
        yield


def write(path, text):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def mistake(files=(), bindings=(), search=()) -> str:
    """The message of the UserError that these give."""
    with pytest.raises(UserError) as caught:
        config.parse(list(files), list(bindings), list(search))
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---------------------------------------------------------------------------------- finding files


def test_files_are_found_in_order_as_given_here_search_paths_shipped(tmp_path, monkeypatch):
    shipped, other, here = tmp_path / "shipped", tmp_path / "other", Path.cwd()
    monkeypatch.setattr(gin_files, "shipped_gin_configs", lambda: shipped)
    wanted = []
    for number, folder in enumerate((shipped, other, here)):
        write(folder / "models/x.gin", f"bake.minutes = {number}")
        config.parse(["models/x.gin"], [], [str(other)])
        wanted.append(bake()[1])
    assert wanted == [0, 1, 2]
    config.parse([str(other / "models/x.gin")])
    assert bake()[1] == 1


def test_includes_are_found_the_same_way_at_any_depth_and_beside_the_file(tmp_path, monkeypatch):
    shipped = tmp_path / "shipped"
    monkeypatch.setattr(gin_files, "shipped_gin_configs", lambda: shipped)
    write(shipped / "models/x.gin", "bake.minutes = 7\ninclude 'parts/y.gin'")
    write(shipped / "parts/y.gin", "bake.folder = 'y'")
    write(tmp_path / "elsewhere/run.gin", "include 'models/x.gin'\ninclude 'mine.gin'")
    write(tmp_path / "elsewhere/mine.gin", "mix.speed = 9")
    config.parse([str(tmp_path / "elsewhere/run.gin")])
    assert bake() == (None, 7, "y")
    assert mix() == (9, 2)


def test_later_files_override_earlier_ones():
    write("a.gin", "bake.minutes = 1\nbake.folder = 'a'")
    write("b.gin", "bake.minutes = 2")
    config.parse(["a.gin", "b.gin"])
    assert bake() == (None, 2, "a")


def test_a_missing_file_names_the_nearest_and_the_place_of_its_include(tmp_path):
    write("models/small.gin", "")
    write("run.gin", "\ninclude 'models/smal.gin'")
    assert "Did you mean 'models/small.gin'" in mistake(["models/smal.gin"])
    assert "Did you mean 'models/small.gin'" in mistake(["smal.gin"])
    assert "Did you mean 'models/small.gin'" in mistake(["elsewhere/again/small"])
    message = mistake(["run.gin"])
    assert "'models/smal.gin' (run.gin:2)" in message
    absolute = str(Path.cwd() / "models/smalll.gin")
    assert "Did you mean 'small.gin'?" in mistake([absolute])
    write(tmp_path / "far/away.gin", "")
    assert "Did you mean 'away.gin'?" in mistake(["awey.gin"], search=[str(tmp_path / "far")])


def test_a_file_that_includes_itself():
    write("a.gin", "include 'b.gin'")
    write("b.gin", "include 'a.gin'")
    assert "'a.gin' (b.gin:1) includes itself" in mistake(["a.gin"])


def test_the_shipped_folder_lies_beside_the_package_or_in_it():
    package = Path(config.__file__).parent
    assert gin_files.shipped_gin_configs() in (
        package / "gin_configs",
        package.parent / "gin_configs",
    )


# ----------------------------------------------------------------------------------- wrong names


@pytest.mark.parametrize(
    "text, found, hint",
    [
        ("bakk.minutes = 3", "unknown configurable 'bakk' (run.gin:2).", "Did you mean 'bake'?"),
        ("Bake.minutes = 3", "unknown configurable 'Bake' (run.gin:2).", "Did you mean 'bake'?"),
        ("bake.minuets = 3", "'bake' has no parameter 'minuets' (run.gin:2).", "'minutes'"),
        ("bake.zzz = 3", "no parameter 'zzz'", "It has: cake, minutes, folder."),
        ("bake:\n  minuets = 3", "no parameter 'minuets' (run.gin:3).", "'minutes'"),
        ("bakk:\n  minutes = 3", "'bakk' (run.gin:2).", "'bake'"),
        ("bake.cake = @Cakee()", "'Cakee' (run.gin:2).", "'Cake'"),
        ("bake.cake = [1, {'a': @x/Cakee}]", "'Cakee' (run.gin:2).", "'Cake'"),
        ("mix.secret = 3", "'mix' has no parameter 'secret'", "It has: speed."),
        ("bake.minutes = %MINUTS\nMINUTES = 3", "%MINUTES (run.gin:3)", "'MINUTS'"),
        ("minutes = 3", "nothing in the config uses %minutes", "Did you mean 'bake.minutes'?"),
        ("frist/bake.minutes = 3\nbake.cake = @first/mix", "scope 'frist' (run.gin:2)", "'first'"),
        ("import no_such_module_x", "no Python module 'no_such_module_x' (run.gin:2)", ""),
        ("from __gin__ import dynamic_registration", "isn't supported", "`import module`"),
    ],
)
def test_a_wrong_name_gets_its_place_and_the_nearest_name(text, found, hint):
    write("run.gin", f"# comment\n{text}\n")
    message = mistake(["run.gin"])
    assert found in message
    assert hint in message


def test_wrong_names_in_bindings():
    assert "(binding 'bake.minuets=3'). Did you mean 'minutes'?" in mistake([], ["bake.minuets=3"])
    write("run.gin", "MINUTES = 3\nbake.minutes = %MINUTES")
    message = mistake(["run.gin"], ["MINUTS=4"])
    assert "%MINUTS (binding 'MINUTS=4'). Did you mean 'MINUTES'?" in message


def test_an_ambiguous_name_lists_the_complete_ones():
    gin.external_configurable(lambda a=1: a, name="twin", module="config_test.one")
    gin.external_configurable(lambda a=1: a, name="twin", module="config_test.two")
    message = mistake([], ["twin.a=1"])
    assert "ambiguous: config_test.one.twin, config_test.two.twin" in message
    config.parse([], ["two.twin.a=1"])


def test_a_configurable_with_any_keyword_takes_any_parameter():
    config.parse([], ["anything.goes=3"])
    assert anything() == {"goes": 3}


# --------------------------------------------------------------------------- values never given


def test_all_that_is_not_given_is_listed_at_once():
    write(
        "run.gin",
        """
FOLDER = %gin.REQUIRED
bake.folder = %FOLDER
bake.minutes = %REQUIRED
bake.cake = @Cake()
Cake.layers = (%TOP, [%BOTTOM])
""",
    )
    message = mistake(["run.gin"])
    assert message.startswith("not given: ")
    for name in ("FOLDER (run.gin:2)", "bake.minutes (run.gin:4)", "Cake.flour (run.gin:5)",
                 "TOP (run.gin:6)", "BOTTOM (run.gin:6)"):  # fmt: skip
        assert name in message
    config.parse(
        ["run.gin"], ["FOLDER='f'", "bake.minutes=1", "Cake.flour=2.0", "Cake.layers=(1,)"]
    )
    assert bake() == (Cake(flour=2.0, layers=(1,)), 1, "f")


def test_a_value_that_a_later_required_undoes_is_pointed_at():
    write("base.gin", "FOLDER = %REQUIRED\nbake.folder = %FOLDER")
    write("run.gin", "FOLDER = 'x'\ninclude 'base.gin'")
    assert "FOLDER (base.gin:1, which overrides run.gin:1)" in mistake(["run.gin"])


def test_an_undefined_macro_names_the_nearest_defined_one():
    write("run.gin", "bake.minutes = %MINUTS\nbake.folder = %MINUTES\nMINUTES = 3")
    assert "MINUTS (run.gin:1 Did you mean 'MINUTES'?)" in mistake(["run.gin"])


def test_arguments_given_in_a_scope_count_for_references_in_it_only():
    text = "bake.cake = @big/Cake()\nbake.folder = @small/Cake()\nbig/Cake.flour = 2"
    write("run.gin", text)
    message = mistake(["run.gin"])
    assert "small/Cake.flour" in message and "big/Cake.flour" not in message
    config.parse(["run.gin"], ["small/Cake.flour=1"])
    assert bake() == (Cake(2), 30, Cake(1))


def test_what_is_overridden_is_not_needed():
    write("run.gin", "MINUTES = %gin.REQUIRED\nbake.folder = [%MINUTES]")
    config.parse(["run.gin"], ["bake.folder='x'"])
    assert bake()[2] == "x"
    assert "MINUTES" not in config.config_text()


def test_overriding_the_only_parameter_of_a_macro_overrides_the_macro():
    write("run.gin", "MINUTES = 5\nbake.minutes = %MINUTES")
    config.parse(["run.gin"], ["bake.minutes=7"])
    assert bake()[1] == 7
    write("again.gin", config.config_text())
    for bindings in (["MINUTES=9"], ["bake.minutes=9"]):
        config.parse(["again.gin"], bindings)
        assert bake()[1] == 9
        assert "MINUTES = 9" in config.config_text()


@pytest.mark.parametrize(
    "text, bindings",
    [
        ("MINUTES = 5\nbake.minutes = %MINUTES\nbake.folder = %MINUTES", ["bake.minutes=7"]),
        ("MINUTES = 5\nbake.minutes = %MINUTES", ["bake.minutes=7", "MINUTES=8"]),
        ("MINUTES = 5\nbake.minutes = %MINUTES", ["bake.minutes=@Cake()", "Cake.flour=1"]),
    ],
)
def test_a_macro_with_another_use_or_value_stays(text, bindings):
    write("run.gin", text)
    config.parse(["run.gin"], bindings)
    assert bake()[1] in (7, Cake(1))
    assert "MINUTES = 7" not in config.config_text()


def test_only_what_the_root_leads_to_is_needed():
    write(
        "run.gin",
        """
bake.cake = %CAKE
CAKE = @big/Cake()
big/Cake.flour = %FLOUR
Cake.topping = %TOPPING
small/Cake.layers = %LAYERS
FLOUR = %REQUIRED
bake.minutes = %MINUTES
serve.plates = @small/Cake()
""",
    )

    def missing(root):
        with pytest.raises(UserError) as caught:
            config.parse(["run.gin"], root=root)
        return re.findall(r"([\w./]+) \(", str(caught.value))

    assert missing("bake.cake") == ["TOPPING", "FLOUR"]
    assert missing("bake") == ["TOPPING", "FLOUR", "MINUTES"]
    assert missing("serve") == ["TOPPING", "LAYERS", "small/Cake.flour"]
    assert set(missing(None)) == {"TOPPING", "FLOUR", "MINUTES", "LAYERS", "small/Cake.flour"}
    config.parse(["run.gin"], root="mix")
    assert mix() == (1, 2)


def test_require_lists_what_a_program_lacks():
    config.parse([])
    with pytest.raises(UserError, match="not given: serve.plates; give"):
        config.require("serve")
    config.require("serve", given=["plates"])
    config.parse([], ["serve.plates=3"])
    config.require("serve")


# ------------------------------------------------------------------------------------- bindings


def test_bindings_override_files_also_under_a_longer_name():
    write("run.gin", "bake.minutes = %MINUTES\nMINUTES = 3\nbake.folder = 'file'")
    config.parse(["run.gin"], ["MINUTES=4", "config_test.bake.folder='line'"])
    assert bake() == (None, 4, "line")
    config.parse(["run.gin"], ["MINUTES=4", "MINUTES=5"])
    assert bake()[1] == 5


def test_scoped_bindings():
    config.declare_scope("by_hand")
    config.parse([], ["by_hand/bake.minutes=3"])
    assert bake()[1] == 30
    with gin.config_scope("by_hand"):
        assert bake()[1] == 3


@pytest.mark.parametrize(
    "path", ["/tmp/a b", "./runs/x", "../x", "gs://bucket/run-1", "/it's", "s3://a/%b#c"]
)
def test_paths_need_no_quotes(path):
    config.parse([], [f"bake.folder={path}"])
    assert bake()[2] == path


def test_the_home_folder_is_expanded():
    config.parse([], ["bake.folder=~/runs"])
    assert bake()[2] == str(Path.home() / "runs")


@pytest.mark.parametrize(
    "value", ["foo", "foo/bar", "small.gin", "a=b", "1.2.3", "it's", "books/*.txt", "train", "a b"]
)
def test_text_that_can_be_nothing_else_needs_no_quotes(value):
    config.parse([], [f"bake.folder={value}", f"NAME={value}", "bake.cake=%NAME"])
    assert bake() == (value, 30, value)


@pytest.mark.parametrize("value", ["[1, 2", "{'a': 1", "'foo", "@Cake(", "%"])
def test_gin_that_was_begun_is_no_text(value):
    assert f'--gin.bake.folder="{value!r}"' in mistake([], [f"bake.folder={value}"])


@pytest.mark.parametrize("value, literal", [("true", "True"), ("FALSE", "False"), ("null", "None")])
def test_a_misspelt_constant_shows_the_right_one(value, literal):
    assert mistake([], [f"bake.folder={value}"]).endswith(f"write --gin.bake.folder={literal}")


@pytest.mark.parametrize("text", ["bake.folder", "=3", "3=4", "", "bake folder=3"])
def test_a_binding_without_name_or_value(text):
    assert "expected MACRO=value or name.parameter=value" in mistake([], [text])


def test_an_empty_value():
    assert "nothing is given; write --gin.bake.folder=None" in mistake([], ["bake.folder="])


def test_several_statements_in_one_text():
    config.parse([], ["bake.minutes = 4\nbake:\n  folder = 'x'\n"])
    assert bake() == (None, 4, "x")
    assert "'minuets' (bindings:2)" in mistake([], ["bake.minutes = 4\nbake.minuets = 4"])


literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"])),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner)
    | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(value=literals)
def test_any_literal_arrives_and_survives_config_text(value):
    with config.fresh():
        config.parse([], [f"bake.folder={value!r}"])
        assert bake()[2] == value
        text = config.config_text()
        config.parse([], [text + "\n"])
        assert bake()[2] == value


# ------------------------------------------------------------------------------- bad syntax, text


@pytest.mark.parametrize(
    "text, line",
    [("bake.minutes 3", 1), ("\n\nbake.minutes = foo", 3), ("bake.minutes = [1,\n2", None),
     ("bake.minutes = $", 1), ("bake.minutes = 'x", 1), ("bake:\nminutes = 3", None)],
)  # fmt: skip
def test_bad_syntax_names_the_line(text, line):
    write("run.gin", text)
    message = mistake(["run.gin"])
    assert re.search(rf"run\.gin:{line or '[0-9]+'}: cannot read", message), message


def test_a_file_that_is_no_text(tmp_path):
    Path("run.gin").write_bytes(b"\xff\xfe\x00")
    assert "cannot read the gin file" in mistake(["run.gin"])


# -------------------------------------------------------------------------------- what comes out


def test_config_text_and_operative_config_can_be_read_back():
    write("run.gin", "MINUTES = 3\nbake.minutes = %MINUTES\nbake.cake = @Cake()\nCake.flour = 2.0")
    config.parse(["run.gin"], ["bake.folder=/tmp/x"])
    first = bake()
    for text in (config.config_text(), config.operative_config()):
        write("saved.gin", text)
        config.parse(["saved.gin"])
        assert bake() == first
    config.parse(["run.gin"])
    assert "topping" not in config.config_text() + config.operative_config()
    bake()
    assert "Cake.topping = 'none'" in config.operative_config()


def test_imports_register_configurables_of_the_current_folder(monkeypatch):
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p])
    write("my_gin_tasks_x.py", "import gin\n@gin.configurable\ndef own(a=1):\n  return a\n")
    write("run.gin", "import my_gin_tasks_x\nown.a = 2")
    config.parse(["run.gin"])
    assert __import__("my_gin_tasks_x").own() == 2
    assert "import my_gin_tasks_x" in config.config_text()


def test_evaluate_builds_one_parameter_and_not_its_neighbours():
    config.parse([], ["bake.cake=@Cake()", "Cake.flour=1", "bake.folder=@serve", "bake.minutes=%M",
                      "M=4"])  # fmt: skip
    assert config.evaluate("bake.cake") == Cake(1)
    assert config.evaluate("bake.minutes") == 4
    assert "serve" not in config.operative_config()
    with pytest.raises(UserError, match="gives no mix.speed"):
        config.evaluate("mix.speed")


def test_unused_bindings_are_those_of_the_command_line_without_effect():
    write("run.gin", "anything.x = 1\nbake.minutes = %MINUTES\nMINUTES = 2")
    lines = ["mix.speed=2", "MINUTES=3", "bake.cake=@big/Cake()", "big/Cake.flour=1"]
    config.parse(["run.gin"], lines)
    assert config.unused_bindings() == ["mix.speed", "MINUTES", "bake.cake", "big/Cake.flour"]
    bake()
    assert config.unused_bindings() == ["mix.speed"]
    mix(speed=4)  # the caller wins
    assert config.unused_bindings() == ["mix.speed"]
    mix()
    assert config.unused_bindings() == []


def test_parse_replaces_and_fresh_restores():
    config.parse([], ["bake.minutes=3"])
    with config.fresh():
        assert bake()[1] == 30
        config.parse([], ["bake.minutes=4"])
        assert bake()[1] == 4
    assert bake()[1] == 3
    config.parse([], ["mix.speed=5"])
    assert bake()[1] == 30
