"""Decoding JPEG in several processes.

Imports nothing heavy: every decoding process loads this module.
"""

import math
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from queue import SimpleQueue
from threading import RLock

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amuse_lab.errors import DataError
from amuse_lab.tasks.image.order import Visits, uniforms

_GROUP = 8  # images that a process decodes at a time
_WAITING = 64  # requests that are begun ahead and kept; beyond that the oldest are dropped
_RESIZED = 8 / 7  # the shorter side before an evaluation's crop, as a multiple of the crop: 256 of 224
_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10
_DRAWS = 1 + 4 * _ATTEMPTS
_FORMATS = ("JPEG", "PNG")  # one file of ImageNet is a PNG, whatever it is called; others may run programs

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Job:
    """One image to decode.

    Attributes:
        path: Path of the image file.
        visit: Stream, epoch and number of the image, for training; None for evaluation.
    """

    path: str
    visit: tuple[str, int, int] | None


def resized_crop(width: int, height: int, drawn: NDArray[np.float64]) -> Box:
    """Choose a random part of an image: 8 to 100 % of its area, of a shape between 3:4 and 4:3.

    Area, logarithm of the shape and place are uniform. The first of ten choices that fits is taken; if none
    does, the largest part of an allowed shape in the middle.

    Args:
        width: Width of the image, in pixels.
        height: Height of the image, in pixels.
        drawn: 40 numbers in [0, 1): area, shape, left and top of each choice.

    Returns:
        Left, top, right and bottom.

    References:
        arXiv 1409.4842, section 6.
    """
    low, high = (math.log(ratio) for ratio in _RATIO)
    for area, ratio, left, top in drawn.reshape(_ATTEMPTS, 4).tolist():
        pixels = width * height * (_AREA[0] + (_AREA[1] - _AREA[0]) * area)
        shape = math.exp(low + (high - low) * ratio)
        w, h = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(left * (width - w + 1)), int(top * (height - h + 1))
            return x, y, x + w, y + h
    w = min(width, max(1, round(height * _RATIO[1])))
    h = min(height, max(1, round(width / _RATIO[0])))
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + w, y + h


def decode(job: Job, size: int) -> Pixels:
    """Read an image, shape (size, size, 3).

    For training a random part of it, flipped every other time; for evaluation the middle of it.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        with Image.open(job.path, formats=_FORMATS) as file:
            return np.asarray(_seen(file.convert("RGB"), job, size))
    except (OSError, SyntaxError, ValueError, MemoryError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read {job.path}: {error or type(error).__name__}") from error


def _seen(image: Image.Image, job: Job, size: int) -> Image.Image:
    """What of an image a job asks for, size x size; the rest of it is not resized."""
    width, height = image.size
    if job.visit is None:
        scale = round(size * _RESIZED) / min(width, height)
        w, h = max(size, round(width * scale)), max(size, round(height * scale))
        x, y = (w - size) // 2, (h - size) // 2
        middle = (x * width / w, y * height / h, (x + size) * width / w, (y + size) * height / h)
        return image.resize((size, size), Image.Resampling.BILINEAR, box=middle)
    stream, epoch, number = job.visit
    drawn = uniforms(Visits(stream, np.array([epoch]), np.array([number])), _DRAWS)[0]
    part = image.crop(resized_crop(width, height, drawn[1:]))
    part = part.resize((size, size), Image.Resampling.BILINEAR)
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if drawn[0] < 0.5 else part


class _Worker:
    """A process that decodes, connected by a pipe whose other end no other process holds.

    It ends when the pipe is closed, hence also when this process ends for whatever reason. If it dies itself,
    even in the middle of an answer, `decoded` raises an error.
    """

    def __init__(self, size: int) -> None:
        # Held while the pipe is used: the garbage collector may call `end` in any thread, inside `decoded`.
        self._using = RLock()
        self._connection, other = Pipe()
        command = f"from {__name__} import serve; serve({other.fileno()}, {size})"
        with other, _no_signals():
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", command],
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)},
                pass_fds=[other.fileno()],
            )

    def decoded(self, jobs: Sequence[Job]) -> Pixels:
        """Return images, shape (images, size, size, 3).

        Raises:
            DataError: If one cannot be read, or the process is gone.
        """
        try:
            with self._using:
                self._connection.send(jobs)
                answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise DataError(
                "a decoding process died, perhaps for want of memory; fewer --task.workers need less"
            ) from error
        if isinstance(answer, DataError):
            raise answer
        pixels: Pixels = answer
        return pixels

    def end(self) -> None:
        """Let the process end, and wait for it."""
        with self._using:
            self._connection.close()
        self._process.wait()


@contextmanager
def _no_signals() -> Iterator[None]:
    """Context manager: processes started inside never receive Ctrl-C or SIGTERM; this process ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve(descriptor: int, size: int) -> None:
    """Decode what a connection asks for until it is closed: what a decoding process does."""
    with Connection(descriptor) as connection:
        try:
            while True:
                jobs: Sequence[Job] = connection.recv()
                try:
                    answer: Pixels | DataError = np.stack([decode(job, size) for job in jobs])
                except DataError as error:
                    answer = error
                connection.send(answer)
        except (EOFError, OSError):  # nobody asks, or nobody listens, any more
            return


class Decoder:
    """A pool of processes that decode images, some of them before they are asked for.

    The processes end when this object is deleted.

    Args:
        size: Height and width of the decoded images, in pixels.
        workers: Number of processes that decode.
    """

    def __init__(self, size: int, workers: int) -> None:
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        started = [_Worker(size) for _ in range(workers)]
        for worker in started:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(workers)  # each waits for one of the processes
        self._begun: dict[tuple[Job, ...], list[Future[Pixels]]] = {}
        weakref.finalize(self, _end, self._threads, started)

    def __call__(self, jobs: Sequence[Job], upcoming: Iterable[Sequence[Job]] = ()) -> Pixels:
        """Return images, shape (images, size, size, 3).

        Args:
            jobs: Images to decode, in the order of the result.
            upcoming: What will be asked for next, most likely: begun now.

        Raises:
            DataError: If an image cannot be read, or a process dies.
        """
        wanted = tuple(jobs)
        for key in (wanted, *map(tuple, upcoming)):
            if key not in self._begun:
                self._begun[key] = [
                    self._threads.submit(_decoded, self._idle, key[start : start + _GROUP])
                    for start in range(0, len(key), _GROUP)
                ]
        decoded = np.concatenate([future.result() for future in self._begun.pop(wanted)])
        while len(self._begun) > _WAITING:  # asked for other things than announced
            for future in self._begun.pop(next(iter(self._begun))):
                future.cancel()
        return decoded


def _decoded(idle: "SimpleQueue[_Worker]", jobs: Sequence[Job]) -> Pixels:
    worker = idle.get()
    try:
        return worker.decoded(jobs)
    finally:
        idle.put(worker)


def _end(threads: ThreadPoolExecutor, workers: Sequence[_Worker]) -> None:
    threads.shutdown(wait=False, cancel_futures=True)  # this may be one of them: it cannot join itself
    for worker in workers:
        worker.end()


def available_workers() -> int:
    """Return how many cores each of this machine's training processes may use, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
