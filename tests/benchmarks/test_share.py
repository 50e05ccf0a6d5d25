"""Several processes make the runs of a benchmark, each one of them once."""

import pytest

from benchmarks import share


def test_every_run_is_made_by_one_process() -> None:
    runs = list(range(7))
    assert runs[share.read("", [])] == runs
    parts = [runs[share.read("", [str(n), "3"])] for n in range(3)]
    assert sorted(run for part in parts for run in part) == runs


@pytest.mark.parametrize("words", [["2", "2"], ["-1", "2"], ["1"], ["a"], ["0", "1", "2"]])
def test_other_words_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        share.read("", words)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err
