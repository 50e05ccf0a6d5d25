"""Local text as documents: plain text, JSON lines, JSON, Parquet; also compressed with gzip or Zstandard."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amuse_lab.errors import DataError, require
from amuse_lab.files import check_is_file
from amuse_lab.tasks.lm import optional
from amuse_lab.tasks.lm.sources import Document, Documents, Position

_PIECE = 16_384
_SMALL = 2**26  # bytes of files that are read once before they are split
_FEW = 10_000_000  # bytes of text below which a tenth of it is for validation, above it a hundredth

Bad = Callable[[DataError], None]
"""Is told of an entry that is not what it should be; raises the error, or counts and returns."""

Read = Callable[[Path, int, Bad], Iterator[tuple[str, int]]]
"""Reads a file from a place on; yields each document and the place after it."""


@contextmanager
def _opened(path: Path, place: int = 0) -> Iterator[Any]:
    """Context manager: the bytes of a file, decompressed, from a place on."""
    if path.suffix == ".zst":
        arrow = optional.load("pyarrow", str(path))
        with arrow.input_stream(str(path), compression="zstd") as stream:
            while place and (skipped := stream.read(min(place, 2**20))):
                place -= len(skipped)
            yield stream
        return
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        file.seek(place)
        yield file


def _read_text(path: Path, place: int, bad: Bad) -> Iterator[tuple[str, int]]:
    """Plain text in pieces of at most 16,384 bytes; places are bytes.

    A piece ends after an empty line, else after a line, else after a character: the last one that fits.
    """
    with _opened(path, place) as file:
        block = b""
        while True:
            while len(block) <= _PIECE and (more := file.read(_PIECE + 1 - len(block))):
                block += more
            if not block:
                return
            size = len(block) if len(block) <= _PIECE else _cut(block)
            text = _decoded(block[:size], path, place, bad)
            block, place = block[size:], place + size
            yield text, place


def _decoded(piece: bytes, path: Path, place: int, bad: Bad) -> str:
    """The text of a piece, without the lines that are not UTF-8."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        lines = []
        for line in piece.splitlines(keepends=True):
            try:
                lines.append(line.decode())
            except UnicodeDecodeError as error:
                bad(DataError(f"{path} must be UTF-8, but is not at byte {place + error.start}"))
            place += len(line)
        return "".join(lines)


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


def _read_lines(path: Path, place: int, bad: Bad) -> Iterator[tuple[str, int]]:
    """JSON lines; places are bytes."""
    with _opened(path, place) as file:
        for line in _lines(file):
            start, place = place, place + len(line)
            if line.strip():
                try:
                    text = json.loads(line)["text"]
                    text.encode()
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                    bad(_no_text(path, start))
                    continue
                yield text, place


def _lines(file: Any) -> Iterator[bytes]:
    """The lines of a stream, which need not have any notion of lines itself."""
    rest = b""
    while block := file.read(2**20):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield line + b"\n"
    if rest:
        yield rest


def _no_text(path: Path, place: int) -> DataError:
    number = 1
    with _opened(path) as file:
        for line in _lines(file):
            if not place:
                break
            place -= len(line)
            number += 1
    return DataError(f'{path}, line {number}: must be an object with valid text under "text"')


def _read_json(path: Path, place: int, bad: Bad) -> Iterator[tuple[str, int]]:
    """One JSON value, a list of documents or one document; places count entries of the list.

    A file of JSON lines that is called `.json` is read as such; its places are bytes.
    """
    with _opened(path) as file:
        content = b"".join(_lines(file))
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            yield from _read_lines(path, place, bad)
            return
        raise DataError(f"{path} must be JSON: {error}") from error
    entries = value if isinstance(value, list) else [value]
    for number, entry in enumerate(entries[place:], start=place + 1):
        text = entry.get("text") if isinstance(entry, dict) else entry
        if isinstance(text, str) and _is_utf8(text):
            yield text, number
        else:
            bad(DataError(f'{path}, entry {number}: must be text, or an object with text under "text"'))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_parquet(path: Path, place: int, bad: Bad) -> Iterator[tuple[str, int]]:
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
                        if isinstance(text, str):
                            yield text, place
                        else:
                            kind = type(text).__name__
                            bad(DataError(f"{path}, row {place}: must have text, got {kind}"))
                first += rows
    except (OSError, ValueError, arrow.ArrowException) as error:
        raise DataError(f"cannot read {path}: {str(error).partition(chr(10))[0]}") from error


_KINDS: Mapping[str, Read] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".jsonl": _read_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
"""What is taken from a folder, by the end of its name. A file that is named itself may have another: text."""

_COMPRESSED = (".gz", ".zst")


def _kind(path: Path) -> str:
    """The end of a file's name that tells what is in it, compressed or not."""
    return Path(path.stem).suffix if path.suffix in _COMPRESSED else path.suffix


@dataclass(frozen=True)
class Split:
    """Which documents are for validation, by their size in UTF-8.

    Attributes:
        fraction: Of the text that is for validation, nearly.
        cut: None holds out whole documents: one whenever what is held out is behind by more than half of it.
            A number of bytes holds out what comes after it, where the documents are too few or too unequal.
    """

    fraction: float
    cut: int | None = None

    def __post_init__(self) -> None:
        require(0 < self.fraction < 1, "--validation", "in (0, 1)", self.fraction)

    def takes(self, size: int, before: int, held: int) -> bool:
        """Return True if a document is for validation.

        Args:
            size: Of the document, in bytes.
            before: Of all documents before it.
            held: Of those before it that are for validation.
        """
        return self.fraction * (before + size) - held >= size / 2


class _Reading:
    """The documents of some files, one after the other."""

    def __init__(self, files: tuple[Path, ...], split: Split, position: Position, *, skip_bad: bool) -> None:
        self._files = files
        self._split = split
        self._skip_bad = skip_bad
        start: tuple[int, int, int, int, int, int] = position or (0, 0, 0, 0, 0, 0)
        self._file, self._place, self._part, self._read, self._held, self.skipped = start

    def _bad(self, error: DataError) -> None:
        if not self._skip_bad:
            raise DataError(f"{error}; --skip-bad passes over such entries") from error
        self.skipped += 1

    def __iter__(self) -> Iterator[Document]:
        while self._file < len(self._files):
            path = self._files[self._file]
            try:
                for text, place in _KINDS.get(_kind(path), _read_text)(path, self._place, self._bad):
                    parts, size = self._divided(text), len(text.encode())
                    for part in parts[self._part :]:
                        self._part += 1
                        if self._part == len(parts):
                            self._place, self._part = place, 0
                            self._read += size
                            self._held += size if part.validation else 0
                        yield part
            except OSError as error:
                raise DataError(f"cannot read {path}: {error.strerror or error}") from error
            except (EOFError, zlib.error) as error:
                raise DataError(f"{path} is damaged: {error}") from error
            self._file, self._place = self._file + 1, 0

    def _divided(self, text: str) -> list[Document]:
        """A document with its split; two if it lies across the cut."""
        size = len(text.encode())
        before, cut = self._read, self._split.cut
        if cut is None:
            return [Document(text, self._split.takes(size, before, self._held))]
        if before < cut < before + size:
            end = _end_of_part(text, cut - before)
            return [Document(text[:end], False), Document(text[end:], True)]
        return [Document(text, before >= cut)]

    def position(self) -> Position:
        return [self._file, self._place, self._part, self._read, self._held, self.skipped]


def _end_of_part(text: str, size: int) -> int:
    """Characters of the part of a text that has about so many bytes; it ends with a line if it has one."""
    end = max(1, len(text.encode()[:size].decode(errors="ignore")))
    line = text.rfind("\n", end // 2, end) + 1
    return min(line or end, len(text) - 1) or 1


@dataclass(frozen=True)
class LocalText:
    """One file, or those of a folder and the folders in it, in the order of their paths.

    A document is a line of JSON lines, an entry of JSON, a row of Parquet, or a piece of plain text.

    Attributes:
        files: What is read.
        identity: Of the files and the split. Names, sizes and times of change stand for the contents.
        split: What is for validation.
        skip_bad: Whether entries that are not what they should be are passed over and counted.
    """

    files: tuple[Path, ...]
    identity: Mapping[str, Any]
    split: Split
    skip_bad: bool = False

    @property
    def validation_documents(self) -> int:
        """None has to be waited for: they are held out on the way."""
        return 0

    @classmethod
    def find(cls, path: Path, fraction: float | None = None, *, skip_bad: bool = False) -> "LocalText":
        """List the files, and read them once if they are small, to find out how they can be split.

        Args:
            path: A file or a folder.
            fraction: Of the text that is for validation; None takes a tenth of up to 10 MB, else a hundredth.
            skip_bad: Whether entries that are not what they should be are passed over and counted.

        Raises:
            DataError: If there are none, the path is neither, or there is too little text.
        """
        try:
            if path.is_dir():
                files = sorted(file for file in path.rglob("*") if _kind(file) in _KINDS and file.is_file())
            else:
                check_is_file(path)
                files = [path]
            states = [(file.relative_to(path).as_posix(), file.stat()) for file in files]
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
        if not files:
            raise DataError(f"{path} must hold text, but has no file that ends with {', '.join(_KINDS)}")
        listing = "".join(f"{name}\0{state.st_size}\0{state.st_mtime_ns}\n" for name, state in states)
        size = sum(state.st_size for _, state in states)
        split = Split(0.01 if fraction is None else fraction)
        if size <= _SMALL:
            reading = _Reading(tuple(files), split, None, skip_bad=skip_bad)
            split = _split_of([len(text.encode()) for text, _ in reading], fraction, path)
        identity = {
            "kind": "files",
            "files": len(files),
            "bytes": size,
            "names_sizes_and_times": hashlib.sha256(listing.encode()).hexdigest(),
            "validation": split.fraction,
            "cut": split.cut,
            "skip_bad": skip_bad,
        }
        return cls(tuple(files), identity, split, skip_bad)

    def documents(self, position: Position) -> Documents:
        """Begin to read."""
        return _Reading(self.files, self.split, position, skip_bad=self.skip_bad)


def _split_of(sizes: list[int], fraction: float | None, path: Path) -> Split:
    """Choose a split for documents of these sizes: whole ones if they make up about the right share."""
    total = sum(sizes)
    if total < 2:
        raise DataError(f"{path} must hold text to train on and to validate with, but has {total} bytes")
    if fraction is None:
        fraction = 0.1 if total <= _FEW else 0.01
    split = Split(fraction)
    before = held = 0
    for size in sizes:
        held += size if split.takes(size, before, held) else 0
        before += size
    if fraction / 2 <= held / total <= min(2 * fraction, (1 + fraction) / 2):
        return split
    return Split(fraction, cut=min(total - 1, max(1, round(total * (1 - fraction)))))
