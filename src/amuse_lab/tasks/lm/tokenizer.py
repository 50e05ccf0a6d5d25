"""Text to tokens and back: bytes, GPT-2's byte pairs, and byte pairs trained here.

Imports nothing heavy: every tokenizing process loads this module.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from amuse_lab.errors import ConfigError, DataError, require, unknown
from amuse_lab.tasks.lm import optional
from amuse_lab.tasks.lm.gpt2_files import find_gpt2, read_gpt2

END_OF_TEXT = "<|endoftext|>"
VOCAB, MERGES = "vocab.json", "merges.txt"
"""Names of a byte-pair tokenizer's files in a folder of prepared data."""

_TRAINING_CHARACTERS = 2**26  # more text no longer changes a vocabulary much, and training holds all of it
_SMALLEST = 257  # every byte, and the end of a document

Tokens = NDArray[Any]
"""Shape (length,), of the unsigned type that `storage` names."""


def storage(vocabulary: int) -> np.dtype[Any]:
    """Return the type that tokens are stored in: two little-endian bytes if they suffice, else four."""
    return np.dtype("<u2" if vocabulary <= 2**16 else "<u4")


class Tokenizer(Protocol):
    """Turns text into tokens and back."""

    @property
    def name(self) -> str:
        """What `--tokenizer` calls it."""

    @property
    def vocabulary(self) -> int:
        """How many different tokens there are."""

    @property
    def end_of_text(self) -> int:
        """The token that ends a document."""

    @property
    def sha256(self) -> str:
        """Checksum that identifies it: tokenizers with the same checksum give the same tokens."""

    @property
    def files(self) -> Mapping[str, bytes]:
        """What `read_tokenizer` needs beside the name, by file name."""

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the tokens of each text, without the end of a document, which no text stands for."""

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text; tokens beyond the vocabulary, which padded models have, stand for nothing."""


@dataclass(frozen=True)
class ByteTokenizer:
    """The 256 bytes of UTF-8. The byte 0, which text does not contain, ends a document."""

    name: str = "bytes"
    vocabulary: int = 256
    end_of_text: int = 0

    @property
    def sha256(self) -> str:
        """Checksum of the name, which is all that there is to this tokenizer."""
        return hashlib.sha256(b"bytes").hexdigest()

    @property
    def files(self) -> Mapping[str, bytes]:
        """Return no files: the name is enough."""
        return {}

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the bytes of each text."""
        kind = storage(self.vocabulary)
        return [np.frombuffer(text.encode(), np.uint8).astype(kind) for text in texts]

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text; bytes that are not UTF-8 become replacement characters."""
        return bytes(token for token in tokens if token < 256).decode(errors="replace")


@dataclass(frozen=True)
class BytePairTokenizer:
    """Byte-level byte pairs, cut into words as for GPT-2; computed by the package `tokenizers`.

    Attributes:
        name: Name of the tokenizer, as `--tokenizer` takes it: "gpt2" or "bpe-N".
        vocab: The file of tokens and their numbers, JSON.
        merges: The file of pairs in the order they are merged, after one line of version.
    """

    name: str
    vocab: bytes
    merges: bytes

    def __reduce__(self) -> tuple[Any, ...]:
        # Without what is cached: another process builds its own.
        return BytePairTokenizer, (self.name, self.vocab, self.merges)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        numbers: dict[str, int] = json.loads(self.vocab)
        return numbers

    @cached_property
    def _model(self) -> Any:
        package = optional.load("tokenizers", f"the tokenizer {self.name}")
        pairs = [tuple(line.split(" ")) for line in self.merges.decode().splitlines()[1:]]
        model = package.Tokenizer(package.models.BPE(self._numbers, pairs))
        model.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = package.decoders.ByteLevel()
        return model

    @property
    def vocabulary(self) -> int:
        """How many different tokens there are."""
        return len(self._numbers)

    @property
    def end_of_text(self) -> int:
        """The token `<|endoftext|>`."""
        return self._numbers[END_OF_TEXT]

    @cached_property
    def sha256(self) -> str:
        """Checksum of both files."""
        return hashlib.sha256(self.vocab + self.merges).hexdigest()

    @property
    def files(self) -> Mapping[str, bytes]:
        """Return both files by name."""
        return {VOCAB: self.vocab, MERGES: self.merges}

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the tokens of each text."""
        kind = storage(self.vocabulary)
        return [np.array(found.ids, dtype=kind) for found in self._model.encode_batch_fast(list(texts))]

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text; bytes that are not UTF-8 become replacement characters."""
        text: str = self._model.decode(list(tokens), skip_special_tokens=False)
        return text


def train_byte_pairs(name: str, vocabulary: int, texts: Iterable[str]) -> BytePairTokenizer:
    """Train byte pairs on the beginning of a text, up to 2^26 characters.

    Args:
        name: Name that the tokenizer gets, such as "bpe-4096".
        vocabulary: Tokens, the end of a document among them; fewer where the text gives no more.
        texts: Documents to train on; reading stops after 2^26 characters.

    Raises:
        DataError: If the package `tokenizers` is missing.
    """
    package = optional.load("tokenizers", f"the tokenizer {name}")
    model = package.Tokenizer(package.models.BPE())
    model.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = package.trainers.BpeTrainer(
        vocab_size=vocabulary - 1,
        initial_alphabet=package.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(_beginning(texts), trainer)
    trained = json.loads(model.to_str())["model"]
    numbers = dict(sorted(trained["vocab"].items(), key=lambda entry: entry[1]))
    numbers[END_OF_TEXT] = len(numbers)
    merges = "".join(f"{left} {right}\n" for left, right in trained["merges"])
    return BytePairTokenizer(name, json.dumps(numbers).encode(), f"#version: 0.2\n{merges}".encode())


def _beginning(texts: Iterable[str]) -> Iterator[str]:
    left = _TRAINING_CHARACTERS
    for text in texts:
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return


@dataclass(frozen=True)
class TokenizerChoice:
    """A tokenizer as asked for.

    Attributes:
        name: "bytes", "gpt2" or "bpe-N" with at most N tokens.
        files: GPT-2's two files, tokens and merges; None looks for them where packages keep them.
    """

    name: str
    files: tuple[Path, Path] | None = None

    def __post_init__(self) -> None:
        if self.name not in ("bytes", "gpt2") and self._trained is None:
            raise unknown("tokenizer", self.name, ("bytes", "gpt2", "bpe-4096"))
        if self._trained is not None:
            require(self._trained >= _SMALLEST, "bpe-N", f"at least bpe-{_SMALLEST}", self.name)
        if self.files is not None and self.name != "gpt2":
            raise ConfigError(f"--tokenizer-files are those of gpt2; {self.name} has none")

    @property
    def _trained(self) -> int | None:
        found = re.fullmatch(r"bpe-([1-9]\d{0,6})", self.name)
        return int(found[1]) if found else None

    @property
    def vocabulary(self) -> int:
        """The most tokens that it can have."""
        return {"bytes": 256, "gpt2": 50_257}.get(self.name) or self._trained or 0

    def make(self, training_texts: Callable[[], Iterable[str]]) -> Tokenizer:
        """Find or train the tokenizer.

        Args:
            training_texts: Begins to read the training documents; called only to train on them.

        Raises:
            DataError: If files or packages are missing, or files differ from GPT-2's.
        """
        if self.name == "bytes":
            return ByteTokenizer()
        if self._trained is not None:
            return train_byte_pairs(self.name, self._trained, training_texts())
        return BytePairTokenizer(self.name, *read_gpt2(self.files or find_gpt2()))


def read_tokenizer(name: str, sha256: str, folder: Path) -> Tokenizer:
    """Read the tokenizer of a folder of prepared data.

    Args:
        name: Name of the tokenizer, as on the command line.
        sha256: Checksum that the tokenizer must have, hexadecimal.
        folder: Folder that its files are in.

    Raises:
        DataError: If files are missing or differ from those the data was prepared with.
    """
    if name == "bytes":
        tokenizer: Tokenizer = ByteTokenizer()
    else:
        try:
            files = [(folder / file).read_bytes() for file in (VOCAB, MERGES)]
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
        tokenizer = BytePairTokenizer(name, *files)
    if tokenizer.sha256 != sha256:
        raise DataError(
            f"the tokenizer {name} in {folder} is not the one of its index: sha256 must be {sha256}, "
            f"got {tokenizer.sha256}"
        )
    return tokenizer
