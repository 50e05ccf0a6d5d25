"""Files that appear whole or not at all, and where prepared data lies. Imports nothing heavy."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from amuse_lab.errors import DataError

DATA_VARIABLE = "AMUSE_LAB_DATA"


def data_root() -> Path:
    """Return the folder that holds the folders of prepared data.

    The environment variable AMUSE_LAB_DATA, which `--data-root` sets, or else `data` in the current folder.
    """
    return Path(os.environ.get(DATA_VARIABLE) or "data")


def data_folder(name: str) -> Path:
    """Return the folder of one prepared data set.

    Args:
        name: A name, which stands for a folder in `data_root()`; or a path, which has a slash.
    """
    return Path(name) if "/" in name else data_root() / name


@contextmanager
def data_root_at(folder: str | None) -> Iterator[None]:
    """Context manager: `data_root()` returns this folder, also in child processes; None changes nothing."""
    before = os.environ.get(DATA_VARIABLE)
    try:
        if folder is not None:
            os.environ[DATA_VARIABLE] = folder
        yield
    finally:
        if folder is not None:
            os.environ.pop(DATA_VARIABLE)
            if before is not None:
                os.environ[DATA_VARIABLE] = before


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file atomically: a temporary path beside it takes its place if nothing is raised inside.

    Args:
        path: The file to create or to replace.

    Yields:
        The temporary path.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Force a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_is_file(path: Path) -> None:
    """Raise if a path exists but is not a regular file: reading a pipe, for example, would block.

    Raises:
        DataError: If it exists and is not a regular file. A missing file raises nothing here.
    """
    if path.exists() and not path.is_file():
        raise DataError(f"{path} must be a file")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Context manager: an exclusive lock on a folder; other processes that ask for it wait.

    Args:
        folder: Folder to lock, created if needed. The lock leaves no file in it and ends with the process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Write a folder atomically: a temporary one beside it takes its name if nothing is raised inside.

    Args:
        folder: The folder to create; it does not exist, or is empty. What an earlier process that was killed
            has left of its temporary folder is removed.

    Yields:
        The temporary folder, empty. Its files and entries are on the disk before it is renamed.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in (*partial.iterdir(), partial):
            sync(path)
        partial.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
