"""The global batches of real processes: the same for any number of them, and after a change."""

import numpy as np
import processes
import tiny

import t5x_lite as tl
from t5x_lite.training.setup import set_up

STEPS, BATCH_SIZE = 12, 8
PROGRAM = """
def main(folder, begin, end):
    import numpy as np
    from jax.experimental import multihost_utils
    import t5x_lite as tl
    from t5x_lite.parallel.distributed import gather_rows
    import test_real_processes as test
    setup = test.setup()
    loader = test.loader(setup.rows)
    if begin:
        loader.restore(np.load(f"{folder}/position_{begin}.npy")[setup.rows])
    for step in range(begin, end):
        batch = next(loader)
        whole = multihost_utils.process_allgather(setup.place(batch.features), tiled=True)
        position = gather_rows(batch.position, setup.rows, test.BATCH_SIZE)
        if setup.rows[0] == 0:
            np.savez(f"{folder}/batch_{step}.npz", **whole)
            np.save(f"{folder}/position_{step + 1}.npy", position)
"""


def mixture():
    """Of 9 and 5 short documents: 6 batches of 8 rows go through each more than once."""
    vocabulary = tl.ByteVocabulary()

    def task(name, count, objective):
        source = tl.InMemory([{"text": d["text"][:60]} for d in tiny.documents(count)])
        return tl.Task(name=name, source=source, objective=objective, vocabulary=vocabulary)

    tasks = task("spans", 9, tl.SpanCorruption()), task("prefix", 5, tl.PrefixLM())
    return tl.Mixture("both", tasks, (0.6, 0.4))


LENGTHS = {"inputs": 48, "targets": 48}


def setup():
    return set_up(tiny.T5, mixture(), LENGTHS, BATCH_SIZE)


def loader(rows=None):
    return tl.BatchLoader(
        mixture(), lengths=LENGTHS, batch_size=BATCH_SIZE, seed=0, rows=rows,
        architecture="encoder_decoder",
    )  # fmt: skip


def test_four_processes_and_then_two_feed_the_batches_of_one(tmp_path):
    """Bit for bit; of a mixture, whose tasks both begin new epochs on either side."""
    ways = (4, 0, STEPS // 2), (2, STEPS // 2, STEPS)
    for count, begin, end in ways:
        name = tmp_path / f"from_{count}"
        processes.finish(
            name,
            processes.start(count, name, PROGRAM, folder=str(tmp_path), begin=begin, end=end),
        )
    alone = loader()
    for step in range(STEPS):
        batch = next(alone)
        with np.load(tmp_path / f"batch_{step}.npz") as found:
            assert set(found.files) == set(batch.features)
            for feature, values in batch.features.items():
                np.testing.assert_array_equal(found[feature], values)
        position = np.load(tmp_path / f"position_{step + 1}.npy")
        np.testing.assert_array_equal(position, batch.position)
    half = np.load(tmp_path / f"position_{STEPS // 2}.npy").sum(axis=0)
    assert half[1] > 9 and half[3] > 5, "documents drawn: an epoch ended before the change"
    whole = batch.position.sum(axis=0) - half
    assert whole[1] > 9 and whole[3] > 5, "and after it"
