"""What a language model is trained and measured on: prepared tokens on disk."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from amuse_lab.errors import require
from amuse_lab.files import data_folder
from amuse_lab.tasks.lm.bundled import BUNDLED, bundled_folder, parse_bundled, prepare_bundled
from amuse_lab.tasks.lm.index import SPLITS, Index
from amuse_lab.tasks.lm.loader import Batches, complete_index, evenly_spread, open_tokens
from amuse_lab.tasks.lm.tokenizer import TokenizerChoice

FINEWEB = "fineweb"
"""The name of the published experiments' text."""


class Text:
    """Prepared tokens in windows, each one longer than the context; every window comes once in an epoch.

    Args:
        source: A text that a package carries, in bytes or with a tokenizer, such as "shakespeare" and
            "shakespeare-gpt2", which is prepared when it is first used; else a folder's name in the data root
            or a path.
        vocabulary: How many tokens the model has.
        context: Number of targets of each window; that of a shorter validation text has fewer.
        batch: Windows of one training step.
        seed: Decides which windows each step sees.

    Attributes:
        fingerprint: Identifies all of the tokens and their tokenizer.
        sequences: Training windows of an epoch.

    Raises:
        DataError: If the folder is not there, not complete, or damaged.
        ConfigError: If the model's vocabulary is too small, or the text too short.
    """

    def __init__(self, source: str, *, vocabulary: int, context: int, batch: int, seed: int) -> None:
        carried = parse_bundled(source)
        folder = data_folder(source) if carried is None else prepare_bundled(*carried)
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
        """Return windows of a training step, shape (rows, context + 1): a pure function."""
        return self._batches(step, rows)

    def validation(self, limit: int | None = None, left_out: int = 0) -> NDArray[np.int64]:
        """Return the numbers of the windows of an evaluation, see `evenly_spread`.

        Raises:
            ConfigError: If none is left.
        """
        windows = evenly_spread(len(self._windows), limit, left_out)
        require(len(windows) > 0, "eval_left_out", f"below the {len(self._windows)} there are", left_out)
        return windows

    def validation_windows(self, numbers: NDArray[np.int64]) -> Tensor:
        """Return windows of the validation text, shape (windows, context + 1)."""
        return self._windows.read(numbers)

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


def text_folder(source: str) -> Path:
    """Return the folder that the tokens of what a config calls its data are in, or are going to be."""
    carried = parse_bundled(source)
    return data_folder(source) if carried is None else bundled_folder(*carried)


def vocabulary_of(source: str) -> int | None:
    """Return how many different tokens a text has; None if it is not there.

    Args:
        source: What a config calls its data, as for `Text`.

    Raises:
        DataError: If its index is damaged.
    """
    carried = parse_bundled(source)
    index = Index.read(text_folder(source))
    if index is None and carried is not None:
        return TokenizerChoice(carried[1]).vocabulary
    return None if index is None else index.vocabulary


def check_text(source: str, tokens: int) -> None:
    """Check that a text is there, without reading it.

    Args:
        source: What a config calls its data, as for `Text`.
        tokens: How many a run takes, for the command in the message.

    Raises:
        DataError: If it is not; the message has the command that prepares it.
    """
    carried = parse_bundled(source)
    if carried is not None:
        BUNDLED[carried[0]].check()
    else:
        complete_index(data_folder(source), *([f"--tokens {tokens}"] if source == FINEWEB else []))
