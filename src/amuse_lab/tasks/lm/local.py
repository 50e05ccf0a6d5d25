"""Local text as documents: plain text, JSON lines, Parquet."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amuse_lab.errors import DataError
from amuse_lab.records import check_is_file
from amuse_lab.tasks.lm import optional
from amuse_lab.tasks.lm.sources import Documents, HashedSplit, Position

_PIECE = 16_384

Read = Callable[[Path, int], Iterator[tuple[str, int]]]
"""Reads a file from a place on; yields each document and the place after it."""


def _read_text(path: Path, place: int) -> Iterator[tuple[str, int]]:
    """Plain text in pieces of at most 16,384 bytes; places are bytes.

    A piece ends after an empty line, else after a line, else after a character: the last one that fits.
    """
    with path.open("rb") as file:
        while True:
            file.seek(place)
            block = file.read(_PIECE + 1)
            if not block:
                return
            piece = block if len(block) <= _PIECE else block[: _cut(block)]
            try:
                text = piece.decode()
            except UnicodeDecodeError as error:
                raise DataError(f"{path} must be UTF-8, but is not at byte {place + error.start}") from error
            place += len(piece)
            yield text, place


def _cut(block: bytes) -> int:
    """Where to end a piece of a text that goes on; the block has one byte more than a piece may have."""
    for line in (b"\n\n", b"\n"):
        found = block.rfind(line, 0, _PIECE)
        if found >= 0:
            return found + len(line)
    end = _PIECE
    while end > _PIECE - 3 and block[end] & 0xC0 == 0x80:  # inside a character
        end -= 1
    return end


def _read_lines(path: Path, place: int) -> Iterator[tuple[str, int]]:
    """JSON lines; places are bytes."""
    with path.open("rb") as file:
        file.seek(place)
        for line in file:
            start, place = place, place + len(line)
            if line.strip():
                try:
                    text = json.loads(line)["text"]
                    text.encode()
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                    raise _no_text(path, start) from error
                yield text, place


def _no_text(path: Path, place: int) -> DataError:
    number = 1
    with path.open("rb") as file:
        for line in file:
            if not place:
                break
            place -= len(line)
            number += 1
    return DataError(f'{path}, line {number}: must be an object with valid text under "text"')


def _read_parquet(path: Path, place: int) -> Iterator[tuple[str, int]]:
    """The column `text` of Parquet; places are rows."""
    parquet = optional.load("pyarrow.parquet", str(path))
    arrow = optional.load("pyarrow", str(path))
    try:
        with parquet.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                raise DataError(f"{path} must have a column text, has {', '.join(file.schema_arrow.names)}")
            first = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if first + rows > place:
                    texts = file.read_row_group(group, columns=["text"])["text"].to_pylist()
                    for text in texts[place - first :]:
                        place += 1
                        if not isinstance(text, str):
                            raise DataError(f"{path}, row {place}: must have text, got {type(text).__name__}")
                        yield text, place
                first += rows
    except (OSError, ValueError, arrow.ArrowException) as error:
        raise DataError(f"cannot read {path}: {str(error).partition(chr(10))[0]}") from error


_KINDS: Mapping[str, Read] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".jsonl": _read_lines,
    ".parquet": _read_parquet,
}
"""What is taken from a folder, by the end of its name. A file that is named itself may have another: text."""


class _Reading:
    """The documents of some files, one after the other."""

    def __init__(self, files: tuple[Path, ...], position: Position) -> None:
        self._files = files
        start: tuple[int, int] = position or (0, 0)
        self._file, self._place = start

    def __iter__(self) -> Iterator[str]:
        while self._file < len(self._files):
            path = self._files[self._file]
            try:
                for text, place in _KINDS.get(path.suffix, _read_text)(path, self._place):
                    self._place = place
                    yield text
            except OSError as error:
                raise DataError(f"cannot read {path}: {error.strerror}") from error
            self._file, self._place = self._file + 1, 0

    def position(self) -> Position:
        return [self._file, self._place]


@dataclass(frozen=True)
class LocalText:
    """One file, or those of a folder and the folders in it, in the order of their paths.

    A document is a line of JSON lines, a row of Parquet, or a piece of plain text.

    Attributes:
        files: What is read.
        identity: Of the files and the split. Names, sizes and times of change stand for the contents.
        split: Which documents are for validation.
    """

    files: tuple[Path, ...]
    identity: Mapping[str, Any]
    split: HashedSplit

    @classmethod
    def find(cls, path: Path, split: HashedSplit) -> "LocalText":
        """List the files.

        Args:
            path: A file or a folder.
            split: Which documents are for validation.

        Raises:
            DataError: If there are none, or the path is neither.
        """
        try:
            if path.is_dir():
                files = sorted(file for file in path.rglob("*") if file.suffix in _KINDS and file.is_file())
            else:
                check_is_file(path)
                files = [path]
            states = [(file.relative_to(path).as_posix(), file.stat()) for file in files]
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
        if not files:
            raise DataError(f"{path} must hold text, but has no file that ends with {', '.join(_KINDS)}")
        listing = "".join(f"{name}\0{state.st_size}\0{state.st_mtime_ns}\n" for name, state in states)
        identity = {
            "kind": "files",
            "files": len(files),
            "bytes": sum(state.st_size for _, state in states),
            "names_sizes_and_times": hashlib.sha256(listing.encode()).hexdigest(),
        }
        return cls(tuple(files), identity | split.identity, split)

    def documents(self, position: Position) -> Documents:
        """Begin to read."""
        return _Reading(self.files, position)

    def is_validation(self, number: int) -> bool:
        """Ask the split."""
        return self.split(number)
