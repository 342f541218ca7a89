import subprocess
import sys
from pathlib import Path

import pytest

import t5x_lite
from t5x_lite.data.open_files import open_files
from t5x_lite.data.sources import InMemory
from t5x_lite.data.trained_vocabulary import TrainedVocabulary
from t5x_lite.errors import UserError
from t5x_lite.programs.folder import check as folder_check
from t5x_lite.run_vocabulary import MADE_OF, MODEL

WORDS = ["apple", "banana", "cherry", "damson", "elder", "fig"]
TEXTS = [" ".join(WORDS[(i * k) % 6] for k in range(1, 9)) for i in range(60)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vocabularies"


def test_it_is_trained_once_and_kept_by_the_text(cache, capsys):
    source = InMemory(TEXTS, held_out=0.1)
    vocabulary = TrainedVocabulary(source, size=400)
    assert vocabulary.decode(vocabulary.encode("apple fig")) == "apple fig"
    assert vocabulary.num_sentinels == 100 and vocabulary.sentinel(0) == vocabulary.size - 1
    assert vocabulary.byte_lengths[vocabulary.encode("fig apple")].sum() == 9
    assert "training a vocabulary" in capsys.readouterr().out
    again = TrainedVocabulary(InMemory(TEXTS, held_out=0.1), size=400)
    assert again.fingerprint == vocabulary.fingerprint
    assert "training" not in capsys.readouterr().out and len(list(cache.glob("*.model"))) == 1
    other = TrainedVocabulary(InMemory(TEXTS[:30]), size=380)
    assert other.fingerprint != vocabulary.fingerprint


def test_a_small_corpus_gives_fewer_ids():
    assert TrainedVocabulary(InMemory(TEXTS), size=8000).size < 500


def test_the_folder_of_a_run_has_a_copy_that_needs_no_text(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(TEXTS))
    text, folder = str(tmp_path / "a.txt"), str(tmp_path / "run")
    first = TrainedVocabulary(open_files(text), size=390, folder=folder)
    assert not (tmp_path / "run").exists()  # on first use
    fingerprint = first.fingerprint
    assert (tmp_path / "run" / "vocabulary.model").exists()
    (tmp_path / "a.txt").unlink()
    later = TrainedVocabulary(open_files(text), size=390, folder=folder)
    assert later.fingerprint == fingerprint
    with pytest.raises(UserError, match="expected at most 370: set TrainedVocabulary.size"):
        _ = TrainedVocabulary(open_files(text), size=370, folder=folder).size
    with pytest.raises(UserError, match="No file is or matches"):
        _ = TrainedVocabulary(open_files(text), size=390).size
    with pytest.raises(UserError, match="both a path and a folder"):
        TrainedVocabulary(open_files(text), path="x", folder="y")


def test_what_no_run_has_begun_with_is_made_anew_of_other_text(tmp_path):
    for name, words in (("a.txt", TEXTS), ("b.txt", [f"zebra {text} yak" for text in TEXTS])):
        (tmp_path / name).write_text("\n\n".join(words))
    folder = tmp_path / "run"

    def made(name, size=390):
        text = open_files(str(tmp_path / name))
        return TrainedVocabulary(text, size=size, folder=str(folder))

    alone = [TrainedVocabulary(made(n).source, size=390).fingerprint for n in ("a.txt", "b.txt")]
    assert [made("a.txt").fingerprint, made("b.txt").fingerprint] == alone
    assert alone[0] != alone[1]
    assert made("b.txt", 381).size <= 381 < made("b.txt").size
    assert sorted(path.name for path in folder.iterdir()) == [MADE_OF, MODEL]
    assert not folder_check(str(folder), {})  # a run can begin here
    (folder / "run.json").write_text("{}")  # it has
    assert made("a.txt").fingerprint == alone[1]
    (folder / "run.json").unlink()
    TrainedVocabulary(made("a.txt").source, size=390, path=str(tmp_path / "own.model")).size  # noqa: B018
    (folder / MODEL).write_bytes((tmp_path / "own.model").read_bytes())  # put there by the user
    assert made("b.txt").fingerprint == alone[0]


def test_one_process_trains_and_the_others_wait(tmp_path, cache):
    (tmp_path / "a.txt").write_text("\n\n".join(TEXTS))
    code = f"""
from t5x_lite.data.open_files import open_files
from t5x_lite.data.trained_vocabulary import TrainedVocabulary
print(TrainedVocabulary(open_files({str(tmp_path / "a.txt")!r}), size=390).fingerprint)
"""
    root = Path(t5x_lite.__file__).parent.parent
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60)[0].split("\n") for process in both]
    assert sorted(len(lines) for lines in outputs) == [2, 3]  # one of them says that it trains
    assert outputs[0][-2] == outputs[1][-2] and len(list(cache.glob("*.model"))) == 1
