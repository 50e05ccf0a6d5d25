"""Decoding JPEG in several processes.

Imports nothing heavy: every decoding process loads this module.
"""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amuse_lab.errors import DataError
from amuse_lab.tasks.image.order import Visits, uniforms

_GROUP = 8  # images that a process decodes at a time
_WAITING = 64  # requests that were announced and not made
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
        path: Where it is.
        visit: Stream, epoch and number of the image, for training; None for evaluation.
    """

    path: str
    visit: tuple[str, int, int] | None


def resized_crop(width: int, height: int, drawn: NDArray[np.float64]) -> Box:
    """Choose a random part of an image: 8 to 100 % of its area, of a shape between 3:4 and 4:3.

    Area, logarithm of the shape and place are uniform. The first of ten choices that fits is taken; if none
    does, the largest part of an allowed shape in the middle.

    Args:
        width: Of the image, in pixels.
        height: Of the image.
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
            image = file.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read {job.path}: {error}") from error
    width, height = image.size
    if job.visit is None:
        scale = round(size * _RESIZED) / min(width, height)
        resized = image.resize(
            (max(size, round(width * scale)), max(size, round(height * scale))), Image.Resampling.BILINEAR
        )
        x, y = (resized.width - size) // 2, (resized.height - size) // 2
        return np.asarray(resized.crop((x, y, x + size, y + size)))
    stream, epoch, number = job.visit
    drawn = uniforms(Visits(stream, np.array([epoch]), np.array([number])), _DRAWS)[0]
    part = image.crop(resized_crop(width, height, drawn[1:]))
    part = part.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if drawn[0] < 0.5 else part)


def _decode_group(jobs: Sequence[Job], size: int) -> Pixels:
    return np.stack([decode(job, size) for job in jobs])


class Decoder:
    """Processes that decode, ahead of what is asked for.

    They end with the object.

    Args:
        size: Height and width of what comes out.
        workers: How many processes.
    """

    def __init__(self, size: int, workers: int) -> None:
        self._size = size
        self._pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)
        self._begun: dict[tuple[Job, ...], list[Future[Pixels]]] = {}

    def __call__(self, jobs: Sequence[Job], upcoming: Iterable[Sequence[Job]] = ()) -> Pixels:
        """Return images, shape (images, size, size, 3).

        Args:
            jobs: Which.
            upcoming: What will be asked for next, most likely: begun now.

        Raises:
            DataError: If an image cannot be read, or a process dies.
        """
        wanted = tuple(jobs)
        try:
            for key in (wanted, *map(tuple, upcoming)):
                if key not in self._begun:
                    self._begun[key] = [
                        self._pool.submit(_decode_group, key[start : start + _GROUP], self._size)
                        for start in range(0, len(key), _GROUP)
                    ]
            decoded = np.concatenate([future.result() for future in self._begun.pop(wanted)])
        except BrokenProcessPool as error:
            raise DataError(
                "a decoding process died, perhaps for want of memory; fewer --task.workers need less"
            ) from error
        while len(self._begun) > _WAITING:  # asked for other things than announced
            for future in self._begun.pop(next(iter(self._begun))):
                future.cancel()
        return decoded


def available_workers() -> int:
    """Return how many cores each of this machine's training processes may use, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _begin() -> None:
    """Prepare a decoding process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait until the parent is gone, however it went: nobody else would end this process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
