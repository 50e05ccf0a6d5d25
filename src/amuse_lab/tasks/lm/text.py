"""What a language model is trained and measured on: bytes held in memory, or prepared tokens on disk."""

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from amuse_lab.errors import require
from amuse_lab.files import data_folder
from amuse_lab.tasks.lm.data import DATASETS, Corpus, training_windows, validation_windows
from amuse_lab.tasks.lm.index import SPLITS, Index
from amuse_lab.tasks.lm.loader import Batches, complete_index, open_tokens
from amuse_lab.tasks.lm.on_board import ON_BOARD, on_board
from amuse_lab.tasks.lm.tokenizer import TokenizerChoice

FINEWEB = "fineweb"
"""The name of the published experiments' text."""


class Text(Protocol):
    """Windows of tokens, each one longer than the context.

    Attributes:
        fingerprint: Stands for all of the tokens, and what they stand for.
        sequences: Windows of the training text that do not overlap but for one token: an epoch.
    """

    fingerprint: str
    sequences: int

    def batch(self, step: int, rows: slice) -> Tensor:
        """Return windows of a training step, shape (rows, context + 1): a pure function."""

    def validation(self, limit: int | None) -> int:
        """Return how many windows an evaluation has: at most `limit`, or all."""

    def validation_windows(self, limit: int | None, rows: slice) -> Tensor:
        """Return some of the windows of an evaluation, which are evenly spread and always the same."""

    def bits_per_byte(self, loss: float) -> float:
        """Convert a mean validation loss in nats per token."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens."""


class Bytes:
    """A text in memory whose tokens are its bytes; training windows start anywhere.

    Args:
        corpus: Both parts of it.
        context: Targets per window.
        batch: Windows per step.
        seed: Decides which windows each step sees.
    """

    def __init__(self, corpus: Corpus, *, context: int, batch: int, seed: int) -> None:
        shortest = min(len(corpus.train), len(corpus.validation))
        require(context < shortest, "context", f"shorter than each text, here {shortest} bytes", context)
        self._corpus = corpus
        text = torch.cat((corpus.train, corpus.validation))
        self.fingerprint = hashlib.sha256(text.numpy().tobytes()).hexdigest()
        self.sequences = (len(corpus.train) - 1) // context
        self._length = context + 1
        self._batch = batch
        self._seed = seed

    def batch(self, step: int, rows: slice) -> Tensor:
        """Return windows of a training step."""
        windows = training_windows(
            self._corpus.train, seed=self._seed, step=step, batch=self._batch, length=self._length
        )
        return windows[rows]

    def validation(self, limit: int | None) -> int:
        """Return how many windows an evaluation has."""
        return len(validation_windows(self._corpus.validation, length=self._length, limit=limit))

    def validation_windows(self, limit: int | None, rows: slice) -> Tensor:
        """Return some of the windows of an evaluation."""
        return validation_windows(self._corpus.validation, length=self._length, limit=limit)[rows]

    def bits_per_byte(self, loss: float) -> float:
        """Convert a mean validation loss in nats per byte."""
        return loss / math.log(2)

    def encode(self, text: str) -> list[int]:
        """Return the bytes of a text."""
        return list(text.encode())

    def decode(self, tokens: list[int]) -> str:
        """Return the text of bytes."""
        return bytes(tokens).decode(errors="replace")


class Prepared:
    """Text that `amuse-lab prepare` has tokenized; every window comes once in an epoch.

    Args:
        source: Name of a folder in `data`, or a path; a text on board and a tokenizer, such as
            "shakespeare-gpt2", are prepared when they are first used.
        vocabulary: How many tokens the model has.
        context: Targets per window.
        batch: Windows per step.
        seed: Decides which windows each step sees.

    Raises:
        DataError: If the folder is not there, not complete, or damaged.
        ConfigError: If the model's vocabulary is too small, or the text too short.
    """

    def __init__(self, source: str, *, vocabulary: int, context: int, batch: int, seed: int) -> None:
        name, _, tokenizer = source.partition("-")
        folder = on_board(name, tokenizer) if name in ON_BOARD and tokenizer else source
        train, self._validation = open_tokens(folder, "train"), open_tokens(folder, "validation")
        self.fingerprint = _fingerprint(train.folder)
        least = train.vocabulary
        require(vocabulary >= least, "vocabulary", f"at least the {least} of {source}", vocabulary)
        windows = train.windows(context)
        self.sequences = len(windows)
        self._batches = Batches(windows, batch=batch, seed=seed)
        self._windows = self._validation.windows(min(context, len(self._validation) - 1))
        self._tokenizer = train.tokenizer

    def batch(self, step: int, rows: slice) -> Tensor:
        """Return windows of a training step."""
        return self._batches(step, rows)

    def validation(self, limit: int | None) -> int:
        """Return how many windows an evaluation has."""
        return len(self._windows.spread(limit))

    def validation_windows(self, limit: int | None, rows: slice) -> Tensor:
        """Return some of the windows of an evaluation."""
        return self._windows.read(self._windows.spread(limit)[rows])

    def bits_per_byte(self, loss: float) -> float:
        """Convert a mean validation loss in nats per token."""
        return self._validation.bits_per_byte(loss)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return [int(token) for token in self._tokenizer.encode([text])[0]]

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens."""
        return self._tokenizer.decode(tokens)


def _fingerprint(folder: Path) -> str:
    """SHA-256 of what the index of a folder tells of tokenizer and shards; takes no look at the tokens."""
    index = Index.read(folder)
    assert index is not None, "it has been opened"
    shards = [[asdict(entry) for entry in index.entries(split)] for split in SPLITS]
    return hashlib.sha256(json.dumps([index.sha256, index.vocabulary, shards]).encode()).hexdigest()


def open_text(source: str, *, vocabulary: int, context: int, batch: int, seed: int) -> Text:
    """Open what a config calls its data: a text by name, else a prepared folder.

    Raises:
        DataError: If it is missing or is not what it should be.
        ConfigError: If model and text do not fit.
    """
    if source in DATASETS:
        return Bytes(Corpus.of(DATASETS[source].load()), context=context, batch=batch, seed=seed)
    return Prepared(source, vocabulary=vocabulary, context=context, batch=batch, seed=seed)


def vocabulary_of(source: str) -> int | None:
    """Return how many different tokens a text has; None if it is not there or not tokenized yet.

    Args:
        source: As for `open_text`.

    Raises:
        DataError: If its index is damaged.
    """
    name, _, tokenizer = source.partition("-")
    if source in DATASETS:
        return 256
    if name in ON_BOARD and tokenizer:
        return TokenizerChoice(tokenizer).vocabulary
    index = Index.read(data_folder(source))
    return None if index is None else index.vocabulary


def check_text(source: str, tokens: int) -> None:
    """Check that a text is there, without reading it.

    Args:
        source: As for `open_text`.
        tokens: How many a run takes, for the command in the message.

    Raises:
        DataError: If it is not; the message has the command that prepares it.
    """
    if source in DATASETS:
        DATASETS[source].check()
    elif source.partition("-")[0] not in ON_BOARD:
        complete_index(data_folder(source), *([f"--tokens {tokens}"] if source == FINEWEB else []))
