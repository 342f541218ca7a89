"""The log in a run's folder: what was said before the folder was known is in it, too."""

import logging

from t5x_lite.programs import run_log

log = logging.getLogger("t5x_lite.somewhere")


def test_messages_from_before_the_folder_and_after_are_in_its_file(tmp_path):
    before = list(logging.getLogger("t5x_lite").handlers)
    for number in (1, 2):  # a run that is continued appends
        with run_log.recorded():
            log.info("early %d", number)
            log.debug("too much")
            run_log.write_to(str(tmp_path))
            log.warning("late %d", number)
    log.warning("of somebody else")
    lines = (tmp_path / run_log.NAME).read_text().split("\n")
    said = [line.partition("t5x_lite.somewhere: ")[2] for line in lines]
    assert said == ["early 1", "late 1", "early 2", "late 2", ""]
    assert logging.getLogger("t5x_lite").handlers == before


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with run_log.recorded():
        log.info("a dry run")
    assert list(tmp_path.iterdir()) == []
