"""The job of data.py done by seqio and T5's preprocessors, in an environment of its own:

  python3.11 -m venv SEQIO_ENV
  SEQIO_ENV/bin/pip install seqio==0.0.20 tensorflow-cpu gin-config babel
  SEQIO_ENV/bin/pip install --no-deps t5 && ...  # and what `import t5.data.preprocessors` asks for

Called by data.py: seqio_data.py FOLDER SHAPE SECONDS.
"""

import functools
import json
import os
import sys
import time

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np  # noqa: E402
import seqio  # noqa: E402
from t5.data import preprocessors  # noqa: E402

BATCH_SIZE = 64


def main(folder: str, shape: str, seconds: float) -> None:
    vocabulary = seqio.SentencePieceVocabulary(f"{folder}/vocabulary.model", extra_ids=100)
    source = seqio.TextLineDataSource({"train": f"{folder}/corpus/*.txt"})
    if shape.startswith("span"):
        lengths = {"inputs": 512, "targets": 114}
        key_map = {"inputs": None, "targets": "text"}
        make_examples = [preprocessors.span_corruption, seqio.preprocessors.append_eos_after_trim]
        converter = seqio.EncDecFeatureConverter(pack=True)
    else:
        lengths = {"targets": 2048}
        key_map = {"targets": "text"}
        make_examples = [
            seqio.preprocessors.append_eos,
            preprocessors.reduce_concat_tokens,
            preprocessors.split_tokens_to_targets_length,
        ]
        converter = seqio.LMFeatureConverter(pack=True)
    rekey = functools.partial(seqio.preprocessors.rekey, key_map=key_map)
    steps = [to_text, rekey, seqio.preprocessors.tokenize, *make_examples]
    features = {name: seqio.Feature(vocabulary, add_eos=True) for name in lengths}
    seqio.TaskRegistry.add(
        "benchmark", source=source, preprocessors=steps, output_features=features
    )
    dataset = seqio.get_dataset(
        "benchmark", lengths, dataset_split="train", shuffle=True, num_epochs=None, seed=0,
        feature_converter=converter,
    )  # fmt: skip
    batches = iter(dataset.batch(BATCH_SIZE, drop_remainder=True).as_numpy_iterator())
    next(batches)
    tokens, cpu, wall = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - wall < seconds:
        batch = next(batches)
        for name in ("encoder_input_tokens", "decoder_target_tokens"):
            tokens += int(np.count_nonzero(batch[name])) if name in batch else 0
    result = {
        "tokens": tokens,
        "cpu_seconds": time.process_time() - cpu,
        "seconds": time.perf_counter() - wall,
    }
    print(json.dumps(result))


def to_text(dataset):
    return dataset.map(lambda line: {"text": line})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
