"""Rows that come and go: each gets what it would get alone, and what `generate` gives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from t5x_lite.inference.decoding import generate
from t5x_lite.inference.sampling import shape_logits
from t5x_lite.inference.slots import Rows, Slots, for_slots, shape_rows
from t5x_lite.models.model import Model

WIDTH, NEW = 8, 12
PROMPTS = [[5, 9, 200], [77], [30, 31, 32, 33, 34, 35, 36, 37]]


@pytest.fixture(scope="module")
def world():
    model = Model(dataclasses.replace(tiny.LM, num_decoder_layers=1))
    params = model.init(jax.random.key(1))
    # Larger weights than at the beginning of training: else the tokens hardly depend on the text.
    params = jax.tree.map(lambda x: x * 3, params)
    return model, params


def batch(ids: list[int]) -> dict[str, np.ndarray]:
    row = np.zeros((1, WIDTH), np.int32)
    row[0, : len(ids)] = ids
    return {"prompts": row}


class Table:
    """Decodes prompts in the slots they are given, from the slices they are given on."""

    def __init__(self, model, params):
        self.model, self.params = for_slots(model, params, rows=3)
        self.slots = Slots(self.model, 3, WIDTH + 1 + NEW)

    def run(self, come: dict[int, list[tuple[int, int, dict]]]) -> dict[int, list]:
        """{slice: [(prompt, slot, settings)]} -> {prompt: [(token, log_prob)]}."""
        cache, rows = self.slots.empty(self.params, batch([1])), Rows.empty(3)
        found, who = {}, {}
        for number in range(max(come) + 4):
            for prompt, row, settings in come.get(number, []):
                for name, value in {"limit": NEW, "written": 0, **settings}.items():
                    getattr(rows, name)[row] = value
                chosen, cache = self.slots.start(
                    self.params, cache, batch(PROMPTS[prompt]), row, rows.at(row)
                )
                found[prompt] = [(int(chosen.tokens[0]), float(chosen.log_probs[0]))]
                who[row], rows.last[row], rows.written[row] = prompt, chosen.tokens[0], 1
            chosen, cache = self.slots.slice(self.params, cache, rows, 4)
            for row, prompt in who.items():
                new = zip(chosen.tokens[:, row].tolist(), chosen.log_probs[:, row].tolist(),
                          strict=True)  # fmt: skip
                found[prompt] += new
                rows.last[row], rows.written[row] = chosen.tokens[-1, row], rows.written[row] + 4
        return {prompt: _ended(tokens) for prompt, tokens in found.items()}


def _ended(tokens: list) -> list:
    ids = [token for token, _ in tokens[:NEW]]
    return tokens[: ids.index(1) + 1] if 1 in ids else tokens[:NEW]


@pytest.fixture(scope="module")
def table(world):
    return Table(*world)


WARM = {"temperature": 1.0, "top_k": 50, "top_p": 0.9}


@pytest.mark.parametrize("settings", [{}, WARM], ids=["greedy", "sampled"])
def test_a_row_does_not_depend_on_its_company(table, settings):
    settings = [settings | {"seed": 10 + i} for i in range(3)]
    alone = {}
    for i in range(3):
        alone |= table.run({0: [(i, i, settings[i])]})
    # In other slots, at other times, beside warmer rows.
    together = table.run({
        0: [(0, 2, settings[0])],
        1: [(2, 0, settings[2]), (1, 1, settings[1])],
    })  # fmt: skip
    assert together == alone
    assert len(set(map(str, alone.values()))) == 3


def test_greedy_rows_are_what_generate_gives(world, table):
    prompts = np.concatenate([batch(ids)["prompts"] for ids in PROMPTS])
    wanted = generate(*world, {}, prompts=prompts, max_new_tokens=NEW)
    found = table.run({0: [(i, i, {}) for i in range(3)]})
    for i in range(3):
        tokens = [token for token, _ in found[i]]
        assert tokens == wanted.tokens[i, 0, : len(tokens)].tolist()
        total = sum(log_prob for _, log_prob in found[i])
        assert total == pytest.approx(float(wanted.scores[i, 0]), rel=1e-5)


def test_each_of_several_eos_ids_ends_a_row(world, table):
    found = table.run({0: [(i, i, {}) for i in range(3)]})
    second = {p: ids[len(ids) // 2][0] for p, ids in found.items()}  # taken for EOS in another run
    ends = tuple({1, *second.values()})
    slots = Slots(table.model, 3, WIDTH + 1 + NEW, ends)
    model, params = world
    for prompt in range(3):
        cache, rows = slots.empty(table.params, batch([1])), Rows.empty(3)
        rows.limit[0] = NEW
        first, cache = slots.start(table.params, cache, batch(PROMPTS[prompt]), 0, rows.at(0))
        rows.last[0], rows.written[0] = first.tokens[0], 1
        rest, _ = slots.slice(table.params, cache, rows, NEW - 1)
        tokens = [int(first.tokens[0]), *rest.tokens[:, 0].tolist()]
        at = next((i for i, token in enumerate(tokens) if token in ends), NEW - 1)
        whole = generate(
            model, params, {}, prompts=np.array([PROMPTS[prompt]]), max_new_tokens=NEW, eos_id=ends
        )
        assert tokens[: at + 1] == [t for t in whole.tokens[0, 0].tolist() if t]


def test_seeds_and_settings_are_a_row_s_own(table):
    warm = table.run({0: [(0, 0, WARM | {"seed": 1}), (1, 1, WARM | {"seed": 1}), (2, 2, {})]})
    other = table.run({0: [(0, 0, WARM | {"seed": 2}), (1, 1, WARM | {"seed": 1}), (2, 2, {})]})
    assert warm[0] != other[0]
    assert warm[1] == other[1] and warm[2] == other[2]
    # The most probable token alone is left: as greedy, whatever the temperature.
    one = table.run({0: [(2, 1, {"temperature": 2.0, "top_k": 1, "seed": 3})]})
    assert one[2] == warm[2]


def test_alternatives_are_the_most_probable_tokens(table):
    rows = Rows.empty(3)
    rows.limit[:], rows.alternatives[1] = NEW, True
    cache = table.slots.empty(table.params, batch([1]))
    chosen, _ = table.slots.start(table.params, cache, batch([5]), 1, rows.at(1))
    assert chosen.top_ids.shape == (1, 5)
    assert int(chosen.top_ids[0, 0]) == int(chosen.tokens[0])
    assert float(chosen.top_log_probs[0, 0]) == pytest.approx(float(chosen.log_probs[0]), abs=1e-6)
    assert np.all(np.diff(np.asarray(chosen.top_log_probs[0])) <= 0)


@pytest.mark.parametrize("top_k", [0, 1, 5, 99])
@pytest.mark.parametrize("top_p", [1.0, 0.5, 0.05])
def test_shapes_by_row_are_those_of_a_batch(top_k, top_p):
    rng = np.random.default_rng(top_k)
    logits = jnp.asarray(np.round(rng.normal(size=(2, 40)) * 2, 1), jnp.float32)  # with ties
    for temperature in (0.3, 1.0, 1.7):
        wanted = shape_logits(logits, temperature, top_k, top_p)
        found = shape_rows(
            logits,
            np.array([temperature, 1.0], np.float32),
            np.array([top_k, 3], np.int32),
            np.array([top_p, 1.0], np.float32),
        )
        np.testing.assert_array_equal(found[0], wanted[0])
        np.testing.assert_array_equal(found[1], shape_logits(logits, 1.0, 3, 1.0)[1])
