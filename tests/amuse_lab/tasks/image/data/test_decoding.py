import gc
import math
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from amuse_lab.errors import DataError
from amuse_lab.tasks.image.data.decoding import (
    Decoder,
    Job,
    _Worker,
    available_workers,
    decode,
    resized_crop,
)
from amuse_lab.tasks.image.order import Visits, uniforms
from tests.amuse_lab.tasks.image.originals import random_images, write_jpeg


@given(
    width=st.integers(1, 600),
    height=st.integers(1, 600),
    drawn=st.lists(st.floats(0, 1, exclude_max=True), min_size=40, max_size=40).map(np.array),
)
def test_random_parts_lie_inside_with_allowed_area_and_shape(
    width: int, height: int, drawn: np.ndarray
) -> None:
    left, top, right, bottom = resized_crop(width, height, drawn)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    w, h = right - left, bottom - top
    # Each side is rounded to whole pixels.
    assert (w - 0.5) / (h + 0.5) <= 4 / 3 + 1e-9
    assert (w + 0.5) / (h - 0.5) >= 3 / 4 - 1e-9
    if width * 4 >= height * 3 and height * 4 >= width * 3:  # otherwise the middle, however small
        assert (w + 0.5) * (h + 0.5) >= 0.08 * width * height


def test_random_parts_are_spread_as_they_should_be() -> None:
    drawn = np.random.default_rng(0).random((4000, 40))
    boxes = np.array([resized_crop(1000, 1000, each) for each in drawn])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    # Large parts of an extreme shape do not fit, so look where all do: area below 3/4.
    small = w * h / 1e6 < 0.75
    assert (w * h / 1e6)[small].mean() == pytest.approx((0.08 + 0.75) / 2, abs=0.01)
    assert np.log(w / h)[small].mean() == pytest.approx(0, abs=0.01)
    assert np.log(w / h)[small].std() == pytest.approx(2 * math.log(4 / 3) / math.sqrt(12), abs=0.01)
    places = boxes[small, 0] / np.maximum(1, 1000 - w[small])
    assert (places.mean(), places.std()) == pytest.approx((1 / 2, 1 / math.sqrt(12)), abs=0.01)


def test_shapes_that_never_fit_give_the_middle() -> None:
    assert resized_crop(400, 30, np.full(40, 0.999)) == (180, 0, 220, 30)
    assert resized_crop(30, 400, np.full(40, 0.999)) == (0, 180, 30, 220)


def smooth(height: int, width: int) -> np.ndarray:
    """An image that JPEG keeps to a level or two, different in every direction and channel."""
    y, x = np.mgrid[0:height, 0:width]
    planes = (255 * x / width, 255 * y / height, 127 + 120 * np.sin(x / 9) * np.cos(y / 7))
    return np.stack(planes, axis=-1).astype(np.uint8)


def resized(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """By torch: linear, averaging where it shrinks."""
    return F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.tensor(pixels).permute(2, 0, 1)[None].double()


@pytest.mark.parametrize(("height", "width"), [(300, 420), (420, 300), (40, 40), (20, 90)])
def test_evaluation_sees_the_middle_of_the_resized_image(tmp_path: Path, height: int, width: int) -> None:
    path = tmp_path / "image.JPEG"
    write_jpeg(path, smooth(height, width))
    pixels = tensor(np.array(Image.open(path)))
    scale = 256 / min(height, width)
    large = resized(pixels, round(height * scale), round(width * scale))
    y, x = (large.shape[2] - 224) // 2, (large.shape[3] - 224) // 2
    expected = large[:, :, y : y + 224, x : x + 224]
    found = tensor(decode(Job(str(path), None), 224))
    assert (found - expected).abs().max() <= 2


@pytest.mark.parametrize("number", range(6))
def test_training_sees_a_random_part_flipped_or_not(tmp_path: Path, number: int) -> None:
    path = tmp_path / "image.JPEG"
    write_jpeg(path, smooth(200, 260))
    pixels = tensor(np.array(Image.open(path)))
    drawn = uniforms(Visits("training 0", np.array([3]), np.array([number])), 41)[0]
    left, top, right, bottom = resized_crop(260, 200, drawn[1:])
    expected = resized(pixels[:, :, top:bottom, left:right], 64, 64)
    expected = expected.flip(-1) if drawn[0] < 0.5 else expected
    found = tensor(decode(Job(str(path), ("training 0", 3, number)), 64))
    assert (found - expected).abs().max() <= 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for number, pixels in enumerate(random_images(20, 40, 50, 3)):
        write_jpeg(root / f"{number}.JPEG", pixels)
    return root


def jobs(folder: Path, epoch: int) -> list[Job]:
    return [Job(str(folder / f"{number}.JPEG"), ("training 0", epoch, number)) for number in range(20)]


def test_processes_decode_the_same_whatever_was_announced(folder: Path) -> None:
    expected = [np.stack([decode(job, 32) for job in jobs(folder, epoch)]) for epoch in range(3)]
    others = children()  # of tests before, and the resource tracker of multiprocessing
    announced = Decoder(32, workers=2)
    assert np.array_equal(announced(jobs(folder, 0), [jobs(folder, 1), jobs(folder, 9)]), expected[0])
    assert np.array_equal(announced(jobs(folder, 1)), expected[1])
    assert np.array_equal(announced(jobs(folder, 2)[3:14]), expected[2][3:14])
    truncated, grey = folder / "truncated.JPEG", folder / "grey.JPEG"
    truncated.write_bytes((folder / "0.JPEG").read_bytes()[:700])
    with pytest.raises(DataError, match=rf"^cannot read {truncated}: image file is truncated"):
        announced([Job(str(truncated), None)])
    Image.fromarray(smooth(40, 40)[:, :, 0]).save(grey)
    assert announced([Job(str(grey), None)]).shape == (1, 32, 32, 3)
    decoding = children() - others
    assert decoding
    for child in decoding:
        os.kill(child, signal.SIGKILL)
    with pytest.raises(DataError, match="a decoding process died"):
        announced(jobs(folder, 5))


def children(process: int | None = None) -> set[int]:
    """The processes that the main thread of one has begun, and that it has not seen end."""
    process = process or os.getpid()
    return set(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))


def ends(process: int, seconds: float = 60) -> bool:
    """Whether a process ends in time. One that waits for its parent, or for init, to ask how has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            status = Path(f"/proc/{process}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True
        if status.rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.01)
    return False


def test_processes_end_with_their_decoder(folder: Path) -> None:
    before = children()
    decoder = Decoder(32, workers=1)
    decoder(jobs(folder, 0), [jobs(folder, 1)])
    (process,) = children() - before
    del decoder
    gc.collect()
    assert ends(process)


class Collecting(Job):
    """An image; the thread that sends it to a process collects garbage before, once it may."""

    allowed: ClassVar[threading.Event]
    collected: ClassVar[threading.Event]

    def __reduce__(self) -> tuple[object, ...]:
        assert self.allowed.wait(60)
        gc.collect()
        self.collected.set()
        return Job, (self.path, self.visit)


def test_a_decoder_may_be_collected_by_a_thread_of_its_own(folder: Path) -> None:
    Collecting.allowed, Collecting.collected = threading.Event(), threading.Event()
    before = children()
    decoder = Decoder(32, workers=2)
    gc.disable()
    try:
        decoder(jobs(folder, 0), [[Collecting(str(folder / "0.JPEG"), None)]])
        processes = children() - before
        cycle: list[object] = [decoder]
        cycle.append(cycle)
        del decoder, cycle
        Collecting.allowed.set()
        assert Collecting.collected.wait(60)
    finally:
        gc.enable()
    assert len(processes) == 2
    assert all(ends(process) for process in processes)


def test_processes_end_with_their_parent_however_it_ends(folder: Path) -> None:
    lines = [
        "from amuse_lab.tasks.image.data.decoding import Decoder, Job",
        f"job = Job({str(folder / '0.JPEG')!r}, None)",
        "decoder = Decoder(32, workers=2)",
        "decoder([job])",
        "print('ready', flush=True)",
        "input()",
    ]
    command = [sys.executable, "-c", "\n".join(lines)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        decoding = children(parent.pid)
        assert len(decoding) == 2
        parent.kill()
    assert all(ends(process) for process in decoding)


@pytest.mark.parametrize("wait", [0.0, 0.05, 0.5])
def test_signals_are_for_the_parent(folder: Path, wait: float) -> None:
    """Ctrl-C goes to every process of a terminal, SIGTERM to every process of a job."""
    before = children()
    decoder = Decoder(32, workers=1)
    (process,) = children() - before
    time.sleep(wait)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(process, number)
    assert decoder(jobs(folder, 0)).shape == (20, 32, 32, 3)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert not blocked & {signal.SIGINT, signal.SIGTERM}  # here they still arrive


class Killing:
    """A connection to a process that is killed when half of what it sends is on the way."""

    def __init__(self, connection: Connection, process: int) -> None:
        self._connection = connection
        self._process = process

    def send(self, asked: object) -> None:
        self._connection.send(asked)
        assert self._connection.poll(60)
        os.kill(self._process, signal.SIGKILL)

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)


def test_a_process_that_dies_while_it_sends_is_noticed(folder: Path) -> None:
    before = children()
    worker = _Worker(640)  # 25 MB, of which a pipe takes a little
    (process,) = children() - before
    worker._connection = Killing(worker._connection, process)
    with pytest.raises(DataError, match="a decoding process died"):
        worker.decoded(jobs(folder, 0))
    worker.end()


def test_what_was_announced_and_never_asked_for_is_forgotten(folder: Path) -> None:
    decoder = Decoder(32, workers=1)
    for epoch in range(100):
        decoder(jobs(folder, 0)[:1], [jobs(folder, epoch + 1)[:1]])
    assert len(decoder._begun) <= 64
    expected = decode(jobs(folder, 7)[0], 32)
    assert np.array_equal(decoder(jobs(folder, 7)[:1])[0], expected)


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0", b"GIF89a"])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image.JPEG"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"^cannot read {path}: ") as caught:
        decode(Job(str(path), None), 32)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="No such file"):
        decode(Job(str(tmp_path / "nothing"), None), 32)


def test_an_image_of_a_strange_shape_takes_no_more_memory_than_it_has(tmp_path: Path) -> None:
    """Resized as a whole, this one of 15 kB would have 224 x 13,440,000 pixels."""
    path = tmp_path / "image.JPEG"
    Image.new("RGB", (1, 60_000), (200, 100, 50)).save(path, "JPEG")
    found = decode(Job(str(path), None), 224)
    assert np.abs(found.astype(int) - (200, 100, 50)).max() <= 3


def test_programs_in_the_clothes_of_an_image_are_not_even_opened(tmp_path: Path) -> None:
    """Pillow would have PostScript drawn by an interpreter, if there is one."""
    path = tmp_path / "image.JPEG"
    Image.fromarray(smooth(40, 40)).save(path, "EPS")
    with pytest.raises(DataError, match="cannot identify image file"):
        decode(Job(str(path), None), 32)
    Image.fromarray(smooth(40, 40)).save(path, "PNG")  # as one file of ImageNet is
    assert decode(Job(str(path), None), 32).shape == (32, 32, 3)


def test_processes_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12 - process)), raising=False)
    assert available_workers() == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert available_workers() == 1
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert available_workers() == 5
