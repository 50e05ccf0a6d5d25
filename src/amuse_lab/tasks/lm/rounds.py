"""What has been tokenized since shards were last written: in memory, and on the disk for the next process."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from amuse_lab.files import replacing, sync
from amuse_lab.tasks.lm.index import SPLITS, Index, ShardEntry
from amuse_lab.tasks.lm.shards import write_shard
from amuse_lab.tasks.lm.tokenizer import Tokenizer, Tokens, storage
from amuse_lab.tasks.lm.workers import Chunk, Tokenized

_NOTE = ".round.tokens"
_KEPT = ("tokens", "bytes", "documents", "position", "skipped")


def _file(split: str) -> str:
    return f".{split}.tokens"


@dataclass
class Round:
    """Tokens on their way into a shard; every list holds training, then validation.

    Attributes:
        tokens: Number of tokens of each split.
        bytes: Length of the documents in UTF-8.
        documents: Number of documents of each split.
        position: Where the source goes on; None if nothing was added.
        skipped: Entries that the source has passed over since its beginning.
        unsaved: Tokens that are in memory alone.
    """

    tokens: list[int] = field(default_factory=lambda: [0, 0])
    bytes: list[int] = field(default_factory=lambda: [0, 0])
    documents: list[int] = field(default_factory=lambda: [0, 0])
    position: Any = None
    skipped: int = 0
    unsaved: int = 0
    _parts: list[list[Tokens]] = field(default_factory=lambda: [[], []])
    _saved: list[int] = field(default_factory=lambda: [0, 0])  # members of the parts

    def add(self, chunk: Chunk, tokenized: Tokenized, room: int | None, awaited: int) -> bool:
        """Add the documents of a chunk.

        Args:
            chunk: Documents that follow each other in the source, each marked as training or validation.
            tokenized: Tokens of these documents, with the token that ends each.
            room: Training tokens still wanted; None takes all.
            awaited: Validation documents that this round must have before reading may stop.

        Returns:
            True if nothing more is wanted; then documents at the end of the chunk may have been left out.
        """
        held = chunk.validation
        training = np.cumsum(np.where(held, 0, tokenized.lengths))
        kept = np.ones(len(held), bool)
        enough = False
        if room is not None and training[-1] >= room:
            last = int(np.searchsorted(training, room)) if room > 0 else -1
            missing = awaited - self.documents[1]
            later = slice(last + 1, None)
            kept[later] = held[later] if held[: last + 1].sum() < missing else False
            enough = bool(held.sum() >= missing)
        for split, chosen in enumerate((~held & kept, held & kept)):
            self._parts[split].append(tokenized.tokens[np.repeat(chosen, tokenized.lengths)])
            self.tokens[split] += int(tokenized.lengths[chosen].sum())
            self.documents[split] += int(chosen.sum())
            self.bytes[split] += int(tokenized.bytes[chosen].sum())
        self.unsaved += int(tokenized.lengths[kept].sum())
        self.position, self.skipped = chunk.position, chunk.skipped
        return enough

    def save(self, folder: Path, index: Index, tokenizer: Tokenizer) -> None:
        """Write to the disk what is not there yet, and then the note that says how much that is.

        Args:
            folder: Folder that is prepared, where the tokens are kept until they become shards.
            index: Index of everything before this round.
            tokenizer: Tokenizer that has made the tokens.
        """
        if not index.train and not index.validation:
            _write_tokenizer(folder, tokenizer)
            index.write(folder)
        sums = []
        for number, split in enumerate(SPLITS):
            parts, path = self._parts[number], folder / _file(split)
            with path.open("r+b" if path.exists() else "w+b") as file:
                file.truncate(sum(part.nbytes for part in parts[: self._saved[number]]))
                file.seek(0, 2)
                for part in parts[self._saved[number] :]:
                    file.write(part.tobytes())
            sync(path)
            self._saved[number] = len(parts)
            sums.append(_checksum(parts))
        note = {name: getattr(self, name) for name in _KEPT} | {"sums": sums, "shards": _shards(index)}
        with replacing(folder / _NOTE) as partial:
            partial.write_text(json.dumps(note), encoding="utf-8")
        self.unsaved = 0

    @classmethod
    def begun(cls, folder: Path, index: Index) -> Self:
        """Return the round that an earlier process has saved after the shards of an index; else none."""
        try:
            note: Mapping[str, Any] = json.loads((folder / _NOTE).read_bytes())
            if note["shards"] != _shards(index):  # it has become shards since
                return cls()
            kind = storage(index.vocabulary)
            parts = [
                np.fromfile(folder / _file(split), kind, count)
                for split, count in zip(SPLITS, note["tokens"], strict=True)
            ]
            if [_checksum([part]) for part in parts] != note["sums"]:
                return cls()
            kept = {name: note[name] for name in _KEPT}
        except (OSError, ValueError, KeyError, TypeError):
            return cls()
        return cls(**kept, _parts=[[part] for part in parts], _saved=[1, 1])

    def write(self, folder: Path, index: Index, tokenizer: Tokenizer) -> Index:
        """Write the shards, then the index with them in it, and return that.

        Args:
            folder: Folder that is prepared, which the shards and the index are written to.
            index: Index of everything before this round.
            tokenizer: Tokenizer that has made the tokens.
        """
        if not index.train and not index.validation:
            _write_tokenizer(folder, tokenizer)
        entries: dict[str, tuple[ShardEntry, ...]] = {}
        for number, split in enumerate(SPLITS):
            entries[split] = index.entries(split)
            if self.tokens[number]:
                name = f"{split}-{len(entries[split]):05}.bin"
                checksum = write_shard(folder / name, self._parts[number], index.sha256)
                entries[split] += (
                    ShardEntry(
                        name, self.tokens[number], self.documents[number], self.bytes[number], checksum
                    ),
                )
        index = replace(
            index,
            position=None if index.complete else self.position,
            skipped=self.skipped,
            train=entries["train"],
            validation=entries["validation"],
        )
        index.write(folder)
        discard(folder)
        return index


def discard(folder: Path) -> None:
    """Remove what a round has saved, once it has become shards."""
    for name in (_NOTE, *map(_file, SPLITS)):
        (folder / name).unlink(missing_ok=True)


def _write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    for name, content in tokenizer.files.items():
        with replacing(folder / name) as partial:
            partial.write_bytes(content)


def _shards(index: Index) -> list[int]:
    return [len(index.entries(split)) for split in SPLITS]


def _checksum(parts: list[Tokens]) -> int:
    total = 0
    for part in parts:
        total = zlib.crc32(part.tobytes(), total)
    return total
