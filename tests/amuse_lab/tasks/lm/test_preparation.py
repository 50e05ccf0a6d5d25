import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amuse_lab.errors import ConfigError, DataError
from amuse_lab.tasks.lm import on_board as on_board_module
from amuse_lab.tasks.lm import preparation, shards
from amuse_lab.tasks.lm.data import Corpus
from amuse_lab.tasks.lm.index import SPLITS, Index
from amuse_lab.tasks.lm.local import LocalText
from amuse_lab.tasks.lm.on_board import on_board
from amuse_lab.tasks.lm.plays import plays
from amuse_lab.tasks.lm.preparation import Plan, prepare
from amuse_lab.tasks.lm.sources import Documents, HashedSplit, Plays
from amuse_lab.tasks.lm.tokenizer import TokenizerChoice
from tests.amuse_lab.tasks.lm import kill_prepare

SPLIT = HashedSplit(0.2)


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
    return Plan(lambda _: LocalText.find(source, SPLIT), TokenizerChoice(tokenizer), **options)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "_CHUNK_CHARACTERS", 1000)


def tokens_of(folder: Path, split: str) -> list[int]:
    """The tokens of all shards of a split in the order of their names, read as the layout says."""
    tokens: list[int] = []
    for path in sorted(folder.glob(f"{split}-*.bin")):
        content = path.read_bytes()
        count = int.from_bytes(content[16:24], "little")
        tokens += np.frombuffer(content, "<u2", count, offset=64).tolist()
    return tokens


def parts(texts: list[str]) -> dict[str, list[str]]:
    chosen = [SPLIT(number) for number in range(len(texts))]
    return {
        "train": [text for text, validation in zip(texts, chosen, strict=True) if not validation],
        "validation": [text for text, validation in zip(texts, chosen, strict=True) if validation],
    }


def test_every_document_is_there_once_in_order_and_ends(
    source: Path, texts: list[str], tmp_path: Path
) -> None:
    index = prepare(plan(source, shard_tokens=9000), tmp_path / "out")
    assert len(index.train) > 4
    for split, expected in parts(texts).items():
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
    training = TokenizerChoice("bpe-300").make(lambda: parts(texts)["train"])
    assert {name: (tmp_path / "out" / name).read_bytes() for name in training.files} == training.files
    everything = TokenizerChoice("bpe-300").make(lambda: texts)
    assert everything != training
    tokens = tokens_of(tmp_path / "out", "validation")
    assert training.decode(tokens) == "".join(f"{text}<|endoftext|>" for text in parts(texts)["validation"])


def test_kills_at_any_moment_change_nothing_nor_do_workers(source: Path, tmp_path: Path) -> None:
    expected = {}
    for tokenizer in ("bytes", "bpe-300"):
        kill_prepare.prepare(source, tmp_path / tokenizer, tokenizer=tokenizer)
        expected[tokenizer] = [kill_prepare.digest(tmp_path / tokenizer)]
        assert len(list((tmp_path / tokenizer).glob("*.bin"))) >= 6
    program = subprocess.run(
        [sys.executable, kill_prepare.__file__, str(source), str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert program.returncode == 0, program.stderr
    outcome = json.loads(program.stdout)
    assert outcome["lines"]["killed"] > 30
    assert outcome["lines"]["results"] == expected["bytes"]
    assert outcome["two"] == {"killed": 2, "results": expected["bpe-300"]}
    assert outcome["three"] == {"killed": 1, "results": expected["bpe-300"]}


@pytest.mark.parametrize(("more", "workers"), [(0, 1), (1, 1), (1, 2)])
def test_stops_with_the_document_that_brings_enough(
    source: Path, texts: list[str], tmp_path: Path, more: int, workers: int
) -> None:
    lengths = np.cumsum([len(text.encode()) + 1 for text in parts(texts)["train"]])
    index = prepare(plan(source, tokens=int(lengths[40]) + more, workers=workers), tmp_path / "out")
    assert index.count("train", "tokens") == lengths[40 + more]
    assert index.count("train", "documents") == 41 + more
    read = 41 + more + index.count("validation", "documents")
    for split, expected in parts(texts[:read]).items():
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

            def __iter__(self) -> Iterator[str]:
                for number, text in enumerate(reading):
                    if number == 200:
                        raise DataError("the line is dead")
                    yield text

        return Breaking()


def test_goes_on_from_the_last_complete_round(source: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    prepare(plan(source, shard_tokens=9000), whole)
    breaking = replace(
        plan(source, shard_tokens=9000), source=lambda _: Broken(**vars(LocalText.find(source, SPLIT)))
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
    breaking = replace(plan(source), source=lambda _: Broken(**vars(LocalText.find(source, SPLIT))))
    with pytest.raises(DataError, match="the line is dead"):
        prepare(breaking, tmp_path / "data" / "name")
    assert list(tmp_path.iterdir()) == []


def test_a_split_without_text_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("To be, or not to be")
    message = "none of the 1 documents is for validation: take more text or another --validation"
    with pytest.raises(DataError, match=message):
        prepare(plan(path), tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("shard_tokens", [1, 1000])
def test_a_split_of_empty_documents_is_an_error(shard_tokens: int, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    texts = ["" if SPLIT(number) else "To be" for number in range(40)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with pytest.raises(DataError, match=r"^all documents for validation are empty: take more text"):
        prepare(plan(path, shard_tokens=shard_tokens), tmp_path / "out")


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
        ({"source": lambda _: Plays()}, "with kind 'files', not 'plays'"),
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
        LocalText.find(tmp_path / "pipe.txt", SPLIT)


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


def test_plays_on_board_are_those_of_the_byte_task(tmp_path: Path) -> None:
    folder = on_board("shakespeare", "bytes", tmp_path)
    assert folder == tmp_path / "shakespeare-bytes"
    corpus = Corpus.of(plays())
    for split in SPLITS:
        text = bytes(tokens_of(folder, split)).replace(b"\0", b"")
        assert text == bytes(getattr(corpus, split).tolist())
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert on_board("shakespeare", "bytes", tmp_path) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_plays_on_board_are_prepared_once_for_all_who_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def write_shard(path: Path, *arguments: Any) -> int:
        written.append(path.name)
        return shards.write_shard(path, *arguments)

    monkeypatch.setattr(preparation, "write_shard", write_shard)
    folders: list[Path] = []
    askers = [
        threading.Thread(target=lambda: folders.append(on_board("shakespeare", "bytes", tmp_path)))
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


def test_unknown_text_on_board() -> None:
    with pytest.raises(ConfigError, match="unknown text 'shakspeare'; did you mean 'shakespeare'"):
        on_board("shakspeare", "bytes")
    assert set(on_board_module.ON_BOARD) == {"shakespeare"}
