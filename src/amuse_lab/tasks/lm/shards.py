"""A shard: one file of tokens with a header and checksums that reveal any damage.

    bytes        content, all numbers little-endian
    0            b"AMUSETOK"
    8            version of this format, 4 bytes
    12           bytes per token, 4 bytes: 2 or 4, unsigned
    16           tokens, 8 bytes
    24           SHA-256 of the tokenizer, 32 bytes
    56           CRC-32 of the table at the end, 4 bytes
    60           CRC-32 of the header up to here, 4 bytes
    64           the tokens
    then         a table: the CRC-32 of each 65,536 bytes of tokens, 4 bytes each

Because every block has a checksum, opening a shard is fast, and yet no token is returned from an unchecked
block: each block is checked once, when it is first read. A billion bytes take about a second in all.
"""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amuse_lab.errors import DataError
from amuse_lab.files import check_is_file, replacing
from amuse_lab.tasks.lm.tokenizer import Tokens

MAGIC = b"AMUSETOK"
VERSION = 1
BLOCK = 65_536

_HEADER = struct.Struct("<8sIIQ32sI")
_SUM = struct.Struct("<I")
_START = _HEADER.size + _SUM.size
_TYPES = {2: np.dtype("<u2"), 4: np.dtype("<u4")}


def write_shard(path: Path, tokens: Sequence[Tokens], tokenizer: str) -> int:
    """Write a shard; it appears whole or not at all.

    Args:
        path: Path of the file to write.
        tokens: What it holds, in pieces of the same type.
        tokenizer: SHA-256 of the tokenizer, hexadecimal.

    Returns:
        The checksum of its table, which stands for all of its tokens.

    Raises:
        DataError: If the file cannot be written.
    """
    joined = np.concatenate(tokens)
    content = joined.data.cast("B")
    sums = [zlib.crc32(content[start : start + BLOCK]) for start in range(0, len(content), BLOCK)]
    table = np.array(sums, "<u4").tobytes()
    checksum = zlib.crc32(table)
    header = _HEADER.pack(MAGIC, VERSION, joined.itemsize, len(joined), bytes.fromhex(tokenizer), checksum)
    try:
        with replacing(path) as partial, partial.open("wb") as file:
            file.write(header + _SUM.pack(zlib.crc32(header)))
            file.write(content)
            file.write(table)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
    return checksum


class Shard:
    """A shard on disk, mapped into memory. Its structure is checked when it is opened, its tokens when read.

    Args:
        path: Path of the file.
        tokens: Number of tokens that it must hold.
        tokenizer: SHA-256 of the tokenizer it must be made with, hexadecimal.
        checksum: Checksum that its table must have, from `write_shard`.

    Raises:
        DataError: If it is missing, truncated, not a shard, or not the one that these values describe.
    """

    def __init__(self, path: Path, *, tokens: int, tokenizer: str, checksum: int) -> None:
        self._path = path
        try:
            check_is_file(path)
            size = path.stat().st_size
            with path.open("rb") as file:
                start = file.read(_START)
        except FileNotFoundError as error:
            raise DataError(f"{path} is missing: {_again(path)}") from error
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        if len(start) < _START:
            raise self._damaged(f"it must begin with {_START} bytes of header, got {len(start)}")
        header = start[: _HEADER.size]
        magic, version, itemsize, count, made_with, found = _HEADER.unpack(header)
        if magic != MAGIC:
            raise DataError(f"{path} is not a shard: it must begin with {MAGIC!r}, got {magic!r}")
        if version != VERSION:
            raise DataError(
                f"{path} must have version {VERSION} of the format, got {version}: {_again(path)}"
            )
        if zlib.crc32(header) != _SUM.unpack(start[_HEADER.size :])[0]:
            raise self._damaged("its header does not have its checksum")
        if made_with.hex() != tokenizer:
            raise DataError(
                f"{path} was made with another tokenizer than its index says: sha256 must be {tokenizer}, "
                f"got {made_with.hex()}: {_again(path)}"
            )
        if (count, found) != (tokens, checksum):
            raise DataError(
                f"{path} is not the shard of its index: tokens and checksum must be {tokens} and "
                f"{checksum:08x}, got {count} and {found:08x}: {_again(path)}"
            )
        blocks = -(-count * itemsize // BLOCK)
        expected = _START + count * itemsize + blocks * _SUM.size
        if size != expected:
            raise self._damaged(f"it must have {expected} bytes, got {size}")
        kind: Any = _TYPES[itemsize]
        self._tokens: Tokens = np.memmap(path, kind, mode="r", offset=_START, shape=(count,))
        self._sums = np.fromfile(path, "<u4", offset=_START + count * itemsize)
        if zlib.crc32(self._sums.tobytes()) != checksum:
            raise self._damaged("its table of checksums does not have its own")
        self._checked = np.zeros(blocks, bool)

    def _damaged(self, how: str) -> DataError:
        return DataError(f"{self._path} is damaged: {how}: {_again(self._path)}")

    def __len__(self) -> int:
        return len(self._tokens)

    def read(self, start: int, stop: int) -> Tokens:
        """Return the tokens from `start` up to `stop`, which must lie inside.

        Raises:
            DataError: If a block they lie in is damaged.
        """
        itemsize = self._tokens.itemsize
        for block in range(start * itemsize // BLOCK, -(-stop * itemsize // BLOCK)):
            if not self._checked[block]:
                self._check(block)
        tokens: Tokens = self._tokens[start:stop]
        return tokens

    def _check(self, block: int) -> None:
        per_block = BLOCK // self._tokens.itemsize
        content = self._tokens[block * per_block : (block + 1) * per_block]
        if zlib.crc32(content.data) != self._sums[block]:
            raise self._damaged(f"its tokens from {block * per_block} on do not have their checksum")
        self._checked[block] = True

    def verify(self) -> None:
        """Check every token.

        Raises:
            DataError: If one is damaged.
        """
        for block in range(len(self._checked)):
            self._check(block)


def _again(path: Path) -> str:
    return f"remove {path.parent} and prepare it again"
