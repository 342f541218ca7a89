"""Pages of runs without training any: what is on them, and what a browser makes of them."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import browser
import numpy as np
import pytest

from t5x_lite import page
from t5x_lite.errors import UserError
from t5x_lite.programs import report
from t5x_lite.report import explain_page, run_page
from t5x_lite.report.runs import Run, differences, parse_config, thin

EVIL = "</script><script>alert('&<b>')</script>\x1b[31m"
VOID = {"meta", "input", "br", "circle", "path", "line"}


class Page(HTMLParser):
    """Which tags stand open at the end, what would be loaded, and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.loads = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [v for name, v in attributes if name in ("src", "href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        self.text += data


def embedded(text):
    """The data of a page, as its script reads it."""
    return json.loads(re.search(r"id='data'>(.*?)</script>", text, re.DOTALL).group(1))


def make_run(folder: Path, rate=0.5, steps=40, **more) -> Path:
    """A run's folder as `train` leaves it, its numbers made up."""
    folder.mkdir()
    lines = [{"step": 0, "eval/loss": 9.0, "eval/much/loss": 9.5, "eval/unigram_loss": 5.0}]
    for step in range(1, steps + 1):
        lines.append({
            "step": step, "loss": 8 / step**rate, "learning_rate": rate, "grad_norm": 1 / step,
            "train_seconds": 0.5 * step, "tokens_per_second": 1000.0, "seconds_per_step": 0.5,
            "drawn/much": 0.75, "drawn/little": 0.25, "seconds/step": 1.0 * step,
            "seconds/compile": 3.0, "goodput": 0.9, "padding_share": 0.1,
            "watch/gradients_norm/a": 0.1, "watch/h": {"low": 0, "high": 1, "counts": [1]},
        })  # fmt: skip
        if step % 20 == 0:
            lines.append({"step": step, "eval/loss": 4.0, "eval/much/loss": 4.5})
            lines.append({"step": step, "sample_0/input": EVIL, "sample_0/prediction": f"p{step}"})
    lines.append({"step": steps, "loss": "nan"})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "run.json").write_text(
        json.dumps({"task": EVIL, "batch_size": 8, "lengths": {"inputs": 64, "targets": 16}})
    )
    (folder / "config.gin").write_text(
        f"# Parameters\nimport x\nA.rate = {rate}\nA.names = \\\n    ('{EVIL!r}',\n     'b')\n"
    )
    (folder / "parameters.txt").write_text("name  shape\na/b   4\n1 parameters, 4 elements\n")
    (folder / "summary.json").write_text(json.dumps({"checked": {"memory": "predicted 1 GiB"}}))
    (folder / "eval.jsonl").write_text('{"step": 40, "checkpoint": "x", "loss": 3.5}\n')
    return folder


def explanation(two=False):
    """What `explain` finds, made up; and attention."""

    def token(i):
        found = {"id": i, "text": EVIL if i == 2 else f"t{i}\n", "span": i % 3, "log_prob": -i / 2,
                 "rank": i, "entropy": 1.0, "alternatives": [{"id": 0, "text": EVIL,
                                                              "log_prob": -0.1}]}  # fmt: skip
        return found | ({"other": dict(found, log_prob=-1.0)} if two else {})

    row = {"tokens": 6, "log_likelihood": -7.5, "mean_log_prob": -1.25, "perplexity": 3.5,
           "first": 1}  # fmt: skip
    result = {
        "weights": ["a", EVIL][: 1 + two],
        "inputs": [{"id": 5, "text": "x"}] * 4,
        "targets": [token(i) for i in range(6)],
        "summary": {"weights": [row] * (1 + two)},
    }
    weights = np.random.default_rng(0).dirichlet(np.ones(6), size=(2, 3, 6))
    attention = {"decoder": weights, "cross": weights[..., :4]}  # fmt: skip
    return result, attention


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """{name: file} of every kind of page."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [Run(make_run(folder / "a")), Run(make_run(folder / "b", rate=0.25))]
    texts = {"one": run_page.render(runs[:1]), "two": run_page.render(runs),
             "explain": explain_page.render(*explanation()),
             "difference": explain_page.render(*explanation(two=True))}  # fmt: skip
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text)
    return {name: folder / f"{name}.html" for name in texts}


@pytest.mark.parametrize("name", ["one", "two", "explain", "difference"])
def test_a_page_is_whole_loads_nothing_and_escapes_everything(name, pages):
    text = pages[name].read_text()
    found = Page(text)
    assert found.open == [] and found.loads == []
    assert not re.search(r"(https?:)?//[a-z]", text.replace("http://www.w3.org/2000/svg", ""))
    assert "alert(" in text and "<script>alert" not in text and "\x1b" not in found.text
    assert found.tags.count("script") == 2 and text.count("</script>") == 2
    assert "default-src 'none'" in text
    assert len(text) < 100_000


def test_the_data_of_a_page_is_that_of_the_run(pages):
    data = embedded(pages["two"].read_text())
    first, second = data["runs"]
    assert [first["name"], second["name"]] == ["a", "b"]
    assert first["tokens_per_step"] == 8 * 80
    loss = first["series"]["loss"]
    assert loss["step"] == list(range(1, 41))  # the last one, which is no number, is left out
    assert loss["value"] == [float(f"{8 / s**0.5:.6g}") for s in loss["step"]]
    assert loss["seconds"] == [0.5 * s for s in loss["step"]]
    assert first["series"]["eval/loss"]["seconds"] == [0.0, 10.0, 20.0]
    assert data["charts"][0]["title"] == "Loss" and len(data["charts"][0]["lines"]) == 4
    assert "watch/gradients_norm/a" in data["charts"][-1]["choice"]


def test_what_a_page_says(pages):
    text = Page(pages["two"].read_text()).text
    for part in ("75.00%", "predicted 1 GiB", "By task, at the last evaluation", "unigram entropy",
                 "by t5x_lite eval", "p20", "p40", "1 parameters, 4 elements"):  # fmt: skip
        assert part in text, part


def test_attention_of_a_page_is_what_was_given(pages):
    data = embedded(pages["explain"].read_text())["attention"]
    import base64

    _, attention = explanation()
    for kind, weights in attention.items():
        stored = np.frombuffer(base64.b64decode(data[kind]["weights"]), np.uint8)
        np.testing.assert_allclose((stored / 255.0) ** 2, weights.ravel(), atol=4e-3)
    assert (data["decoder"]["shift"], data["cross"]["shift"]) == (1, 0)


def test_attention_that_is_too_much_is_left_out(monkeypatch):
    monkeypatch.setattr(explain_page, "MOST", 200)
    text = explain_page.render(*explanation())
    assert "The page has room for the first layers only" in text
    assert embedded(text)["attention"]["decoder"]["layers"] == 1


def test_embedded_json_is_the_same_json():
    values = {"a": [EVIL, "<!--", "\u2028&amp;"], "b": 1.5, "c": None}
    text = page.embedded(values)
    assert json.loads(text) == values and not set("<>&") & set(text)
    with pytest.raises(ValueError):
        page.embedded([math.nan])


def test_configurations_are_read_and_compared(tmp_path):
    assert parse_config("# c\nimport m\nA = 1\n\nf.x = \\\n    {'a': 1,\n     'b': 2}\n") == {
        "A": "1", "f.x": "{'a': 1, 'b': 2}"
    }  # fmt: skip
    runs = [Run(make_run(tmp_path / name, rate)) for name, rate in (("a", 0.5), ("b", 0.25))]
    assert differences(runs) == [["A.rate", "0.5", "0.25"]]


def test_thinning_keeps_ends_and_extremes():
    points = [(i, math.sin(i)) for i in range(10_000)]
    points[4321] = (4321, 50.0)
    kept = thin(points, 500)
    assert len(kept) < 510 and kept[0] == points[0] and kept[-1] == points[-1]
    assert (4321, 50.0) in kept and kept == sorted(kept)
    assert thin(points[:400], 500) == points[:400]


def test_a_page_of_a_long_run_stays_small(tmp_path):
    run = Run(make_run(tmp_path / "long", steps=5_000))
    assert len(run_page.render([run])) < 1_000_000


def test_old_and_broken_runs_have_a_page_too(tmp_path, caplog):
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    (folder / "run.json").write_text("{broken")
    assert report.write_quietly(str(folder)) == str(folder / "report.html")
    assert embedded((folder / "report.html").read_text())["runs"][0]["series"]["loss"]["value"]
    assert report.write_quietly(str(tmp_path / "none")) is None
    assert "was not written" in caplog.text
    (folder / "report.html").unlink()
    (folder / "report.html").mkdir()
    with pytest.raises(UserError, match="can't write the page"):
        report.write([Run(folder)], folder / "report.html")


# ---------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if browser.CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with browser.Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("width, dark", [(1200, False), (420, True)])
@pytest.mark.parametrize("name", ["one", "two", "explain", "difference"])
def test_a_page_draws_without_complaint(name, width, dark, pages, chromium):
    chromium.open(pages[name], width, dark)
    assert chromium.value("document.documentElement.scrollWidth") == width  # nothing sticks out
    colour = chromium.value("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(23, 24, 26)" if dark else "rgb(255, 255, 255)")
    if name in ("one", "two"):
        drawn = "[...document.querySelectorAll('path.line')].map(p => p.getAttribute('d'))"
        paths = chromium.value(drawn)
        assert len(paths) == {"one": 6, "two": 12}[name]
        assert all(path.startswith("M") and "NaN" not in path for path in paths)
    else:
        inked = "document.querySelectorAll('#maps canvas').length"
        assert chromium.value(inked) == 6
        assert "log-probability" in chromium.value("document.getElementById('details').textContent")
    assert chromium.problems == []
    assert chromium.requests == [pages[name].resolve().as_uri()]


def test_zooming_hiding_and_other_axes(pages, chromium):
    chromium.open(pages["two"])
    line = "document.querySelector('path.line').getAttribute('d')"
    whole = chromium.value(line)
    box = chromium.value("(b => [b.x, b.y, b.width])(document.querySelector('svg')."
                         "getBoundingClientRect())")  # fmt: skip
    chromium.mouse("mousePressed", box[0] + 0.4 * box[2], box[1] + 60)
    chromium.mouse("mouseMoved", box[0] + 0.6 * box[2], box[1] + 60)
    assert "a training" in chromium.value("document.querySelector('.tip').textContent")
    chromium.mouse("mouseReleased", box[0] + 0.6 * box[2], box[1] + 60)
    zoomed = chromium.value(line)
    assert zoomed != whole
    chromium.value("document.querySelector('svg').dispatchEvent(new MouseEvent('dblclick'))")
    assert chromium.value(line) == whole
    ticks = "[...document.querySelectorAll('svg')][0].textContent"
    for axis, tick in (("tokens", "10k"), ("seconds", "20s")):
        chromium.value(f"document.querySelector('input[value={axis}]').click()")
        assert tick in chromium.value(ticks)
    chromium.value("document.querySelector('.legend button').click()")
    assert (
        chromium.value("document.querySelectorAll('svg')[0].querySelectorAll('.line').length") == 3
    )
    chromium.value("document.querySelector('.head input').click()")  # logarithmic
    select = "(s => { s.value = 'goodput'; s.onchange(); })(document.querySelector('select'))"
    chromium.value(select)
    assert chromium.problems == []


def test_choosing_tokens_and_maps(pages, chromium):
    chromium.open(pages["explain"])
    chromium.value("document.querySelectorAll('#targets .token')[2].click()")
    assert "t2" not in chromium.value("document.getElementById('details').textContent")
    assert "alert" in chromium.value("document.getElementById('details').textContent")
    lit = "[...document.querySelectorAll('.token')].filter(t => t.style.boxShadow).length"
    assert chromium.value(lit) > 0
    chromium.value("document.querySelectorAll('#maps canvas')[4].click()")
    assert (
        chromium.value("document.getElementById('which').textContent") == "decoder, layer 1, head 1"
    )
    chromium.value("(s => { s.value = 'cross'; s.onchange(); })(document.getElementById('kind'))")
    assert chromium.value("[document.getElementById('large').width]") == [4]
    assert chromium.problems == []
