import collections
import gc
import itertools
import logging
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.data.loader import BatchLoader, eval_batches, prefetch
from t5x_lite.data.objectives.lm import CausalLM, PrefixLM, TextToText
from t5x_lite.data.objectives.span import SpanCorruption
from t5x_lite.data.source import Source, hash64
from t5x_lite.data.sources import InMemory
from t5x_lite.data.streams import TaskChooser, shuffled
from t5x_lite.data.tasks import Mixture, Task
from t5x_lite.data.vocabulary import ByteVocabulary
from t5x_lite.errors import UserError

VOCABULARY = ByteVocabulary()
LENGTHS = {"inputs": 24, "targets": 12}
BATCH = 8


def document(i, size):
    return f"<{i}:" + "abcdefghij"[i % 10] * size + ">"


def text_source(n=40, start=0, held_out=0.0):
    """Documents of 4 to 60 bytes, one of them blank."""
    sizes = np.random.default_rng(start).integers(0, 56, n)
    documents = [document(start + i, int(size)) for i, size in enumerate(sizes)]
    return InMemory([*documents, ""], held_out=held_out)


def pair_source(n=23):
    return InMemory([{"inputs": f"q{i}", "targets": "a" * (i % 7) + str(i)} for i in range(n)])


def task(name="t", objective=SpanCorruption(), source=None, **kwargs):  # noqa: B008
    source = text_source() if source is None else source
    return Task(name, source, objective, VOCABULARY, **kwargs)


def nested_mixture():
    prefix = task("prefix", PrefixLM(), text_source(7, start=50))
    pairs = task("pairs", TextToText(), pair_source())
    return Mixture("m", [Mixture("n", [task(), pairs], [1, 1]), prefix], [2, 1])


PREFIX_LENGTHS = {"inputs": 16, "targets": 20}
CASES = {
    "span corruption": (task(), "encoder_decoder", LENGTHS),
    "language model": (task(objective=CausalLM()), "decoder_only", {"targets": 32}),
    "prefix LM": (task(objective=PrefixLM()), "decoder_only", PREFIX_LENGTHS),
    "pairs": (task(objective=TextToText(), source=pair_source()), "encoder_decoder", LENGTHS),
    "nested mixture": (nested_mixture(), "encoder_decoder", PREFIX_LENGTHS),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def make_loader(case, **kwargs):
    task, architecture, lengths = case
    defaults = dict(lengths=lengths, batch_size=BATCH, seed=3, architecture=architecture)
    return BatchLoader(task, **(defaults | kwargs))


def assert_equal(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def take(loader, n):
    return [next(loader) for _ in range(n)]


def features(batches):
    return [batch.features for batch in batches]


def joined(hosts):
    """Batches of several hosts, put together."""
    return [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*hosts, strict=True)
    ]


# ---- the order


@pytest.mark.parametrize("pack", [True, False])
def test_batches_do_not_depend_on_the_hosts(case, pack):
    whole = take(make_loader(case, pack=pack), 6)
    for hosts in (2, 4):
        share = BATCH // hosts
        parts = [
            take(make_loader(case, pack=pack, rows=range(h * share, (h + 1) * share)), 6)
            for h in range(hosts)
        ]
        assert_equal(joined([features(p) for p in parts]), features(whole))
        for k, batch in enumerate(whole):
            positions = np.concatenate([p[k].position for p in parts])
            np.testing.assert_array_equal(positions, batch.position)
    some = take(make_loader(case, pack=pack, rows=np.array([6, 1])), 6)
    assert_equal(features(some), [{n: v[[6, 1]] for n, v in b.features.items()} for b in whole])


@pytest.mark.parametrize("pack", [True, False])
def test_restore_continues_exactly(case, pack):
    whole = take(make_loader(case, pack=pack), 24)
    for k in (1, 2, 7, 19):
        loader = make_loader(case, pack=pack)
        loader.restore(whole[k - 1].position)
        np.testing.assert_array_equal(loader.position, whole[k - 1].position)
        rest = take(loader, 24 - k)
        assert_equal(features(rest), features(whole[k:]))
        for batch, other in zip(rest, whole[k:], strict=True):
            np.testing.assert_array_equal(batch.position, other.position)


def test_positions_of_four_hosts_restore_two(case):
    whole = take(make_loader(case), 9)
    saved = [take(make_loader(case, rows=range(h, h + 2)), 5)[-1].position for h in (0, 2, 4, 6)]
    saved = np.concatenate(saved)
    hosts = []
    for rows in (range(0, 4), range(4, 8)):
        loader = make_loader(case, rows=rows)
        loader.restore(saved[rows])
        hosts.append(features(take(loader, 4)))
    assert_equal(joined(hosts), features(whole[5:]))


def test_seed_task_and_step_decide(case):
    one, again = features(take(make_loader(case), 3)), features(take(make_loader(case), 3))
    assert_equal(one, again)
    other = features(take(make_loader(case, seed=4), 3))
    assert any((one[0][n] != other[0][n]).any() for n in one[0])
    assert any((one[0][n] != one[1][n]).any() for n in one[0])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.text("ab ", max_size=30), min_size=1, max_size=9).filter("".join),
    st.integers(1, 5),
    st.integers(0, 2**63),
    st.booleans(),
)
def test_any_corpus_resumes(documents, batch_size, seed, pack):
    case = (task(source=InMemory(documents)), "encoder_decoder", LENGTHS)
    settings = dict(batch_size=batch_size, seed=seed, pack=pack)
    whole = take(make_loader(case, **settings), 5)
    loader = make_loader(case, **settings, rows=[batch_size - 1])
    loader.restore(whole[1].position[-1:])
    last_rows = [{n: v[-1:] for n, v in b.features.items()} for b in whole[2:]]
    assert_equal(features(take(loader, 3)), last_rows)


class Counting(ByteVocabulary):
    encoded = 0

    def encode(self, text):
        type(self).encoded += 1
        return super().encode(text)


def test_restoring_tokenises_only_the_current_document():
    source = InMemory(["x" * 5000 + str(i) for i in range(8)])
    case = (Task("t", source, SpanCorruption(), Counting()), "encoder_decoder", LENGTHS)
    loader = make_loader(case)
    position = take(loader, 150)[-1].position  # 3,600 tokens into the first document of each row
    assert Counting.encoded == BATCH
    loader = make_loader(case)
    loader.restore(position)
    next(loader)
    assert Counting.encoded == 2 * BATCH
    far = position.copy()
    far[:, 1] = 10**12
    loader.restore(far)
    next(loader)
    assert Counting.encoded == 3 * BATCH


def test_an_interrupted_batch_is_not_skipped():
    source, fail = text_source(), []

    def preprocess(record):
        if fail:
            raise fail.pop()
        return record

    case = (task(preprocessors=[preprocess], source=source), "encoder_decoder", LENGTHS)
    whole = features(take(make_loader(case), 12))
    loader = make_loader(case)
    batches = features(take(loader, 2))
    fail.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        while len(batches) < 12:
            batches.append(next(loader).features)
    assert len(batches) < 8
    batches += features(take(loader, 12 - len(batches)))
    assert_equal(batches, whole)


# ---- epochs


@pytest.mark.parametrize("length", [1, 2, 7, 100, 1 << 14, (1 << 14) + 1])
def test_shuffled_is_a_permutation(length):
    seeds = (5,) if length > 1 << 14 else (5, 2**64 - 1)
    orders = [[shuffled(i, length, seed) for i in range(length)] for seed in seeds]
    for found in orders:
        assert sorted(found) == list(range(length))
        assert length < 7 or found != list(range(length))
    assert length < 7 or len(seeds) < 2 or orders[0] != orders[1]


@pytest.mark.parametrize("n", [3, 8, 23])
def test_every_document_once_an_epoch(n):
    pairs = task(objective=TextToText(), source=pair_source(n))
    loader = make_loader((pairs, "encoder_decoder", LENGTHS), pack=False)
    drawn = []
    for batch in take(loader, 3 * n):  # row r of batch k is draw k * BATCH + r
        drawn += map(VOCABULARY.decode, batch.features["encoder_input_tokens"])
    epochs = [drawn[i : i + n] for i in range(0, len(drawn), n)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(f"q{i}" for i in range(n))
    assert len({tuple(e) for e in epochs}) > 1


def test_no_token_is_lost_or_repeated():
    """A language model's rows are their documents end to end; undone, draws in epochs."""
    source = text_source(11)
    case = (task(objective=CausalLM(), source=source), "decoder_only", {"targets": 32})
    batches = take(make_loader(case, batch_size=3), 60)
    draws = {}  # draw -> document
    for row in range(3):
        tokens = np.concatenate([b.features["decoder_target_tokens"][row] for b in batches])
        documents = "".join(map(chr, np.where(tokens == 1, ord("\n"), tokens - 3))).split("\n")
        drawn = itertools.count(row, 3)
        for document in documents[:-1]:  # the last is cut
            draw = next(drawn)
            while order(len(source), draw) == len(source) - 1:  # the blank one
                draw = next(drawn)
            draws[draw] = document
    assert len(draws) > 4 * len(source)
    assert draws == {d: source[order(len(source), d)]["text"] for d in draws}


def order(n, draw, name="t", seed=3):
    """The documented order: epoch e is the permutation of (seed, task, e)."""
    epoch, index = divmod(draw, n)
    return shuffled(index, n, hash64(f"{seed}/{name}/{epoch}".encode()))


def test_span_corruption_keeps_the_text():
    """Undoing the corruption of a row's examples gives its documents without a gap."""
    source = text_source(9)
    loader = make_loader((task(source=source), "encoder_decoder", LENGTHS), batch_size=2)
    text = ""
    for batch in take(loader, 40):
        row = {name: value[1] for name, value in batch.features.items()}
        assert row["encoder_segment_ids"].max() == 1  # full ones: 24 and at most 12 tokens
        inputs, targets = row["encoder_input_tokens"], row["decoder_target_tokens"]
        spans = VOCABULARY.decode(targets).split("<extra_id_")[1:]
        found = VOCABULARY.decode(inputs)
        for span in spans:
            number, noise = span.split(">", 1)
            found = found.replace(f"<extra_id_{number}>", noise)
        text += found
    whole = {r["text"] for r in source}
    pieces = text.replace("><", ">\n<").split("\n")
    assert len(pieces) > 15 and set(pieces[:-1]) <= whole


def test_noise_is_new_in_every_place():
    """Of an endless run of one letter, examples differ by their noise alone."""
    noisy = task(objective=SpanCorruption(0.3), source=InMemory(["x" * 570] * 8))
    loader = make_loader((noisy, "encoder_decoder", {"inputs": 47, "targets": 30}))
    size = noisy.objective.segment_length({"inputs": 47, "targets": 30})
    assert size == 57  # so that each epoch has the same places, ten in a row
    inputs = np.stack([b.features["encoder_input_tokens"] for b in take(loader, 30)])
    found = {bytes(row) for row in inputs.reshape(-1, inputs.shape[-1])}
    assert len(found) > 0.9 * 30 * BATCH


# ---- mixtures


@settings(deadline=None)
@given(
    st.lists(st.floats(0.01, 1), min_size=1, max_size=5),
    st.integers(0, 2**32),
    st.integers(1, 40),
    st.integers(0, 10**9),
)
def test_chooser_keeps_the_shares(rates, seed, batch_size, start):
    shares = np.array(rates) / sum(rates)
    choose = TaskChooser(shares.tolist(), seed, batch_size)
    for row in {0, batch_size - 1}:
        chosen = np.array([choose(row, start + c) for c in range(300)])
        counts = (chosen[:, None] == np.arange(len(shares))).cumsum(0)
        wanted = np.arange(1, 301)[:, None] * shares
        assert np.abs(counts - wanted).max() < 4  # after any number of examples
    chosen = [choose(row, start) for row in range(batch_size)]
    counts = np.bincount(chosen, minlength=len(shares))
    assert (np.abs(counts - batch_size * shares) <= 1 + 1e-6).all()  # in any batch


def test_mixture_shares_in_batches():
    tasks = [
        task(name, TextToText(), InMemory([{"inputs": name, "targets": name}] * 3))
        for name in ("a", "b", "c")
    ]
    mixture = Mixture("m", [Mixture("n", tasks[:2], [3, 1]), tasks[2]], [1, 1])
    loader = make_loader((mixture, "encoder_decoder", LENGTHS), pack=False)
    counts = collections.Counter()
    for batch in take(loader, 50):
        counts.update(map(VOCABULARY.decode, batch.features["encoder_input_tokens"]))
    assert {k: round(v / 400, 2) for k, v in counts.items()} == {"a": 0.38, "b": 0.12, "c": 0.5}
    assert loader.position.shape == (BATCH, 7)
    assert (loader.position[:, 1::2].sum(1) == 50).all()  # each example is one draw


# ---- errors


def test_lengths_and_rows_are_checked():
    with pytest.raises(UserError, match="set targets to"):
        make_loader((task(), "encoder_decoder", {"inputs": 512, "targets": 20}))
    with pytest.raises(UserError, match="an encoder_decoder needs inputs"):
        make_loader((task(objective=CausalLM()), "encoder_decoder", {"targets": 20}))
    for rows in ([], [8], [-1, 0], range(4, 9)):
        with pytest.raises(UserError, match=r"This host's rows are .* in range\(0, 8\)"):
            make_loader(CASES["pairs"], rows=rows)
    with pytest.raises(UserError, match="batch_size is 0"):
        make_loader(CASES["pairs"], batch_size=0)


def test_empty_corpora():
    empty = task("blank", source=InMemory([]))
    with pytest.raises(UserError, match="'blank': the 'train' split of its InMemory holds no doc"):
        make_loader((empty, "encoder_decoder", LENGTHS))
    with pytest.raises(UserError, match="the 'validation' split .* raise held_out"):
        eval_batches(task(), lengths=LENGTHS, batch_size=2, architecture="encoder_decoder")
    blank = task(source=InMemory(["", "", ""], validation=[""]))
    with pytest.raises(UserError, match="an epoch of 3 documents gives no example"):
        next(make_loader((blank, "encoder_decoder", LENGTHS)))
    with pytest.raises(UserError, match="an epoch of 1 documents gives no example"):
        list(eval_batches(blank, lengths=LENGTHS, batch_size=2, architecture="encoder_decoder"))
    dropped = task(objective=TextToText(), source=pair_source(), preprocessors=[lambda r: None])
    with pytest.raises(UserError, match="an epoch of 23 documents gives no example"):
        next(make_loader((dropped, "encoder_decoder", LENGTHS)))


def test_one_document_among_many_blank_ones_is_enough():
    source = InMemory([""] * 30 + ["the only one"])
    batches = take(make_loader((task(source=source), "encoder_decoder", LENGTHS)), 3)
    assert all((b.features["decoder_loss_weights"].sum(1) > 0).all() for b in batches)


def test_restore_errors():
    loader = make_loader(CASES["span corruption"])
    with pytest.raises(UserError, match=r"shape \[4, 3\], expected \[8, 3\]"):
        loader.restore(np.zeros((4, 3), np.int64))
    with pytest.raises(UserError, match="expected integers of 0 or more"):
        loader.restore(np.full((8, 3), -1))
    with pytest.raises(UserError, match="float64"):
        loader.restore(np.zeros((8, 3)))
    position = loader.position
    position[0, 2] = 10**6
    loader.restore(position)
    with pytest.raises(UserError, match="has used 1000000 tokens of a document of"):
        next(loader)


def test_fingerprint_tells_what_batches_depend_on():
    loaders = [
        make_loader(CASES["span corruption"], **changed)
        for changed in ({}, {"seed": 4}, {"batch_size": 4}, {"pack": False})
    ]
    loaders.append(make_loader(CASES["prefix LM"]))
    assert len({loader.fingerprint for loader in loaders}) == 5
    assert make_loader(CASES["span corruption"], rows=[2]).fingerprint == loaders[0].fingerprint


def test_too_few_documents_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        make_loader((task(source=InMemory(["a", "b"])), "encoder_decoder", LENGTHS))
    assert "'t' has 2 documents for batches of 8 rows" in caplog.text


# ---- evaluation


def run_eval(task, **kwargs):
    defaults = dict(lengths=LENGTHS, batch_size=4, architecture="encoder_decoder")
    return list(eval_batches(task, **(defaults | kwargs)))


def test_eval_has_every_held_out_example_once():
    pairs = pair_source(10)
    held = InMemory(["unused"], validation=list(pairs))
    batches = run_eval(task(objective=TextToText(), source=held))
    assert [b["encoder_input_tokens"].shape for b in batches] == [(4, 24)] * 3
    assert "encoder_segment_ids" not in batches[0]
    inputs = np.concatenate([b["encoder_input_tokens"] for b in batches])
    assert list(map(VOCABULARY.decode, inputs)) == [f"q{i}" for i in range(10)] + [""] * 2
    for values in batches[-1].values():
        assert (values[2:] == 0).all()
    assert sum(b["decoder_loss_weights"].sum() for b in batches) == sum(
        len(r["targets"]) + 1 for r in pairs
    )
    hosts = [run_eval(task(objective=TextToText(), source=held), rows=[r, r + 1]) for r in (0, 2)]
    assert_equal(joined(hosts), batches)
    some = run_eval(task(objective=TextToText(), source=held), max_batches=2)
    found = [VOCABULARY.decode(row) for b in some for row in b["encoder_input_tokens"]]
    assert len(found) == 8 and found == sorted(set(found)) != [f"q{i}" for i in range(8)]
    assert_equal(run_eval(task(objective=TextToText(), source=held), max_batches=9), batches)
    assert run_eval(task(objective=TextToText(), source=held), max_batches=0) == []


def test_eval_uses_all_text_and_the_same_noise():
    source = InMemory(["unused"], validation=[r["text"] for r in text_source(12)])
    lm = task(objective=CausalLM(), source=source)
    batches = run_eval(lm, architecture="decoder_only", lengths={"targets": 32})
    tokens = np.concatenate([b["decoder_target_tokens"].ravel() for b in batches])
    expected = b"".join(r["text"].encode() + b"\n" for r in text_source(12) if r["text"])
    assert bytes(np.where(tokens == 1, ord("\n"), tokens - 3)[tokens > 0].tolist()) == expected

    corrupted = task(source=source)
    assert_equal(run_eval(corrupted), run_eval(corrupted))
    mixture = Mixture("m", [corrupted, task("u", PrefixLM(), source)], [1, 1])
    lengths = {"inputs": 24, "targets": 24}
    both = run_eval(mixture, lengths=lengths, batch_size=1)
    parts = [run_eval(t, lengths=lengths, batch_size=1) for t in mixture.tasks]
    assert_equal(both, list(itertools.chain(*parts)))


def test_nothing_held_out_is_trained_on():
    records = [{"inputs": f"q{i}", "targets": "a"} for i in range(60)]
    pairs = task(objective=TextToText(), source=InMemory(records * 2, held_out=0.2))
    held = run_eval(pairs)
    held = {VOCABULARY.decode(row) for b in held for row in b["encoder_input_tokens"]} - {""}
    loader = make_loader((pairs, "encoder_decoder", LENGTHS), pack=False)
    trained = set()
    for batch in take(loader, 60):
        trained.update(map(VOCABULARY.decode, batch.features["encoder_input_tokens"]))
    assert held and not trained & held
    assert trained | held == {f"q{i}" for i in range(60)}


# ---- prefetch


def test_prefetch_keeps_the_order_and_reads_ahead():
    made = []

    def count():
        for i in range(20):
            made.append(i)
            yield i

    items = prefetch(count(), depth=3)
    assert next(items) == 0
    assert wait_until(lambda: len(made) >= 4)
    assert len(made) <= 5  # depth, the one taken and one in the making
    assert list(items) == list(range(1, 20))
    with pytest.raises(StopIteration):
        next(items)


def wait_until(condition, seconds=5):
    done = threading.Event()
    for _ in range(seconds * 100):
        if condition():
            return True
        done.wait(0.01)
    return False


def test_prefetch_raises_where_the_item_would_come():
    def fail():
        yield 1
        yield 2
        raise UserError("broken record")

    items = prefetch(fail(), depth=5)
    assert [next(items), next(items)] == [1, 2]
    for _ in range(2):
        with pytest.raises(UserError, match="broken record"):
            next(items)
    items.close()


def test_prefetch_closes():
    closed = threading.Event()

    def endless():
        try:
            yield from itertools.count()
        finally:
            closed.set()

    with prefetch(endless()) as items:
        assert next(items) == 0
        thread = items._thread
    assert closed.is_set() and not thread.is_alive()
    assert list(items) == []
    items.close()

    # What was in the making when it closed is dropped.
    released = threading.Event()
    items = prefetch(iter(lambda: released.wait(5), None), depth=1)
    closing = threading.Thread(target=items.close)
    closing.start()
    assert wait_until(lambda: items._shared._end)
    released.set()
    closing.join()
    assert list(items) == []

    abandoned = prefetch(itertools.count())
    thread, reference = abandoned._thread, weakref.ref(abandoned)
    del abandoned
    gc.collect()
    assert reference() is None
    assert wait_until(lambda: not thread.is_alive())


def test_prefetched_batches_carry_their_own_position():
    case = CASES["span corruption"]
    whole = take(make_loader(case), 6)
    with prefetch(make_loader(case), depth=3) as batches:
        third = take(batches, 3)[-1]
    loader = make_loader(case)
    loader.restore(third.position)
    assert_equal(features(take(loader, 3)), features(whole[3:]))


# ---- what it is built of


def test_a_source_is_read_by_index_only():
    class Squares(Source):
        splits = ("train",)

        def __len__(self):
            return 10**12

        def __getitem__(self, index):
            return {"text": str(index**2)}

        def _split(self, name):
            return self

    case = (task(source=Squares()), "encoder_decoder", LENGTHS)
    whole = take(make_loader(case), 3)
    loader = make_loader(case)
    loader.restore(whole[0].position)
    assert_equal(features(take(loader, 2)), features(whole[1:]))


def test_data_imports_no_jax_and_batches_need_none():
    code = """
import sys
from t5x_lite.data import features, loader, sources, tasks, vocabulary
from t5x_lite.data.objectives.span import SpanCorruption
t = tasks.Task("t", sources.InMemory(["some text"] * 9), SpanCorruption(),
               vocabulary.ByteVocabulary())
next(loader.BatchLoader(t, lengths={"inputs": 16, "targets": 8}, batch_size=2, seed=0,
                        architecture="encoder_decoder"))
heavy = {"jax", "flax", "grain", "tensorflow", "tensorflow_datasets"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
