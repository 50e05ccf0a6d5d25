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
from amuse_lab.tasks.lm.shakespeare import plays
from amuse_lab.tasks.lm.sources import CountedSplit, HubText, Source
from amuse_lab.tasks.lm.sources import plays as plays_source
from amuse_lab.tasks.lm.splits import Split
from tests.amuse_lab.tasks.lm.splits import held_out

FORTY = CountedSplit(40, one_in=5)


def write_lines(path: Path, texts: Iterable[str]) -> None:
    path.write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts))


def write_parquet(path: Path, texts: list[Any], **options: Any) -> None:
    pq.write_table(pa.table({"id": list(range(len(texts))), "text": texts}), path, **options)


def resumes_everywhere(source: Source) -> list[str]:
    """All documents, after checking that reading goes on after each of them as if never interrupted."""
    documents, positions = [], [None]
    reading = source.documents(None)
    for document in reading:
        documents.append(document)
        positions.append(json.loads(json.dumps(reading.position())))
    for number, position in enumerate(positions):
        assert list(source.documents(position)) == documents[number:]
    return [document.text for document in documents]


def test_a_counted_split_takes_so_many_about_one_in_so_many() -> None:
    chosen = list(map(CountedSplit(1000), range(20_000)))
    assert sum(chosen) == 1000
    last = max(number for number, taken in enumerate(chosen) if taken)
    assert 9_000 < last < 11_000


def test_a_smaller_count_is_the_beginning_of_a_larger_one_and_seeds_differ() -> None:
    def chosen(split: CountedSplit) -> set[int]:
        return set(filter(split, range(20_000)))

    small, large = chosen(CountedSplit(200)), chosen(CountedSplit(1000))
    assert small == set(sorted(large)[:200])
    assert len(large & chosen(CountedSplit(1000, seed=1))) < 150


def test_which_documents_are_for_validation_never_changes() -> None:
    # What `printf '2357 1389' | b2sum -l 64` prints ends with 2d00: little-endian, it is small.
    chosen = list(filter(CountedSplit(8, one_in=1000), range(9000)))
    assert chosen == [1389, 3056, 3586, 3623, 5877, 6509, 7073, 8292]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_split_needs_something_on_both_sides(fraction: float) -> None:
    with pytest.raises(ConfigError, match=r"--validation must be in \(0, 1\), got"):
        Split(fraction)


@pytest.mark.parametrize("kilobytes", [1, 2, 5, 16, 17, 20, 33, 100, 500, 3000])
@pytest.mark.parametrize("line", [37, 100_000])
def test_text_of_any_size_is_split_by_size(kilobytes: int, line: int, tmp_path: Path) -> None:
    """One file of plain text: a tenth, to within a factor of two, in one piece or more; nothing is lost."""
    path = tmp_path / "notes.txt"
    text = "".join("é" * line + "\n" for _ in range(kilobytes * 1000 // line + 1))[: 500 * kilobytes]
    path.write_text(text, newline="")
    source = LocalText.find(path)
    documents = list(source.documents(None))
    assert "".join(document.text for document in documents) == text
    held = sum(len(document.text) for document in documents if document.validation)
    assert len(text) / 20 <= held <= len(text) / 5
    assert all(document.text for document in documents)
    resumes_everywhere(source)


@pytest.mark.parametrize("count", [1, 2, 3, 9, 30, 400])
def test_documents_are_held_out_by_size_not_by_count(count: int, tmp_path: Path) -> None:
    """Lengths from 1 to 1,000 times a letter, in an order that has nothing to do with them."""
    path = tmp_path / "lines.jsonl"
    texts = ["x" * ((317 * number) % 1000 + 1) for number in range(1, count + 1)]
    write_lines(path, texts)
    source = LocalText.find(path, 0.2)
    documents = list(source.documents(None))
    assert "".join(document.text for document in documents) == "".join(texts)
    size = sum(map(len, texts))
    held = sum(len(document.text) for document in documents if document.validation)
    assert 0.1 * size <= held <= 0.4 * size
    if source.split.cut is None:
        assert [document.validation for document in documents] == held_out(texts, 0.2)
    resumes_everywhere(source)


def test_the_share_depends_on_how_much_there_is(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x" * 99 + "\n")
    assert LocalText.find(path).split.fraction == 0.1
    path.write_text(("x" * 99 + "\n") * 100_001)
    assert LocalText.find(path).split.fraction == 0.01
    assert LocalText.find(path, 0.3).split.fraction == 0.3
    path.write_text("x")
    with pytest.raises(DataError, match="must hold text to train on and to validate with, but has 1 bytes"):
        LocalText.find(path)


def test_plays_are_documents_and_their_last_tenth_is_for_validation() -> None:
    source, text = plays_source(), plays().decode()
    documents = list(source.documents(None))
    assert len(documents) == 39
    assert "".join(document.text for document in documents) == text
    train = [document.text for document in documents if not document.validation]
    assert len("".join(train).encode()) == 4_460_787
    assert documents[1].text.startswith("As You Like It\n")
    assert documents[34].text.startswith("Macbeth\n")
    assert documents[36].text.startswith("Othello\n")
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
    texts = resumes_everywhere(LocalText.find(tmp_path, 0.5))
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
    texts = resumes_everywhere(LocalText((path,), {}, Split(0.5)))
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
    with pytest.raises(DataError, match=f"^{path}, {re.escape(text)}.*; --skip-bad passes over"):
        LocalText.find(path)
    source = LocalText.find(path, 0.5, skip_bad=True)
    reading = source.documents(None)
    assert [document.text for document in reading] == ["good", "good"]
    assert reading.skipped == 1


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\n" * 5000 + b"caf\xe9\n")
    with pytest.raises(DataError, match=f"{path} must be UTF-8, but is not at byte 25003"):
        LocalText.find(path)
    reading = LocalText.find(path, skip_bad=True).documents(None)
    assert "".join(document.text for document in reading) == "good\n" * 5000
    assert reading.skipped == 1


def test_wrong_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    source = LocalText((path,), {}, Split(0.5))
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
        LocalText.find(path)


def test_nothing_to_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*absent: No such file or directory"):
        LocalText.find(tmp_path / "absent")
    (tmp_path / "picture.png").touch()
    with pytest.raises(DataError, match=r"has no file that ends with \.txt, \.md, \.jsonl, \.json, \.par"):
        LocalText.find(tmp_path, 0.5)
    path = tmp_path / "gone.txt"
    path.write_text("To be")
    source = LocalText.find(tmp_path, 0.5)
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read .*gone\.txt: No such file or directory"):
        list(source.documents(None))


def test_identity_changes_with_the_files_and_the_split(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one two three")
    os.utime(path, ns=(0, 1))
    identity = LocalText.find(tmp_path, 0.5).identity
    assert LocalText.find(tmp_path, 0.5).identity == identity
    assert LocalText.find(tmp_path, 0.4).identity != identity
    os.utime(path, ns=(0, 2))
    assert LocalText.find(tmp_path, 0.5).identity != identity
    path.rename(tmp_path / "b.txt")
    os.utime(tmp_path / "b.txt", ns=(0, 1))
    assert LocalText.find(tmp_path, 0.5).identity != identity


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
    return HubText.find("HuggingFaceFW/fineweb", "sample-100BT", FORTY, previous)


def test_hub_is_streamed_at_one_commit(hub: SimpleNamespace) -> None:
    source = find()
    documents = list(source.documents(None))
    assert [document.text for document in documents] == hub.texts
    assert [document.validation for document in documents] == list(map(FORTY, range(300)))
    assert sum(map(FORTY, range(300))) == 40 == source.validation_documents
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
            later = list(source.documents(position))
            assert [document.text for document in later] == hub.texts[number:]
            assert [document.validation for document in later] == list(map(FORTY, range(number, 300)))


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


def test_json_is_read_in_all_its_usual_forms(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    source = LocalText((path,), {}, Split(0.5))
    for content in (
        [{"text": "one"}, {"text": "two é"}, {"text": ""}],
        ["one", "two é", ""],
    ):
        path.write_text(json.dumps(content, indent=1))
        assert resumes_everywhere(source) == ["one", "two é", ""]
    write_lines(path, ["one", "two é"])
    assert resumes_everywhere(source) == ["one", "two é"]
    path.write_text('{"text": "alone"}')
    assert resumes_everywhere(source) == ["alone"]
    path.write_text(json.dumps(["good", {"txt": "x"}, 5, {"text": "\ud800"}, "good"]))
    with pytest.raises(DataError, match=f"^{path}, entry 2: must be text, or an object with text under"):
        list(source.documents(None))
    reading = LocalText((path,), {}, Split(0.5), skip_bad=True).documents(None)
    assert [document.text for document in reading] == ["good", "good"]
    assert reading.skipped == 3
    path.write_text('["good"')
    with pytest.raises(DataError, match=f"^{path} must be JSON: "):
        list(source.documents(None))


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_compressed_text_is_read_as_what_it_is(compression: str, tmp_path: Path) -> None:
    texts = [f"document {number} é\n" * 90 for number in range(40)]
    plain = tmp_path / "plain"
    plain.mkdir()
    write_lines(plain / "a.jsonl", texts)
    (plain / "b.txt").write_text("".join(texts))
    (plain / "c.json").write_text(json.dumps(texts))
    packed = tmp_path / "packed"
    packed.mkdir()
    for path in plain.iterdir():
        name = {"gz": "gzip", "zst": "zstd"}[compression]
        with pa.output_stream(str(packed / f"{path.name}.{compression}"), compression=name) as stream:
            stream.write(path.read_bytes())
    expected = [document.text for document in LocalText.find(plain, 0.2).documents(None)]
    assert resumes_everywhere(LocalText.find(packed, 0.2)) == expected
    damaged = packed / f"b.txt.{compression}"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(DataError, match=rf"{damaged}( is damaged)?: "):
        LocalText.find(packed)
