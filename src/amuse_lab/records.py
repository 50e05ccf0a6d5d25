"""The run folder: what a run leaves behind. Every file but the growing one appears whole or not at all."""

import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from safetensors.torch import save_file
from torch import Tensor

from amuse_lab.config import RunConfig, short_hash, to_json
from amuse_lab.errors import RecordError
from amuse_lab.files import check_is_file, replacing

METRICS = "metrics.jsonl"


def _finite(value: Any) -> Any:
    """The same, with None in place of every number that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class RunFolder:
    """One run's folder.

    Reading needs only the path. To write metrics, a process must `create` or `open` the folder, which locks
    it against other writers until `close()` or the end of the process.

    Attributes:
        path: Path of the folder, `RUNS/RECIPE/TIME-HASH` where `create` has made it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metrics: int | None = None

    @classmethod
    def create(cls, config: RunConfig, environment: Mapping[str, Any]) -> Self:
        """Create `runs/<recipe>/<UTC time>-<hash>/` with config.json, env.json and an empty metrics.jsonl.

        Args:
            config: Config of the run; it decides the folder's name and goes into config.json.
            environment: Versions, machine and command, from `amuse_lab.environment.describe`.

        Raises:
            RecordError: If the folder cannot be written; nothing of it is left then.
        """
        parent = config.runs / config.recipe
        name = f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%SZ}-{short_hash(config)}"
        try:
            folder = cls(_new_folder(parent, name))
            try:
                folder._lock()
                folder.write_json("env.json", environment)
                folder.write_json("config.json", to_json(config))  # last: with it, the folder is one
            except OSError:
                shutil.rmtree(folder.path, ignore_errors=True)
                raise
        except OSError as error:
            raise RecordError(
                f"cannot write a run folder in {parent}: {error.strerror}; choose another place with --runs"
            ) from error
        return folder

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a folder to go on with its run.

        Raises:
            DataError: If its metrics.jsonl is no file.
            RecordError: If it cannot be written, or another process is writing it.
        """
        folder = cls(path)
        try:
            folder._lock()
        except BlockingIOError as error:
            raise RecordError(f"{path} is in use: another process is running it") from error
        except OSError as error:
            raise RecordError(f"cannot write in {path}: {error.strerror}") from error
        return folder

    def _lock(self) -> None:
        check_is_file(self.path / METRICS)
        self._metrics = os.open(self.path / METRICS, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        fcntl.flock(self._metrics, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however it ends

    def close(self) -> None:
        """Release the lock, so that other processes can write."""
        if self._metrics is not None:
            os.close(self._metrics)
            self._metrics = None

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one object to metrics.jsonl."""
        assert self._metrics is not None, "the folder is open"
        rest = (json.dumps(_finite(line), allow_nan=False) + "\n").encode()
        while rest:
            rest = rest[os.write(self._metrics, rest) :]

    def metrics(self) -> list[dict[str, Any]]:
        """Read the lines of metrics.jsonl, except for a last one that was torn by the end of its process.

        Raises:
            RecordError: If another line is damaged.
        """
        return [line for line, _ in self._lines()]

    def _lines(self) -> Iterator[tuple[dict[str, Any], int]]:
        """The whole lines, each with the number of bytes up to its end."""
        end = 0
        path = self.path / METRICS
        check_is_file(path)
        with path.open("rb") as metrics:
            for number, line in enumerate(metrics, start=1):
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                try:
                    content = json.loads(line)
                    whole = isinstance(content["step"], int)
                except (ValueError, TypeError, KeyError, RecursionError):
                    whole = False
                if not whole:
                    raise RecordError(f"{path}, line {number}: must be an object with a step; remove it")
                yield content, end

    def cut_metrics(self, step: int) -> None:
        """Remove the lines of later steps than this one, and a torn last line.

        Raises:
            RecordError: If another line is damaged; nothing is removed then.
        """
        assert self._metrics is not None, "the folder is open"
        ends = [end for line, end in self._lines() if line["step"] <= step]
        os.ftruncate(self._metrics, max(ends, default=0))

    def sync_metrics(self) -> int:
        """Force what was logged to the disk; returns the size of metrics.jsonl in bytes."""
        assert self._metrics is not None, "the folder is open"
        os.fsync(self._metrics)
        return os.fstat(self._metrics).st_size

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write one object as a file for people and programs."""
        self.write_text(name, json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")

    def write_text(self, name: str, content: str) -> None:
        """Write a text file."""
        with replacing(self.path / name) as partial:
            partial.write_text(content, encoding="utf-8")

    def write_model(self, state: Mapping[str, Tensor]) -> None:
        """Write model.safetensors."""
        with replacing(self.path / "model.safetensors") as partial:
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, partial)
            shutil.copymode(self.path / METRICS, partial)  # safetensors lets only the owner read


def _new_folder(parent: Path, name: str) -> Path:
    """Create a folder that did not exist, counting up where runs start within the same second."""
    parent.mkdir(parents=True, exist_ok=True)
    path, count = parent / name, 1
    while True:
        try:
            path.mkdir()
        except FileExistsError:
            count += 1
            path = parent / f"{name}-{count}"
        else:
            return path
