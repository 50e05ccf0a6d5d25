"""Documents out of files: plain text, JSON lines, JSON, Parquet; also compressed with gzip or Zstandard."""

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amuse_lab.errors import DataError
from amuse_lab.tasks.lm import optional

_PIECE = 16_384

Bad = Callable[[DataError], None]
"""Called with the error about an invalid entry; raises it, or counts it and returns."""

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


def read_text(path: Path, place: int, bad: Bad) -> Iterator[tuple[str, int]]:
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


KINDS: Mapping[str, Read] = {
    ".txt": read_text,
    ".md": read_text,
    ".jsonl": _read_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
"""Reader by file ending, for the files of a folder. A file given by its own path may have any other: text."""

_COMPRESSED = (".gz", ".zst")


def kind(path: Path) -> str:
    """The end of a file's name that tells what is in it, compressed or not."""
    return Path(path.stem).suffix if path.suffix in _COMPRESSED else path.suffix
