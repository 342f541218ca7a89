"""All that decides what a corpus becomes, as one object with a fingerprint."""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path

from t5x_lite.corpus.duplicates import Duplicates
from t5x_lite.corpus.mixing import Mix
from t5x_lite.corpus.readers import Reader
from t5x_lite.corpus.steps import Step
from t5x_lite.corpus.tokenizer import Tokenizer
from t5x_lite.errors import UserError
from t5x_lite.ranges import Fraction, Positive


@dataclasses.dataclass(frozen=True)
class Corpus:
    """From folders of raw documents to a TFDS dataset.

    Args:
      inputs: a folder or file, or {source: folder or file}.
      output: TFDS's data_dir: the dataset appears in output/name/version.
      name: of the dataset: lower-case letters, digits and _.
      steps: what is done with each document, in this order.
      duplicates: what counts as one; None: nothing does.
      mix: how much of each source or language; None: all.
      tokenizer: train a vocabulary on the result, into its folder, with a report; None: don't.
      held_out: share of documents in the split "validation", by a hash of the text, so that a text
        is always in the same split.
      shard_bytes: of text, in a file of the result, about.
      unit_bytes: of input files that are cleaned together; a unit is what a restart redoes.
      partitions: in how many parts duplicates are compared; None: one for 16 units.
      max_seconds: of processor time, that one document may take; then it is counted and left out.
        None: no limit, and no processes of their own for reading.
      max_megabytes: of memory, likewise; None: no limit.
      keep_dropped: write what each step dropped, too, into the dataset's folder "dropped", as JSON
        lines with the reason.
      workers: processes on this machine; None: one a core. Not for runners that are given.
      beam_options: of Apache Beam, "--runner=FlinkRunner" among them; without a runner it runs in
        processes of this machine.
    """

    inputs: str | Mapping[str, str]
    output: str
    name: str = "corpus"
    version: str = "1.0.0"
    description: str = ""
    reader: Reader = Reader()
    steps: tuple[Step, ...] = ()
    duplicates: Duplicates | None = Duplicates()
    mix: Mix | None = None
    tokenizer: Tokenizer | None = None
    held_out: Fraction = 0.01
    shard_bytes: Positive = 256_000_000
    unit_bytes: Positive = 64_000_000
    partitions: Positive | None = None
    max_seconds: int | None = 60
    max_megabytes: int | None = 4000
    keep_dropped: bool = False
    workers: Positive | None = None
    beam_options: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "steps", tuple(self.steps))
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise UserError(f"Corpus.name is {self.name!r}; TFDS wants lower_case_letters_digits.")
        if not re.fullmatch(r"\d+\.\d+\.\d+", self.version):
            raise UserError(f"Corpus.version is {self.version!r}; expected one such as '1.0.0'.")
        if self.partitions is not None and self.partitions < 1:
            raise UserError(f"Corpus.partitions is {self.partitions}; use 1 or more, or None.")
        if not 0 <= self.held_out < 1:
            raise UserError(f"Corpus.held_out is {self.held_out}; expected a share in [0, 1).")
        for path in (*self.sources.values(), self.output):
            if "://" in path:
                raise UserError(f"{path}: give a folder; mount a bucket to work on it.")
        if self.max_seconds is not None and self.max_seconds < 1:
            raise UserError(f"Corpus.max_seconds is {self.max_seconds}; use 1 or more, or None.")
        for path in self.sources.values():
            if not os.path.exists(path):
                raise UserError(f"Corpus.inputs: {path} isn't there; give a folder or a file.")
            self._check_apart(path)
        self._check_place()
        for step in self.steps:
            if not isinstance(step, Step):
                raise UserError(f"Corpus.steps has {step!r}, expected steps such as @Repair().")
            step(_probe())  # lists that can't be read are mistakes before anything has run

    def _check_apart(self, source: str) -> None:
        target, folder = os.path.realpath(self.target), os.path.realpath(source)
        if os.path.commonpath([target, folder]) == folder:
            raise UserError(
                f"Corpus.output {self.output}: the dataset's folder {target} is inside of the "
                f"input {source}: the next run would read its dataset and data card as documents. "
                "Give a folder outside of the input, or another Corpus.name."
            )

    def _check_place(self) -> None:
        """That the dataset can appear at its place at the end, which may be hours from now."""
        there = next(path for path in (self.target, *self.target.parents) if path.exists())
        if not there.is_dir():
            raise UserError(f"Corpus.output {self.output}: {there} is a file; give a folder.")
        strange = there == self.target and any(there.iterdir())
        if strange and not (there / "dataset_info.json").exists():
            raise UserError(
                f"Corpus.output {self.output}: {there} holds something that is no dataset; move it "
                "away, or give another Corpus.output, Corpus.name or Corpus.version."
            )

    @property
    def sources(self) -> dict[str, str]:
        """{source: folder or file}, absolute."""
        given = self.inputs
        if not isinstance(given, Mapping):
            given = {Path(given).expanduser().absolute().name: given}
        return {s: os.path.abspath(os.path.expanduser(p)) for s, p in given.items()}

    @property
    def target(self) -> Path:
        """The folder of the finished dataset."""
        return Path(self.output).expanduser().absolute() / self.name / self.version

    @property
    def work(self) -> Path:
        """The folder of what is not finished: beside the target, on its disk."""
        return self.target.with_name(f".{self.version}.work")

    @property
    def compares_documents(self) -> bool:
        return self.duplicates is not None and (self.duplicates.exact or self.duplicates.near)

    @property
    def scores(self) -> list[str]:
        return sorted({name for step in self.steps for name in step.SCORES})

    def describe(self) -> dict:
        """What the result depends on; how it is computed (workers, runner) is left out."""
        left_out = ("output", "workers", "beam_options", "partitions", "inputs", "steps")
        fields = {
            f.name: repr(getattr(self, f.name))
            for f in dataclasses.fields(self)
            if f.name not in left_out
        }
        return fields | {"inputs": repr(self.sources), "steps": [repr(s) for s in self.steps]}


def _probe() -> dict:
    return {"text": "text", "id": "", "source": "", "url": "", "language": "", "license": "",
            "scores": {}}  # fmt: skip
