"""The index of a folder of prepared text: `index.json`, the last file that a round of shards changes."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from amuse_lab.errors import DataError
from amuse_lab.files import check_is_file, replacing
from amuse_lab.tasks.lm.shards import Shard

NAME = "index.json"
VERSION = 1
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class ShardEntry:
    """What the index knows of one shard.

    Attributes:
        file: Name of the file in the folder.
        tokens: Number of tokens, including those that end documents.
        documents: Number of documents.
        bytes: Length of the documents' text in UTF-8, in bytes.
        checksum: Checksum of all tokens, see `write_shard`.
    """

    file: str
    tokens: int
    documents: int
    bytes: int
    checksum: int


@dataclass(frozen=True)
class Request:
    """What a folder is prepared from and how; the same request always gives the same files.

    Attributes:
        source: What identifies the source and its split, in JSON's types.
        tokenizer: Name of the tokenizer: "bytes", "gpt2" or "bpe-N".
        tokens: Training tokens to stop after; None takes all there are.
        shard_tokens: Tokens after which a round of shards is written.
    """

    source: Mapping[str, Any]
    tokenizer: str
    tokens: int | None
    shard_tokens: int


@dataclass(frozen=True)
class Index:
    """What a folder of prepared text holds.

    Attributes:
        request: What the folder is prepared from and how.
        sha256: Checksum of the tokenizer, hexadecimal.
        vocabulary: Number of different tokens of the tokenizer.
        complete: Whether the request is fulfilled.
        position: Position at which reading continues; None at the beginning, and once complete.
        skipped: Entries that were passed over because they are not what they should be.
        train: The shards of the training text, in order.
        validation: The shards of the validation text.
    """

    request: Request
    sha256: str
    vocabulary: int
    complete: bool
    position: Any
    skipped: int = 0
    train: tuple[ShardEntry, ...] = ()
    validation: tuple[ShardEntry, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read the index of a folder; None where there is none.

        Raises:
            DataError: If it cannot be read or is damaged.
        """
        path = folder / NAME
        try:
            check_is_file(path)
            content = json.loads(path.read_bytes())
            version = content.pop("version")
            if version != VERSION:
                raise DataError(f"{path} must have version {VERSION} of the format, got {version!r}")
            content["request"] = Request(**content["request"])
            for split in SPLITS:
                content[split] = tuple(ShardEntry(**entry) for entry in content[split])
            index = cls(**content)
            index._check()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DataError(f"{path} is damaged: remove {folder} and prepare it again") from error
        return index

    def _check(self) -> None:
        """Raise TypeError or ValueError for what no preparation writes."""
        request = self.request
        limits = () if request.tokens is None else (request.tokens,)
        numbers = [self.vocabulary, request.shard_tokens, *limits]
        for split in SPLITS:
            for entry in self.entries(split):
                if not re.fullmatch(rf"{split}-[0-9]{{5,}}\.bin", entry.file):
                    raise ValueError(f"file must be one of {split}, got {entry.file!r}")
                numbers += [entry.tokens, entry.documents, entry.bytes + 1, entry.checksum + 1]
            if self.entries(split) and self.complete and not self.count(split, "bytes"):
                raise ValueError(f"{split} must have text")
        if bool(self.train) != bool(self.validation) and self.complete:
            raise ValueError("both splits must have text")
        numbers.append(self.skipped + 1)
        if not all(type(number) is int and number >= 1 for number in numbers):
            raise ValueError("numbers must be whole and positive")
        if len(bytes.fromhex(self.sha256)) != 32:
            raise ValueError("sha256 must have 32 bytes")
        kinds = ((request.source, dict), (request.tokenizer, str), (self.complete, bool))
        if not all(isinstance(value, kind) for value, kind in kinds):
            raise TypeError("source, tokenizer and complete must be an object, a name and true or false")

    def write(self, folder: Path) -> None:
        """Put the index into its folder, in place of an earlier one."""
        content = {"version": VERSION} | asdict(self)
        with replacing(folder / NAME) as partial:
            partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def entries(self, split: str) -> tuple[ShardEntry, ...]:
        """Return the shards of "train" or "validation"."""
        return {"train": self.train, "validation": self.validation}[split]

    def count(self, split: str, what: str) -> int:
        """Return the "tokens", "documents" or "bytes" of a split."""
        return sum(getattr(entry, what) for entry in self.entries(split))

    def open(self, folder: Path, split: str) -> list[Shard]:
        """Open the shards of a split.

        Raises:
            DataError: If one is missing, or is not what the index says.
        """
        return [
            Shard(folder / entry.file, tokens=entry.tokens, tokenizer=self.sha256, checksum=entry.checksum)
            for entry in self.entries(split)
        ]
