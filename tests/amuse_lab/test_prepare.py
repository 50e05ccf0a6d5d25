import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from amuse_lab.errors import RequestError
from amuse_lab.prepare import PREPARATIONS, parse, run
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
    run(parse([*arguments, "--tokens", "5000"]))
    printed = capsys.readouterr()
    train, validation = (open_tokens("mine", split) for split in ("train", "validation"))
    assert printed.out.splitlines() == [
        "data/mine: complete",
        f"  train: {len(train):,} tokens in {train.documents} documents, "
        f"{train.bytes / len(train):.3f} bytes a token",
        f"  validation: {len(validation)} tokens in {validation.documents} documents, "
        f"{validation.bytes / len(validation):.3f} bytes a token",
    ]
    assert printed.err == ""
    assert 5000 <= len(train) < 5010
    assert validation.tokenizer.name == "bytes"
    with pytest.raises(RequestError, match="data/mine was prepared with tokens 5000, not None"):
        run(parse(arguments))
    run(parse([*arguments, "--out", "elsewhere"]))
    assert len(open_tokens("./elsewhere", "train")) > len(train)


def test_plays(tmp_path: Path) -> None:
    run(parse(["shakespeare", "--tokenizer", "bytes", "--workers", "1"]))
    assert open_tokens("shakespeare", "validation").bytes == 495_643
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["shakespeare"]


def test_fineweb_asks_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"Document {number}. " * 20 for number in range(60_000)]
    asked = []

    class Found(sources.HubText):
        def documents(self, position: int | None) -> sources.Documents:
            return sources._InMemory(texts, position)

    def find(*arguments: object) -> Found:
        asked.append(arguments)
        return Found("repository", "subset", "a1", sources.HashedSplit(0.0001))

    monkeypatch.setattr(command.HubText, "find", find)
    run(parse(["fineweb", "--tokens", "8000000", "--tokenizer", "bytes", "--workers", "1"]))
    assert asked == [("HuggingFaceFW/fineweb", "sample-100BT", sources.HashedSplit(0.0001), None)]
    # 18 bytes and the digits of the number, twenty times, and the end.
    assert 8_000_000 <= len(open_tokens("fineweb", "train")) < 8_000_400
    number = next(number for number in range(60_000) if sources.HashedSplit(0.0001)(number))
    first = open_tokens("fineweb", "validation").windows(100).read(np.array([0]))[0]
    assert bytes(first.tolist()) == texts[number].encode()[:101]


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
        (["fineweb"], "the following arguments are required: --tokens"),
        (["fineweb", "--tokens", "many"], "--tokens: invalid int value: 'many'"),
        (["fineweb", "--tokens", "0"], "--tokens must be at least 1, got 0"),
        (["fineweb", "--tokens", "9", "--validation", "1"], "--validation must be in (0, 1), got 1.0"),
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
        (["mine", "--from", __file__, "--tokenizer", "bytes"], "none of the 1 documents is for validation"),
        (["mine", "--from", ".", "--tokenizer", "bytes"], ". must hold text, but has no file that ends with"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=f"^{re.escape(message)}") as caught:
        run(parse(arguments))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RequestError, match=r"needs the package datasets, .*'amuse-optim\[data\]'$"):
        run(parse(["fineweb", "--tokens", "9"]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["fineweb"], ["shakespeare"], ["mine"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse([*arguments, "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: amuse-lab prepare {arguments[0] if arguments else 'NAME'} ")
    assert all(name in printed for name in PREPARATIONS) or arguments
