import json
import re
import sys
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from amuse_lab.errors import RequestError
from amuse_lab.prepare import PREPARATIONS, parse
from amuse_lab.tasks.lm import command, sources
from amuse_lab.tasks.lm.loader import open_tokens


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def lines(tmp_path: Path) -> str:
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps({"text": f"Line {number}."}) + "\n" for number in range(1000)))
    return path.name


def test_own_text_from_beginning_to_end(lines: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["mine", "--from", lines, "--tokenizer", "bytes", "--validation", "0.1", "--workers", "2"]
    parse([*arguments, "--tokens", "5000"]).run()
    printed = capsys.readouterr()
    train, validation = (open_tokens("mine", split) for split in ("train", "validation"))
    assert printed.out.splitlines() == [
        "data/mine: complete",
        f"  train: {len(train):,} tokens in {train.documents} documents, "
        f"{train.bytes / len(train):.3f} bytes a token",
        f"  validation: {len(validation)} tokens in {validation.documents} documents, "
        f"{validation.bytes / len(validation):.3f} bytes a token",
        "train on it: amuse-lab train shakespeare --task.data mine",
    ]
    assert printed.err == ""
    assert 5000 <= len(train) < 5010
    assert validation.tokenizer.name == "bytes"
    with pytest.raises(RequestError, match="data/mine was prepared with tokens 5000, not None"):
        parse(arguments).run()
    parse([*arguments, "--out", "elsewhere"]).run()
    assert len(open_tokens("./elsewhere", "train")) > len(train)


def test_plays(tmp_path: Path) -> None:
    parse(["shakespeare", "--tokenizer", "bytes", "--workers", "1"]).run()
    assert open_tokens("shakespeare", "validation").bytes == 495_643
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["shakespeare"]


class Hub(sources.HubText):
    """60,000 documents."""

    texts: ClassVar = [f"Document {number}. " * 20 for number in range(60_000)]

    def documents(self, position: int | None) -> sources.Documents:
        documents = [sources.Document(text, self.split(number)) for number, text in enumerate(self.texts)]
        return sources._InMemory(documents, position)


def test_fineweb_asks_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def find(*arguments: object) -> Hub:
        asked.append(arguments)
        return Hub("repository", "subset", "a1", sources.CountedSplit(50))

    monkeypatch.setattr(command.HubText, "find", find)
    arguments = ["fineweb", "--tokenizer", "bytes", "--workers", "1", "--validation", "50"]
    parse([*arguments, "--tokens", "8000000"]).run()
    assert asked == [("HuggingFaceFW/fineweb", "sample-100BT", sources.CountedSplit(50), None)]
    # 18 bytes and the digits of the number, twenty times, and the end.
    assert 8_000_000 <= len(open_tokens("fineweb", "train")) < 8_000_400
    number = next(number for number in range(60_000) if sources.CountedSplit(50)(number))
    first = open_tokens("fineweb", "validation").windows(100).read(np.array([0]))[0]
    assert bytes(first.tolist()) == Hub.texts[number].encode()[:101]


def test_the_validation_text_is_the_same_however_much_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published number of documents, also where far fewer would do for so many training tokens."""
    split = sources.CountedSplit(500)
    monkeypatch.setattr(command.HubText, "find", lambda *_: Hub("repository", "subset", "a1", split))
    arguments = ["fineweb", "--tokenizer", "bytes", "--workers", "1", "--validation", "500"]
    found = []
    for tokens in ("1", "100000", "3000000"):
        parse([*arguments, "--tokens", tokens, "--out", f"./{tokens}"]).run()
        train, validation = (open_tokens(f"./{tokens}", part) for part in ("train", "validation"))
        assert int(tokens) <= len(train) < int(tokens) + 420
        assert validation.documents == 500
        found.append(validation.windows(len(validation) - 1).read(np.array([0])).tolist())
    assert found[0] == found[1] == found[2]


def test_the_published_fraction_of_the_whole_data_set_is_the_default() -> None:
    job = parse(["fineweb", "--tokens", "9"])
    assert isinstance(job, command.TextJob)
    assert command.VALIDATION_DOCUMENTS == 14_700
    assert command.FineWebOptions(tokens=9).validation == 14_700


def test_progress_is_a_line_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([100.0, 100, 105, 105, 110, 110, 119, 119])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    bounded, unbounded = command._Lines(60_000), command._Lines(None)
    for documents, tokens in ((10, 10_000), (15, 15_000), (20, 20_000), (29, 29_000)):
        bounded(documents, tokens)
        unbounded(documents, tokens)
    assert capsys.readouterr().out == (
        "20 documents  20,000 of 60,000 tokens  1,000 tokens/s  0:00:40 left\n"
        "20 documents  20,000 tokens  1,000 tokens/s\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], f"prepare needs the name of a data set: {', '.join(PREPARATIONS)}, or one of yours"),
        (["--from", "x"], "prepare needs the name of a data set"),
        (["finewb", "--tokens", "3"], "unknown data set 'finewb'; did you mean 'fineweb'?"),
        (["fineweb"], "--tokens must be given; --help says more"),
        (["fineweb", "--tokens", "many"], "--tokens must be a whole number, got 'many'"),
        (["fineweb", "--tokens", "0"], "--tokens must be at least 1, got 0"),
        (
            ["fineweb", "--tokens", "9", "--validation", "0"],
            "--validation must be at least 1 document, got 0",
        ),
        (["mine", "--from", __file__, "--validation", "1"], "--validation must be in (0, 1), got 1.0"),
        (["fineweb", "--tokens", "9", "--from", "x"], "unknown option --from; --help lists the options"),
        (["shakespeare", "--tokens", "9"], "unknown option --tokens; did you mean --tokenizer?"),
        (["shakespeare", "--tokenizer", "gpt"], "unknown tokenizer 'gpt'; did you mean 'gpt2'?"),
        (["shakespeare", "--workers", "0"], "--workers must be at least 1, got 0"),
        (["shakespeare", "extra"], "unexpected argument 'extra'"),
        (["mine", "--from", "absent"], "cannot read absent: No such file or directory"),
        (
            ["a/b", "--from", __file__],
            "the name must be of letters, digits, dots and dashes, as it names a folder",
        ),
        (["..", "--from", __file__], "the name must be of letters"),
        (["mine", "--from", __file__, "--out", f"{__file__}/out"], "cannot write"),
        (["mine", "--from", ".", "--tokenizer", "bytes"], ". must hold text, but has no file that ends with"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=f"^{re.escape(message)}") as caught:
        parse(arguments).run()
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RequestError, match=r"needs the package datasets, .*'amuse-optim\[data\]'$"):
        parse(["fineweb", "--tokens", "9"]).run()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["fineweb"], ["shakespeare"], ["mine"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse([*arguments, "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert f"usage: amuse-lab prepare {arguments[0] if arguments else 'NAME'} " in printed
    assert "images" in printed or arguments[:1] != ["mine"]
    shown = PREPARATIONS if not arguments else ["--tokenizer", "--workers", "--out"]
    assert [name for name in shown if name not in printed] == []
