"""Local text as documents, each for training or for validation."""

import hashlib
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amuse_lab.errors import DataError
from amuse_lab.files import check_is_file
from amuse_lab.tasks.lm.readers import KINDS, kind, read_text
from amuse_lab.tasks.lm.sources import Document, Documents, Position
from amuse_lab.tasks.lm.splits import Split, end_of_part, split_of

_SMALL = 2**26  # bytes of files that are read once before they are split


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
                for text, place in KINDS.get(kind(path), read_text)(path, self._place, self._bad):
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
            end = end_of_part(text, cut - before)
            return [Document(text[:end], False), Document(text[end:], True)]
        return [Document(text, before >= cut)]

    def position(self) -> Position:
        return [self._file, self._place, self._part, self._read, self._held, self.skipped]


@dataclass(frozen=True)
class LocalText:
    """One file, or those of a folder and the folders in it, in the order of their paths.

    A document is a line of JSON lines, an entry of JSON, a row of Parquet, or a piece of plain text.

    Attributes:
        files: Paths of the files, in the order they are read.
        identity: What identifies files and split; names, sizes and modification times stand for the contents.
        split: Rule for which documents are for validation.
        skip_bad: Whether entries that are not what they should be are passed over and counted.
    """

    files: tuple[Path, ...]
    identity: Mapping[str, Any]
    split: Split
    skip_bad: bool = False

    @property
    def validation_documents(self) -> int:
        """Return 0: documents are held out on the way, so that none has to be waited for."""
        return 0

    @classmethod
    def find(cls, path: Path, fraction: float | None = None, *, skip_bad: bool = False) -> "LocalText":
        """List the files, and read them once if they are small, to find out how they can be split.

        Args:
            path: A file or a folder.
            fraction: Share of the text that is for validation; None takes a tenth of up to 10 MB, else a
                hundredth.
            skip_bad: Whether entries that are not what they should be are passed over and counted.

        Raises:
            DataError: If there are none, the path is neither, or there is too little text.
        """
        try:
            if path.is_dir():
                files = sorted(file for file in path.rglob("*") if kind(file) in KINDS and file.is_file())
            else:
                check_is_file(path)
                files = [path]
            states = [(file.relative_to(path).as_posix(), file.stat()) for file in files]
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
        if not files:
            raise DataError(f"{path} must hold text, but has no file that ends with {', '.join(KINDS)}")
        listing = "".join(f"{name}\0{state.st_size}\0{state.st_mtime_ns}\n" for name, state in states)
        size = sum(state.st_size for _, state in states)
        split = Split(0.01 if fraction is None else fraction)
        if size <= _SMALL:
            reading = _Reading(tuple(files), split, None, skip_bad=skip_bad)
            split = split_of([len(text.encode()) for text, _ in reading], fraction, path)
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
