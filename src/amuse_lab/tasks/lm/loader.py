"""Prepared tokens as windows and batches, read through memory maps.

train = open_tokens("fineweb", "train")
batches = Batches(train.windows(512), batch=256, seed=0)
batches(step=7).shape                       # (256, 513): inputs are [:, :-1], targets [:, 1:]
batches(step=7, rows=slice(64, 128)).shape  # (64, 513): what the second of four ranks has of that
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amuse_lab.errors import DataError, require, unknown
from amuse_lab.files import data_folder
from amuse_lab.tasks.lm.index import SPLITS, Index
from amuse_lab.tasks.lm.tokenizer import Tokenizer, read_tokenizer
from amuse_lab.tasks.permutation import permute


def open_tokens(source: str | Path, split: str) -> "TokenData":
    """Open one split of prepared text.

    The structure of every shard is checked here; the tokens are checked block by block before they are first
    read, so that opening takes no longer for a large data set and nothing damaged is ever returned.

    Args:
        source: Name of a folder in the data root, or a path.
        split: Part to open, "train" or "validation".

    Raises:
        ConfigError: For another split.
        DataError: If the folder holds no complete data set, or a shard is missing or damaged.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    folder = data_folder(source) if isinstance(source, str) else source
    return TokenData(folder, split, complete_index(folder))


def complete_index(folder: Path, options: str = "--from PATH") -> Index:
    """Read the index of a folder whose preparation is complete.

    Args:
        folder: Folder of prepared text, which holds index.json.
        options: Options of the command that would prepare it.

    Raises:
        DataError: If there is none, or it is not complete; the message has the command that mends it.
    """
    index = Index.read(folder)
    if index is None:
        command = f"amuse-lab prepare {folder.name} {options}".strip()
        raise DataError(
            f"{folder.absolute()} holds no prepared text: {command}, or name other data with --task.data, "
            "another place with --data-root"
        )
    if not index.complete:
        raise DataError(
            f"the preparation of {folder} is not complete: run the same command again to continue"
        )
    return index


class TokenData:
    """One split of prepared text: a row of tokens, document after document.

    Args:
        folder: Folder of prepared text.
        split: Part of it, "train" or "validation".
        index: Index of the folder, which names its shards and its tokenizer.

    Attributes:
        folder: Folder of prepared text.
        vocabulary: Number of different tokens of the tokenizer; a model may have more.
        documents: Number of documents in the split.
        bytes: Length of the split's text in UTF-8, in bytes, without the tokens that end documents.
    """

    def __init__(self, folder: Path, split: str, index: Index) -> None:
        self.folder = folder
        self.vocabulary = index.vocabulary
        self.documents = index.count(split, "documents")
        self.bytes = index.count(split, "bytes")
        self._index = index
        self._shards = index.open(folder, split)
        self._starts = np.cumsum([0, *map(len, self._shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the data set.

        Raises:
            DataError: If its files are missing or altered.
        """
        return read_tokenizer(self._index.request.tokenizer, self._index.sha256, self.folder)

    def bits_per_byte(self, loss: float) -> float:
        """Convert a mean loss in nats per token to bits per byte of text, the same unit for all."""
        return loss / math.log(2) * len(self) / self.bytes

    def windows(self, context: int) -> "Windows":
        """Cut the tokens into windows with this many targets each.

        Raises:
            ConfigError: If not even one fits.
        """
        require(1 <= context < len(self), "context", f"in [1, {len(self)}) for {self.folder}", context)
        return Windows(self, context)

    def read(self, start: int, stop: int, into: NDArray[np.int64]) -> None:
        """Copy the tokens from `start` up to `stop`, across shards.

        Raises:
            DataError: If a block they lie in is damaged.
        """
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        done = 0
        while start < stop:
            begin, end = int(self._starts[shard]), min(stop, int(self._starts[shard + 1]))
            into[done : done + end - start] = self._shards[shard].read(start - begin, end - begin)
            done, start, shard = done + end - start, end, shard + 1


@dataclass(frozen=True)
class Windows:
    """The windows of a text: window i has the tokens from i * context on, one more than it has targets.

    So the targets of all windows tile the text, but for its first token and what is left at its end.

    Attributes:
        tokens: Row of tokens that is cut.
        context: Number of targets of each window, which has one token more.
    """

    tokens: TokenData
    context: int

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.context

    def read(self, indices: NDArray[np.int64]) -> Tensor:
        """Return windows by their numbers.

        Args:
            indices: Numbers of the windows, shape (windows,).

        Returns:
            Shape (windows, context + 1), int64.

        Raises:
            DataError: If one lies in a damaged block.
        """
        rows = np.empty((len(indices), self.context + 1), np.int64)
        for row, start in zip(rows, (indices * self.context).tolist(), strict=True):
            self.tokens.read(start, start + self.context + 1, into=row)
        return torch.from_numpy(rows)


def evenly_spread(windows: int, limit: int | None = None, left_out: int = 0) -> NDArray[np.int64]:
    """Return the numbers of at most so many windows of a text, evenly spread.

    Args:
        windows: How many windows the text has.
        limit: How many to return at most; None means all.
        left_out: Those that `evenly_spread(windows, left_out)` returns are not among them.
    """
    rest = np.arange(windows)
    if left_out:
        rest = np.setdiff1d(rest, evenly_spread(windows, left_out))
    count = len(rest) if limit is None else min(limit, len(rest))
    return rest[np.arange(count) * len(rest) // max(1, count)]


@dataclass(frozen=True)
class Batches:
    """Every window once in an epoch, in an order of its own for each epoch and seed.

    Sequence number s of the whole training, counted from 0, is the window that the permutation of epoch
    s // n puts in place s % n. A step takes the next `batch` of them, also across the end of an epoch. Each
    rank asks for its rows of a batch, so that the number of ranks does not change which windows a step has.

    Attributes:
        windows: Windows that are put in order.
        batch: Sequences per step, over all ranks.
        seed: Seed of the order of the windows.
    """

    windows: Windows
    batch: int
    seed: int

    def __post_init__(self) -> None:
        require(self.batch >= 1, "batch", "at least 1", self.batch)

    def indices(self, step: int, rows: slice = slice(None)) -> NDArray[np.int64]:
        """Return the numbers of the windows of a step: a pure function, equally fast for every step.

        Args:
            step: Number of the training step, from 0.
            rows: Which of the `batch` sequences.
        """
        places = step * self.batch + np.arange(self.batch)[rows]
        epochs, places = np.divmod(places, len(self.windows))
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            places[chosen] = permute(places[chosen], len(self.windows), f"{self.seed} {epoch}")
        return places

    def __call__(self, step: int, rows: slice = slice(None)) -> Tensor:
        """Return the windows of a step or some of its rows, shape (rows, context + 1), int64.

        Raises:
            DataError: If one lies in a damaged block.
        """
        return self.windows.read(self.indices(step, rows))
