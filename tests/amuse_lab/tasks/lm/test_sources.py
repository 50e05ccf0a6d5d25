import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amuse_lab.errors import ConfigError, DataError
from amuse_lab.tasks.lm.local import LocalText
from amuse_lab.tasks.lm.plays import plays
from amuse_lab.tasks.lm.sources import HashedSplit, HubText, Plays, Source

HALF = HashedSplit(0.5)


def write_lines(path: Path, texts: Iterable[str]) -> None:
    path.write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts))


def write_parquet(path: Path, texts: list[Any], **options: Any) -> None:
    pq.write_table(pa.table({"id": list(range(len(texts))), "text": texts}), path, **options)


def resumes_everywhere(source: Source) -> list[str]:
    """All documents, after checking that reading goes on after each of them as if never interrupted."""
    texts, positions = [], [None]
    documents = source.documents(None)
    for text in documents:
        texts.append(text)
        positions.append(json.loads(json.dumps(documents.position())))
    for number, position in enumerate(positions):
        assert list(source.documents(position)) == texts[number:]
    return texts


def test_share_for_validation_is_as_asked_for() -> None:
    for fraction in (0.0001, 0.01, 0.5):
        chosen = sum(map(HashedSplit(fraction), range(100_000)))
        assert abs(chosen - 100_000 * fraction) < 4 * (100_000 * fraction * (1 - fraction)) ** 0.5


def test_a_smaller_share_is_part_of_a_larger_one_and_seeds_differ() -> None:
    small, large, other = HashedSplit(0.01), HashedSplit(0.02), HashedSplit(0.01, seed=1)
    chosen = {number for number in range(20_000) if small(number)}
    assert all(map(large, chosen))
    assert len(chosen & {number for number in range(20_000) if other(number)}) < 10


def test_which_documents_are_for_validation_never_changes() -> None:
    # What `printf '2357 1389' | b2sum -l 64` prints ends with 2d00: little-endian, it is small.
    chosen = [number for number in range(9000) if HashedSplit(0.001)(number)]
    assert chosen == [1389, 3056, 3586, 3623, 5877, 6509, 7073, 8292]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_split_needs_something_on_both_sides(fraction: float) -> None:
    with pytest.raises(ConfigError, match=r"--validation must be in \(0, 1\), got"):
        HashedSplit(fraction)


def test_plays_are_documents_and_their_last_tenth_is_for_validation() -> None:
    source, text = Plays(), plays().decode()
    documents = list(source.documents(None))
    assert len(documents) == 39
    assert "".join(documents) == text
    train = [part for number, part in enumerate(documents) if not source.is_validation(number)]
    assert len("".join(train).encode()) == 4_460_787
    assert documents[1].startswith("As You Like It\n")
    assert documents[34].startswith("Macbeth\n")
    assert documents[36].startswith("Othello\n")
    assert list(source.documents(30)) == documents[30:]


def test_folder_of_all_kinds_is_read_in_the_order_of_paths(tmp_path: Path) -> None:
    lines = ["first", "", 'with "quotes"\nand é漢🙂', "last"]
    (tmp_path / "b").mkdir()
    write_lines(tmp_path / "b" / "lines.jsonl", lines)
    with (tmp_path / "b" / "lines.jsonl").open("a") as file:
        file.write('\n\n{"text": "no end of line"}')
    rows = [f"row {number}" for number in range(25)]
    write_parquet(tmp_path / "c.parquet", rows, row_group_size=7)
    (tmp_path / "a.txt").write_bytes("plain\r\ntext é\n".encode())
    (tmp_path / "empty.txt").touch()
    (tmp_path / "picture.png").write_bytes(b"\xff")
    texts = resumes_everywhere(LocalText.find(tmp_path, HALF))
    assert texts == ["plain\r\ntext é\n", *lines, "no end of line", *rows]


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("x" * 100 + "\n\n" + "y" * 16_282, [16_384]),
        ("x" * 100 + "\n\n" + "y" * 16_283, [102, 16_283]),
        ("x" * 100 + "\n" + "y" * 16_284, [101, 16_284]),
        ("x" * 16_383 + "\n" + "y", [16_384, 1]),
        ("é" * 10_000, [16_384, 3616]),
        ("x" + "é" * 10_000, [16_383, 3618]),
        ("xx" + "🙂" * 5_000, [16_382, 3620]),
        (("z" * 998 + "\n\n") * 40, [16_000, 16_000, 8000]),
    ],
)
def test_plain_text_is_cut_where_it_hurts_least(text: str, lengths: list[int], tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text(text, newline="")
    texts = resumes_everywhere(LocalText.find(path, HALF))
    assert "".join(texts) == text
    assert [len(piece.encode()) for piece in texts] == lengths


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"txt": "x"}', 'line 3: must be an object with valid text under "text"'),
        (b'{"text": 3}', "line 3"),
        (b'{"text": null}', "line 3"),
        (b'{"text": "\\ud800"}', "line 3"),
        (b'{"text": "x"', "line 3"),
        (b'["text"]', "line 3"),
        (b'{"text": "\xff"}', "line 3"),
        (b"[" * 200_000, "line 3"),
    ],
)
def test_wrong_line_is_named(line: bytes, text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "good"}\n')
    documents = LocalText.find(path, HALF).documents(None)
    with pytest.raises(DataError, match=f"^{path}, {re.escape(text)}"):
        list(documents)


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\n" * 5000 + b"caf\xe9\n")
    with pytest.raises(DataError, match=f"{path} must be UTF-8, but is not at byte 25003"):
        list(LocalText.find(path, HALF).documents(None))


def test_wrong_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    source = LocalText((path,), {}, HALF)
    pq.write_table(pa.table({"content": ["x"], "id": [1]}), path)
    with pytest.raises(DataError, match=f"{path} must have a column text, has content, id"):
        list(source.documents(None))
    write_parquet(path, ["x", None])
    with pytest.raises(DataError, match=f"{path}, row 2: must have text, got NoneType"):
        list(source.documents(None))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=f"cannot read {path}: "):
        list(source.documents(None))


def test_missing_pyarrow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, ["x"])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"needs the package pyarrow, .*: pip install 'amuse-optim\[data\]'"):
        list(LocalText.find(path, HALF).documents(None))


def test_nothing_to_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*absent: No such file or directory"):
        LocalText.find(tmp_path / "absent", HALF)
    (tmp_path / "picture.png").touch()
    with pytest.raises(DataError, match=r"has no file that ends with \.txt, \.md, \.jsonl, \.parquet"):
        LocalText.find(tmp_path, HALF)
    path = tmp_path / "gone.txt"
    path.touch()
    source = LocalText.find(tmp_path, HALF)
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read .*gone\.txt: No such file or directory"):
        list(source.documents(None))


def test_identity_changes_with_the_files_and_the_split(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    os.utime(path, ns=(0, 1))
    identity = LocalText.find(tmp_path, HALF).identity
    assert LocalText.find(tmp_path, HALF).identity == identity
    assert LocalText.find(tmp_path, HashedSplit(0.4)).identity != identity
    os.utime(path, ns=(0, 2))
    assert LocalText.find(tmp_path, HALF).identity != identity
    path.rename(tmp_path / "b.txt")
    os.utime(tmp_path / "b.txt", ns=(0, 1))
    assert LocalText.find(tmp_path, HALF).identity != identity


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A hub with one data set of 300 documents in three files, read by the real package `datasets`."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets
    import huggingface_hub

    texts = [f"document {number} " * (number % 7) for number in range(300)]
    files = [str(tmp_path / f"{number}.parquet") for number in range(3)]
    for number, file in enumerate(files):
        write_parquet(Path(file), texts[number * 100 : number * 100 + 100], row_group_size=30)
    state = SimpleNamespace(texts=texts, newest="a1", asked=[], calls=[], break_at=None)
    load: Callable[..., Any] = datasets.load_dataset

    def load_dataset(repository: str, **options: Any) -> Any:
        state.calls.append((repository, options))
        stream = load("parquet", data_files=files, split="train", streaming=True)
        if state.break_at is None:
            return stream

        def breaking(row: Any, number: int) -> Any:
            if number == state.break_at:
                raise ConnectionError("the line is dead\nsecond line")
            return row

        return stream.map(breaking, with_indices=True)

    class Api:
        def dataset_info(self, repository: str) -> SimpleNamespace:
            state.asked.append(repository)
            if state.newest is None:
                raise ValueError("Name or service not known")
            return SimpleNamespace(sha=state.newest)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return state


def find(previous: Any = None) -> HubText:
    return HubText.find("HuggingFaceFW/fineweb", "sample-100BT", HALF, previous)


def test_hub_is_streamed_at_one_commit(hub: SimpleNamespace) -> None:
    source = find()
    assert list(source.documents(None)) == hub.texts
    assert hub.calls == [
        (
            "HuggingFaceFW/fineweb",
            {"name": "sample-100BT", "split": "train", "streaming": True, "revision": "a1"},
        )
    ]
    hub.newest = "b2"
    again = find(json.loads(json.dumps(source.identity)))
    assert again == source
    assert find().identity != source.identity


def test_hub_goes_on_after_any_document(hub: SimpleNamespace) -> None:
    source = find()
    documents = source.documents(None)
    for number, _ in enumerate(documents, 1):
        if number in (1, 29, 30, 100, 137, 299, 300):
            position = json.loads(json.dumps(documents.position()))
            assert list(source.documents(position)) == hub.texts[number:]


def test_hub_out_of_reach_is_one_line(hub: SimpleNamespace) -> None:
    hub.break_at = 150
    documents = find().documents(None)
    message = (
        r"^cannot read HuggingFaceFW/fineweb from the Hugging Face hub: the line is dead; "
        r"run the same again to continue$"
    )
    with pytest.raises(DataError, match=message):
        list(documents)
    hub.newest = None
    with pytest.raises(DataError, match="hub: Name or service not known; run the same again to continue"):
        find()


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("huggingface_hub", "datasets"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(DataError, match=f"needs the package {package}, which is not installed: pip inst"):
            find()
