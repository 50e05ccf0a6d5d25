import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from amuse_lab.errors import DataError
from amuse_lab.tasks.lm.shards import Shard, write_shard

MADE_WITH = "ab" * 32
COUNT = 100_000  # 200,000 bytes: three whole blocks and a part


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(65_536, size=COUNT).astype("<u2")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "train-00000.bin"


def write(path: Path, tokens: np.ndarray) -> Callable[[], Shard]:
    checksum = write_shard(path, [tokens[:7], tokens[7:7], tokens[7:]], MADE_WITH)
    return lambda: Shard(path, tokens=len(tokens), tokenizer=MADE_WITH, checksum=checksum)


def test_layout_is_as_documented(path: Path, tokens: np.ndarray) -> None:
    checksum = write_shard(path, [tokens], MADE_WITH)
    content = path.read_bytes()
    header = struct.pack("<8sIIQ32sI", b"AMUSETOK", 1, 2, COUNT, bytes.fromhex(MADE_WITH), checksum)
    text = tokens.tobytes()
    table = b"".join(struct.pack("<I", zlib.crc32(text[i : i + 65_536])) for i in range(0, 200_000, 65_536))
    assert checksum == zlib.crc32(table)
    assert content == header + struct.pack("<I", zlib.crc32(header)) + text + table


@pytest.mark.parametrize("kind", ["<u2", "<u4"])
@pytest.mark.parametrize("count", [1, 16_383, 16_384, 32_768, 32_769, COUNT])
def test_reads_what_was_written(path: Path, kind: str, count: int) -> None:
    tokens = np.random.default_rng(1).integers(60_000, size=count).astype(kind)
    shard = write(path, tokens)()
    shard.verify()
    assert len(shard) == count
    for start, stop in ((0, count), (0, 1), (count - 1, count), (count // 3, count // 2 + 1)):
        assert np.array_equal(shard.read(start, stop), tokens[start:stop])
        assert shard.read(start, stop).dtype == np.dtype(kind)


def damage(path: Path, place: int, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= bit
    path.write_bytes(content)


@pytest.mark.parametrize("place", [64, 64 + 65_535, 64 + 65_536, 64 + 199_999])
def test_a_flipped_bit_is_never_read(path: Path, tokens: np.ndarray, place: int) -> None:
    opened = write(path, tokens)
    damage(path, place, bit=16)
    shard = opened()
    token = (place - 64) // 2
    block = token // 32_768
    message = f"{path} is damaged: its tokens from {block * 32_768} on do not have their checksum: remove "
    for start, stop in ((token, token + 1), (block * 32_768, block * 32_768 + 1), (0, COUNT)):
        with pytest.raises(DataError, match=message):
            shard.read(start, stop)
    with pytest.raises(DataError, match=message):
        shard.verify()
    others = [other for other in range(4) if other != block]
    for other in others:  # the rest can be read
        start, stop = other * 32_768, min((other + 1) * 32_768, COUNT)
        assert np.array_equal(shard.read(start, stop), tokens[start:stop])


@pytest.mark.parametrize("place", range(64))
def test_every_byte_of_the_header_counts(path: Path, place: int) -> None:
    opened = write(path, np.arange(10, dtype="<u2"))
    damage(path, place, bit=2)
    with pytest.raises(DataError, match=str(path)):
        opened()


@pytest.mark.parametrize("size", [0, 10, 63, 64, 100, 200_079, 200_081])
def test_another_length_is_named(path: Path, tokens: np.ndarray, size: int) -> None:
    opened = write(path, tokens)
    content = path.read_bytes()
    assert len(content) == 200_080
    path.write_bytes((content + b"\0")[:size])
    wanted = "begin with 64 bytes of header, got" if size < 64 else "have 200080 bytes, got"
    with pytest.raises(DataError, match=f"{path} is damaged: it must {wanted} {size}: remove {path.parent} "):
        opened()


def test_damaged_table_is_named(path: Path, tokens: np.ndarray) -> None:
    opened = write(path, tokens)
    damage(path, 200_070)
    with pytest.raises(DataError, match="its table of checksums does not have its own"):
        opened()


def test_missing_shard_is_named(path: Path, tokens: np.ndarray) -> None:
    opened = write(path, tokens)
    path.unlink()
    with pytest.raises(DataError, match=f"{path} is missing: remove {path.parent} and prepare it again"):
        opened()


def test_other_files_are_no_shards(path: Path, tokens: np.ndarray) -> None:
    opened = write(path, tokens)
    path.write_bytes(b"To be, or not to be" * 100)
    with pytest.raises(DataError, match="is not a shard: it must begin with b'AMUSETOK', got b'To be, o'"):
        opened()


def test_another_version_is_named_and_not_called_damaged(path: Path, tokens: np.ndarray) -> None:
    opened = write(path, tokens)
    content = path.read_bytes()
    path.write_bytes(content[:8] + struct.pack("<I", 7) + content[12:])
    with pytest.raises(DataError, match="must have version 1 of the format, got 7"):
        opened()


def test_a_sound_shard_in_the_wrong_place_is_refused(path: Path, tokens: np.ndarray) -> None:
    opened = write(path, tokens)
    other = tokens.copy()
    other[-1] ^= 1
    write_shard(path, [other], MADE_WITH)
    with pytest.raises(DataError, match="is not the shard of its index: tokens and checksum must be 100000"):
        opened()
    write_shard(path, [tokens], "cd" * 32)
    with pytest.raises(
        DataError, match=f"made with another tokenizer .* must be {MADE_WITH}, got {'cd' * 32}"
    ):
        opened()


def test_a_write_that_fails_leaves_nothing(
    path: Path, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match=f"cannot write {path}: No space left on device"):
        write_shard(path, [tokens], MADE_WITH)
    assert list(path.parent.iterdir()) == []
