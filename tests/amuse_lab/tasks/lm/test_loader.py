import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amuse_lab.errors import ConfigError, DataError
from amuse_lab.tasks.lm import preparation
from amuse_lab.tasks.lm.bundled import prepare_bundled
from amuse_lab.tasks.lm.loader import Batches, TokenData, Windows, evenly_spread, open_tokens
from amuse_lab.tasks.lm.local import LocalText
from amuse_lab.tasks.lm.preparation import Plan, prepare
from amuse_lab.tasks.lm.shakespeare import plays
from amuse_lab.tasks.lm.tokenizer import TokenizerChoice
from tests.amuse_lab.tasks.lm.splits import parts


def prepared(folder: Path, texts: list[str], tokenizer: str = "bytes", **options: Any) -> Path:
    source = folder.with_suffix(".jsonl")
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    find = LocalText.find(source, 0.1)
    prepare(Plan(lambda _: find, TokenizerChoice(tokenizer), **options), folder)
    return folder


def training(texts: list[str]) -> list[str]:
    return parts(texts, 0.1)["train"]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    text = plays()[:40_000].decode()
    return [text[start : start + 200] for start in range(0, len(text), 200)]


@pytest.fixture(scope="module")
def original(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "_CHUNK_CHARACTERS", 300)
        folder = prepared(tmp_path_factory.mktemp("prepared") / "many", texts, shard_tokens=3000)
    assert len(list(folder.glob("train-*.bin"))) > 10
    return folder


@pytest.fixture
def many_shards(original: Path, tmp_path: Path) -> Path:
    """Shards of some 3,000 tokens each."""
    return Path(shutil.copytree(original, tmp_path / "many"))


def test_windows_cross_shards_and_their_targets_tile_the_text(many_shards: Path, texts: list[str]) -> None:
    tokens = open_tokens(many_shards, "train")
    text = "".join(f"{part}\0" for part in training(texts)).encode()
    assert len(tokens) == len(text)
    for context in (1, 7, 64, 7500, len(text) - 1):
        windows = tokens.windows(context)
        read = windows.read(np.arange(len(windows)))
        assert read.dtype == torch.int64
        assert read.shape == ((len(text) - 1) // context, context + 1)
        assert bytes(read[:, 1:].flatten().tolist()) == text[1 : 1 + len(windows) * context]
        assert bytes(read[:, 0].tolist()) == text[: len(windows) * context : context]


def test_an_epoch_has_every_window_once_however_many_ranks(many_shards: Path) -> None:
    windows = open_tokens(many_shards, "train").windows(64)
    n = len(windows)
    batches = Batches(windows, batch=12, seed=3)
    steps = -(-3 * n // 12)
    whole = [batches.indices(step) for step in range(steps)]
    assert len({len(step) for step in whole}) == 1
    sequences = np.concatenate(whole)[: 3 * n].reshape(3, n)
    for epoch in sequences:
        assert np.array_equal(np.sort(epoch), np.arange(n))
    assert not np.array_equal(sequences[0], sequences[1])
    assert not np.array_equal(sequences[0], np.arange(n))
    for ranks in (2, 3, 4):
        share = 12 // ranks
        for step in (0, n // 12, steps - 1):
            parts = [batches(step, slice(rank * share, rank * share + share)) for rank in range(ranks)]
            assert torch.equal(torch.cat(parts), batches(step))
            assert torch.equal(batches(step), windows.read(whole[step]))


def test_a_step_depends_on_seed_and_number_alone(many_shards: Path) -> None:
    windows = open_tokens(many_shards, "train").windows(64)
    first = Batches(windows, batch=8, seed=0)(step=10**9)
    torch.manual_seed(1)
    np.random.default_rng(1)
    again = Batches(open_tokens(many_shards, "train").windows(64), batch=8, seed=0)
    assert torch.equal(again(10**9), first)
    assert not torch.equal(again(10**9 + 1), first)
    assert not torch.equal(Batches(windows, batch=8, seed=1)(10**9), first)


def test_a_batch_may_be_longer_than_the_text(tmp_path: Path, texts: list[str]) -> None:
    windows = open_tokens(prepared(tmp_path / "few", texts), "train").windows(15_000)
    assert len(windows) == 2
    assert np.bincount(Batches(windows, batch=7, seed=0).indices(0)).tolist() in ([3, 4], [4, 3])


@pytest.mark.parametrize("n", [7, 40, 53])
def test_some_windows_are_spread_evenly(n: int) -> None:
    assert evenly_spread(n, 5).tolist() == [i * n // 5 for i in range(5)]
    assert evenly_spread(n).tolist() == evenly_spread(n, n + 1).tolist() == list(range(n))


@pytest.mark.parametrize("n", [7, 40, 53])
def test_windows_that_are_left_out_are_those_of_a_smaller_choice(n: int) -> None:
    rest = sorted(set(range(n)) - {i * n // 5 for i in range(5)})
    assert evenly_spread(n, None, 5).tolist() == evenly_spread(n, n, 5).tolist() == rest
    assert evenly_spread(n, 2, 5).tolist() == [rest[i * len(rest) // 2] for i in range(2)]
    assert evenly_spread(n, 4, n).tolist() == []


def test_bits_per_byte_do_not_depend_on_the_tokenizer(tmp_path: Path, texts: list[str]) -> None:
    # A model that knows nothing but that bytes are equally likely needs 8 bits for each, and with it
    # nothing for the ends of documents: whatever the tokens are, they share the same sum.
    size = len("".join(training(texts)).encode())
    for tokenizer in ("bytes", "gpt2", "bpe-300"):
        tokens = open_tokens(prepared(tmp_path / tokenizer, texts, tokenizer), "train")
        assert tokens.bytes == size
        assert tokens.documents == len(training(texts))
        assert tokens.bits_per_byte(size * 8 * math.log(2) / len(tokens)) == pytest.approx(8)
        whole = tokens.windows(len(tokens) - 1).read(np.array([0]))[0].tolist()
        end = {"bytes": "\0"}.get(tokenizer, "<|endoftext|>")
        assert tokens.tokenizer.decode(whole) == "".join(f"{text}{end}" for text in training(texts))
        assert max(whole) < tokens.vocabulary


def test_tokens_of_four_bytes(tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from amuse_lab.tasks.lm import tokenizer, workers

    monkeypatch.setattr(tokenizer, "storage", lambda _: np.dtype("<u4"))
    monkeypatch.setattr(workers, "storage", lambda _: np.dtype("<u4"))
    folder = prepared(tmp_path / "wide", texts)
    assert (folder / "train-00000.bin").read_bytes()[12:16] == b"\4\0\0\0"
    tokens = open_tokens(folder, "train")
    read = tokens.windows(len(tokens) - 1).read(np.array([0]))[0]
    assert bytes(read.tolist()) == "".join(f"{text}\0" for text in training(texts)).encode()


def test_names_are_folders_in_data(tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    prepared(Path("data") / "mine", texts)
    assert open_tokens("mine", "train").folder == Path("data/mine")
    assert len(open_tokens("./data/mine", "train")) == len(open_tokens(Path("data/mine"), "train"))
    with pytest.raises(DataError, match="data/yours holds no prepared text: amuse-lab prepare yours"):
        open_tokens("yours", "train")
    with pytest.raises(ConfigError, match="unknown split 'valid'; did you mean 'validation'"):
        open_tokens("mine", "valid")


def test_incomplete_data_is_not_opened(many_shards: Path) -> None:
    path = many_shards / "index.json"
    path.write_text(path.read_text().replace('"complete": true', '"complete": false'))
    with pytest.raises(DataError, match="is not complete: run the same command again to continue"):
        open_tokens(many_shards, "train")


def test_a_damaged_window_is_never_returned_and_others_are(many_shards: Path) -> None:
    path = sorted(many_shards.glob("train-*.bin"))[3]
    content = bytearray(path.read_bytes())
    content[100] ^= 4
    path.write_bytes(content)
    tokens = open_tokens(many_shards, "train")
    windows = tokens.windows(50)
    before = sum(len(shard) for shard in tokens._shards[:3])
    inside = np.array([before // 50 + 2])
    with pytest.raises(DataError, match=f"{path} is damaged: its tokens from 0 on"):
        windows.read(inside)
    with pytest.raises(DataError, match=f"{path} is damaged"):
        Batches(windows, batch=len(windows), seed=0)(0)
    assert windows.read(np.arange(before // 50 - 1)).shape == (before // 50 - 1, 51)


def test_missing_and_truncated_shards_are_named_when_opening(many_shards: Path) -> None:
    path = sorted(many_shards.glob("train-*.bin"))[3]
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(DataError, match=f"{path} is damaged: it must have"):
        open_tokens(many_shards, "train")
    path.unlink()
    with pytest.raises(DataError, match=f"{path} is missing"):
        open_tokens(many_shards, "train")
    open_tokens(many_shards, "validation")


def test_shards_of_another_tokenizer_are_refused(tmp_path: Path, texts: list[str]) -> None:
    ours, theirs = (prepared(tmp_path / name, texts, name) for name in ("bpe-300", "bpe-400"))
    shard = "train-00000.bin"
    (ours / shard).write_bytes((theirs / shard).read_bytes())
    with pytest.raises(DataError, match=f"{ours / shard} was made with another tokenizer"):
        open_tokens(ours, "train")
    (theirs / "vocab.json").write_bytes((ours / "vocab.json").read_bytes())
    with pytest.raises(DataError, match=f"the tokenizer bpe-400 in {theirs} is not the one of its index"):
        _ = open_tokens(theirs, "train").tokenizer


@pytest.mark.parametrize("context", [0, -1, 3])
def test_context_must_fit(context: int) -> None:
    class Three(TokenData):
        def __init__(self) -> None:
            self.folder = Path("data/three")

        def __len__(self) -> int:
            return 3

    message = rf"context must be in \[1, 3\) for data/three, got {context}"
    with pytest.raises(ConfigError, match=message):
        Three().windows(context)
    assert len(Three().windows(2)) == 1


def test_batch_is_positive(many_shards: Path) -> None:
    windows = Windows(open_tokens(many_shards, "train"), 10)
    with pytest.raises(ConfigError, match="batch must be at least 1, got 0"):
        Batches(windows, batch=0, seed=0)


def test_plays_in_gpt2_tokens_need_no_preparation(tmp_path: Path) -> None:
    train = open_tokens(prepare_bundled("shakespeare", "gpt2", tmp_path), "train")
    validation = open_tokens(prepare_bundled("shakespeare", "gpt2", tmp_path), "validation")
    assert (train.bytes, validation.bytes) == (4_460_787, 495_643)
    # 35 and 4 documents; all of the text without their ends has 1,500,169 tokens, and the cut adds none.
    assert len(train) + len(validation) == 1_500_169 + 39
    window = validation.windows(20).read(np.array([0]))[0].tolist()
    text = plays()[4_460_787:].decode()
    assert text.startswith(validation.tokenizer.decode(window))
