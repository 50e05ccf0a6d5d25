import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from amuse_lab.errors import ConfigError, DataError
from amuse_lab.tasks.lm import preparation, shards
from amuse_lab.tasks.lm.bundled import BUNDLED, prepare_bundled
from amuse_lab.tasks.lm.index import SPLITS, Index
from amuse_lab.tasks.lm.local import LocalText
from amuse_lab.tasks.lm.preparation import Plan, prepare
from amuse_lab.tasks.lm.shakespeare import plays
from amuse_lab.tasks.lm.sources import Document, Documents, _InMemory
from amuse_lab.tasks.lm.sources import plays as plays_source
from amuse_lab.tasks.lm.tokenizer import TokenizerChoice, train_byte_pairs
from tests.amuse_lab.tasks.lm.splits import parts
from tests.programs import kill_prepare

FRACTION = 0.2


@pytest.fixture(scope="module")
def texts() -> list[str]:
    text = plays()[:60_000].decode()
    generator = np.random.default_rng(0)
    ends = np.cumsum(generator.integers(0, 400, size=300)).tolist()
    return [text[start:stop] for start, stop in zip([0, *ends], ends, strict=False)]


@pytest.fixture(scope="module")
def source(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "plays.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def plan(source: Path, tokenizer: str = "bytes", **options: Any) -> Plan:
    return Plan(lambda _: LocalText.find(source, FRACTION), TokenizerChoice(tokenizer), **options)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "_CHUNK_CHARACTERS", 1000)
    monkeypatch.setattr(preparation, "_SAVE_TOKENS", 2**22)  # what a test changes is restored


def tokens_of(folder: Path, split: str) -> list[int]:
    """The tokens of all shards of a split in the order of their names, read as the layout says."""
    tokens: list[int] = []
    for path in sorted(folder.glob(f"{split}-*.bin")):
        content = path.read_bytes()
        count = int.from_bytes(content[16:24], "little")
        tokens += np.frombuffer(content, "<u2", count, offset=64).tolist()
    return tokens


def test_every_document_is_there_once_in_order_and_ends(
    source: Path, texts: list[str], tmp_path: Path
) -> None:
    index = prepare(plan(source, shard_tokens=9000), tmp_path / "out")
    assert len(index.train) > 4
    for split, expected in parts(texts, FRACTION).items():
        content = bytes(tokens_of(tmp_path / "out", split))
        assert content == b"".join(text.encode() + b"\0" for text in expected)
        assert index.count(split, "tokens") == len(content)
        assert index.count(split, "documents") == len(expected)
        assert index.count(split, "bytes") == len("".join(expected).encode())
    names = {entry.file for split in SPLITS for entry in index.entries(split)}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {"index.json"}


def test_byte_pairs_are_trained_on_the_training_part_alone(
    source: Path, texts: list[str], tmp_path: Path
) -> None:
    prepare(plan(source, "bpe-300"), tmp_path / "out")
    training = TokenizerChoice("bpe-300").make(lambda: parts(texts, FRACTION)["train"])
    assert {name: (tmp_path / "out" / name).read_bytes() for name in training.files} == training.files
    everything = TokenizerChoice("bpe-300").make(lambda: texts)
    assert everything != training
    tokens = tokens_of(tmp_path / "out", "validation")
    assert training.decode(tokens) == "".join(
        f"{text}<|endoftext|>" for text in parts(texts, FRACTION)["validation"]
    )


@pytest.mark.parametrize("stride", [60, pytest.param(6, marks=pytest.mark.slow)])
def test_kills_at_any_moment_change_nothing_nor_do_workers(source: Path, tmp_path: Path, stride: int) -> None:
    expected = {}
    for tokenizer in ("bytes", "bpe-300"):
        kill_prepare.prepare(source, tmp_path / tokenizer, tokenizer=tokenizer)
        expected[tokenizer] = [kill_prepare.digest(tmp_path / tokenizer)]
        assert len(list((tmp_path / tokenizer).glob("*.bin"))) >= 6
    program = subprocess.run(
        [sys.executable, kill_prepare.__file__, str(source), str(tmp_path), str(stride)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert program.returncode == 0, program.stderr
    outcome = json.loads(program.stdout)
    assert outcome["lines"]["killed"] > 180 / stride
    assert outcome["lines"]["results"] == expected["bytes"]
    assert outcome["two"] == {"killed": 2, "results": expected["bpe-300"]}
    assert outcome["three"] == {"killed": 1, "results": expected["bpe-300"]}


@pytest.mark.parametrize(("more", "workers"), [(0, 1), (1, 1), (1, 2)])
def test_stops_with_the_document_that_brings_enough(
    source: Path, texts: list[str], tmp_path: Path, more: int, workers: int
) -> None:
    lengths = np.cumsum([len(text.encode()) + 1 for text in parts(texts, FRACTION)["train"]])
    index = prepare(plan(source, tokens=int(lengths[40]) + more, workers=workers), tmp_path / "out")
    assert index.count("train", "tokens") == lengths[40 + more]
    assert index.count("train", "documents") == 41 + more
    read = 41 + more + index.count("validation", "documents")
    for split, expected in parts(texts[:read], FRACTION).items():
        assert bytes(tokens_of(tmp_path / "out", split)) == b"".join(t.encode() + b"\0" for t in expected)


def test_wanting_more_than_there_is_takes_everything(source: Path, tmp_path: Path) -> None:
    index = prepare(plan(source, tokens=10**9), tmp_path / "out")
    assert sum(index.count(split, "documents") for split in SPLITS) == 300


class Broken(LocalText):
    """Ends with an error after some documents."""

    def documents(self, position: Any) -> Documents:
        reading = super().documents(position)

        class Breaking:
            position = reading.position
            skipped = 0

            def __iter__(self) -> Iterator[Document]:
                for number, document in enumerate(reading):
                    if number == 200:
                        raise DataError("the line is dead")
                    yield document

        return Breaking()


def test_goes_on_from_the_last_complete_round(source: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    prepare(plan(source, shard_tokens=9000), whole)
    breaking = replace(
        plan(source, shard_tokens=9000), source=lambda _: Broken(**vars(LocalText.find(source, FRACTION)))
    )
    with pytest.raises(DataError, match="the line is dead"):
        prepare(breaking, broken)
    index = Index.read(broken)
    assert index is not None
    assert not index.complete
    kept = {path: path.stat().st_mtime_ns for path in broken.glob("*.bin")}
    assert len(kept) >= 4
    prepare(plan(source, shard_tokens=9000, workers=2), broken)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert kill_prepare.digest(broken) == kill_prepare.digest(whole)


def test_an_error_before_the_first_round_leaves_nothing(source: Path, tmp_path: Path) -> None:
    breaking = replace(plan(source), source=lambda _: Broken(**vars(LocalText.find(source, FRACTION))))
    with pytest.raises(DataError, match="the line is dead"):
        prepare(breaking, tmp_path / "data" / "name")
    assert list(tmp_path.iterdir()) == []


class Given:
    """A source of given documents."""

    identity: ClassVar = {"kind": "given"}
    validation_documents = 0

    def __init__(self, *documents: Document) -> None:
        self._documents = documents

    def documents(self, position: Any) -> Documents:
        return _InMemory(self._documents, position)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([Document("x", False)], "none of the 1 documents is for validation: take more text or another --v"),
        ([Document("x", True)] * 3, "none of the 3 documents is for train: take more text"),
        ([Document("x", False), Document("", True)], "all documents for validation are empty: take more"),
    ],
)
@pytest.mark.parametrize("shard_tokens", [1, 1000])
def test_a_split_without_text_is_an_error(
    documents: list[Document], message: str, shard_tokens: int, tmp_path: Path
) -> None:
    given = Plan(lambda _: Given(*documents), TokenizerChoice("bytes"), shard_tokens=shard_tokens)
    with pytest.raises(DataError, match=f"^{message}"):
        prepare(given, tmp_path / "out")


def test_what_a_kill_leaves_within_a_round_is_gone_on_with(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents that were saved are not read a second time, and the shards are the same."""
    monkeypatch.setattr(preparation, "_SAVE_TOKENS", 5000)
    prepare(plan(source, "bpe-300"), tmp_path / "whole")
    breaking = replace(
        plan(source, "bpe-300"),
        source=lambda _: Broken(**vars(LocalText.find(source, FRACTION))),
        tokenizer=TokenizerChoice("bpe-300"),
    )
    monkeypatch.setattr(TokenizerChoice, "make", lambda *_: trained(source))
    with pytest.raises(DataError, match="the line is dead"):
        prepare(breaking, tmp_path / "broken")
    assert not list((tmp_path / "broken").glob("*.bin"))
    reports: list[int] = []
    prepare(plan(source, "bpe-300"), tmp_path / "broken", report=lambda count, _: reports.append(count))
    assert 100 < reports[0] < 250
    assert kill_prepare.digest(tmp_path / "broken") == kill_prepare.digest(tmp_path / "whole")


def trained(source: Path) -> Any:
    training = [json.loads(line)["text"] for line in source.read_text().splitlines()]
    return train_byte_pairs("bpe-300", 300, parts(training, FRACTION)["train"])


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "garble", "another"])
def test_a_damaged_part_of_a_round_is_done_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(preparation, "_SAVE_TOKENS", 5000)
    prepare(plan(source), tmp_path / "whole")
    broken = replace(plan(source), source=lambda _: Broken(**vars(LocalText.find(source, FRACTION))))
    with pytest.raises(DataError, match="the line is dead"):
        prepare(broken, tmp_path / "broken")
    tokens, note = (tmp_path / "broken" / name for name in (".train.tokens", ".round.tokens"))
    content = bytearray(tokens.read_bytes())
    if damage == "flip":
        content[777] ^= 1
        tokens.write_bytes(content)
    elif damage == "cut":
        tokens.write_bytes(content[:3000])
    elif damage == "remove":
        tokens.unlink()
    elif damage == "garble":
        note.write_text("{")
    else:
        note.write_text(json.dumps(json.loads(note.read_text()) | {"shards": [1, 1]}))
    prepare(plan(source), tmp_path / "broken")
    assert kill_prepare.digest(tmp_path / "broken") == kill_prepare.digest(tmp_path / "whole")


def test_complete_data_is_checked_and_not_written_again(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    index = prepare(plan(source), folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare(plan(source, workers=2), folder) == index
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    shard = folder / "train-00000.bin"
    content = bytearray(shard.read_bytes())
    content[30_000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=f"{shard} is damaged: its tokens from 0 on"):
        prepare(plan(source), folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": TokenizerChoice("gpt2")}, "with tokenizer 'bytes', not 'gpt2'"),
        ({"tokens": 7}, "with tokens None, not 7"),
        ({"source": lambda _: plays_source()}, "with kind 'files', not 'plays'"),
        ({"shard_tokens": 7}, "with shard tokens 67108864, not 7"),
    ],
)
def test_another_request_is_refused(
    change: dict[str, Any], message: str, source: Path, tmp_path: Path
) -> None:
    prepare(plan(source), tmp_path / "out")
    with pytest.raises(DataError, match=f"was prepared {message}: choose another folder with --out"):
        prepare(replace(plan(source), **change), tmp_path / "out")


def test_changed_files_are_refused(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_bytes(source.read_bytes())
    prepare(plan(path), tmp_path / "out")
    with path.open("a") as file:
        file.write('{"text": "more"}\n')
    with pytest.raises(DataError, match=r"was prepared with bytes \d+, not \d+"):
        prepare(plan(path), tmp_path / "out")


def test_a_folder_with_other_things_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(DataError, match="must be empty or prepared here before, but holds thesis"):
        prepare(plan(source), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"version": 1, "train": 3}', b"\xff"])
def test_damaged_index_is_named(content: bytes, source: Path, tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path} is damaged: remove {tmp_path} and prepare it again"):
        prepare(plan(source), tmp_path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("train", 0, "checksum"), "x"),
        (("train", 0, "file"), 5),
        (("train", 0, "file"), "../train-00000.bin"),
        (("train", 0, "tokens"), 1.5),
        (("train", 0, "bytes"), 0),
        (("validation",), []),
        (("vocabulary",), "x"),
        (("sha256",), "x"),
        (("complete",), 1),
        (("request", "source"), []),
    ],
)
def test_an_index_with_wrong_values_is_damaged(
    place: tuple[Any, ...], value: Any, source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    prepare(plan(source), folder)
    path = folder / "index.json"
    content = within = json.loads(path.read_text())
    for key in place[:-1]:
        within = within[key]
    within[place[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"^{path} is damaged: remove {folder} and prepare it again$"):
        Index.read(folder)


@pytest.mark.parametrize("name", ["index.json", "train-00000.bin"])
def test_a_pipe_in_prepared_text_is_not_waited_for(name: str, source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    prepare(plan(source), folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(DataError, match=f"^{folder / name} must be a file$"):
        prepare(plan(source), folder)


def test_a_pipe_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DataError, match=r"pipe\.txt must be a file$"):
        LocalText.find(tmp_path / "pipe.txt")


def test_index_of_another_version_is_named(source: Path, tmp_path: Path) -> None:
    prepare(plan(source), tmp_path / "out")
    path = tmp_path / "out" / "index.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 9'))
    with pytest.raises(DataError, match=f"{path} must have version 1 of the format, got 9"):
        prepare(plan(source), tmp_path / "out")


def test_places_that_cannot_be_written_are_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=f"cannot write {tmp_path / 'file'}.*: "):
        prepare(plan(source), tmp_path / "file" / "out")


def test_a_dead_process_is_an_error_and_not_a_wait(source: Path, tmp_path: Path) -> None:
    class Deadly(TokenizerChoice):
        def make(self, _: Any) -> Any:
            return kill_prepare.DeadlyTokenizer()

    with pytest.raises(DataError, match="a tokenizing process died, perhaps for want of memory"):
        prepare(replace(plan(source, workers=2), tokenizer=Deadly("bytes")), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["tokens", "workers"])
def test_numbers_are_positive(option: str, source: Path) -> None:
    with pytest.raises(ConfigError, match=f"--{option} must be at least 1, got 0"):
        plan(source, **{option: 0})


def test_the_bundled_plays_are_split_by_position(tmp_path: Path) -> None:
    folder = prepare_bundled("shakespeare", "bytes", tmp_path)
    assert folder == tmp_path / "shakespeare-bytes"
    cut = len(plays()) * 9 // 10
    for split, expected in (("train", plays()[:cut]), ("validation", plays()[cut:])):
        assert bytes(tokens_of(folder, split)).replace(b"\0", b"") == expected
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare_bundled("shakespeare", "bytes", tmp_path) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_bundled_plays_are_prepared_once_for_all_who_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def write_shard(path: Path, *arguments: Any) -> int:
        written.append(path.name)
        return shards.write_shard(path, *arguments)

    monkeypatch.setattr("amuse_lab.tasks.lm.rounds.write_shard", write_shard)
    folders: list[Path] = []
    askers = [
        threading.Thread(target=lambda: folders.append(prepare_bundled("shakespeare", "bytes", tmp_path)))
        for _ in range(4)
    ]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert folders == [tmp_path / "shakespeare-bytes"] * 4
    assert written == ["train-00000.bin", "validation-00000.bin"]
    assert sorted(path.name for path in folders[0].iterdir()) == ["index.json", *written]


def test_who_does_not_wait_is_told(source: Path, tmp_path: Path) -> None:
    with (
        preparation._locked(tmp_path / "out", wait=False),
        pytest.raises(DataError, match=f"another process is preparing {tmp_path / 'out'}"),
    ):
        prepare(plan(source), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_bundled_text() -> None:
    with pytest.raises(ConfigError, match="unknown text 'shakspeare'; did you mean 'shakespeare'"):
        prepare_bundled("shakspeare", "bytes")
    assert set(BUNDLED) == {"shakespeare"}
