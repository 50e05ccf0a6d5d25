"""Writes small data sets in exactly the formats of the published files."""

import gzip
import hashlib
import io
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray
from PIL import Image

from amuse_lab.tasks.image.data.files import Original

Pixels = NDArray[np.uint8]


def digits_of(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def original(name: str, content: bytes) -> Original:
    return Original(name, digits_of(content))


class Python2Pickle:
    """What Python 2 pickles with protocol 2: strings are BINSTRING, arrays calls of numpy's functions."""

    def __init__(self) -> None:
        self._out = bytearray(b"\x80\x02")
        self._memos = 0

    @classmethod
    def of(cls, value: Any) -> bytes:
        pickle = cls()
        pickle._write(value)
        return bytes(pickle._out) + b"."

    def _memo(self) -> None:
        number = self._memos
        self._out += b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number)
        self._memos += 1

    def _write(self, value: Any) -> None:
        if isinstance(value, dict):
            self._out += b"}"
            self._memo()
            self._out += b"("
            for key, held in value.items():
                self._write(key)
                self._write(held)
            self._out += b"u"
        elif isinstance(value, list):
            self._out += b"]"
            self._memo()
            self._out += b"("
            for held in value:
                self._write(held)
            self._out += b"e"
        elif isinstance(value, bytes):
            short = len(value) < 256
            self._out += b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))
            self._out += value
            self._memo()
        elif isinstance(value, int):
            self._out += b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)
        elif isinstance(value, np.ndarray):
            self._array(value)
        else:
            raise TypeError(type(value))

    def _array(self, value: Pixels) -> None:
        assert value.dtype == np.uint8
        self._out += b"cnumpy.core.multiarray\n_reconstruct\n"
        self._memo()
        self._out += b"cnumpy\nndarray\n"
        self._memo()
        self._out += b"K\x00\x85U\x01b\x87R"
        self._memo()
        self._out += b"(K\x01"
        for length in value.shape:
            self._write(length)
        self._out += b"\x86"
        self._out += b"cnumpy\ndtype\n"
        self._memo()
        self._out += b"U\x02u1K\x00K\x01\x87R"
        self._memo()
        self._out += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        self._write(value.tobytes())
        self._out += b"tb"


def random_images(count: int, height: int, width: int, channels: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(256, size=(count, height, width, channels), dtype=np.uint8)


def cycling(count: int, classes: int) -> list[int]:
    return [number % classes for number in range(count)]


def cifar_rows(pixels: Pixels) -> Pixels:
    """A row an image: all of red, all of green, all of blue, each from left to right and top to bottom."""
    rows = np.empty((len(pixels), 3072), np.uint8)
    for row, image in zip(rows, pixels, strict=True):
        for channel in range(3):
            for y in range(32):
                start = 1024 * channel + 32 * y
                row[start : start + 32] = image[y, :, channel]
    return rows


def cifar10_batch(pixels: Pixels, labels: list[int]) -> bytes:
    return Python2Pickle.of(
        {
            b"batch_label": b"training batch 1 of 5",
            b"labels": labels,
            b"data": cifar_rows(pixels),
            b"filenames": [b"image_%d.png" % number for number in range(len(labels))],
        }
    )


def cifar100_file(pixels: Pixels, labels: list[int]) -> bytes:
    return Python2Pickle.of(
        {
            b"filenames": [b"image_%d.png" % number for number in range(len(labels))],
            b"batch_label": b"training batch 1 of 1",
            b"fine_labels": labels,
            b"coarse_labels": [label // 5 for label in labels],
            b"data": cifar_rows(pixels),
        }
    )


def archive_of(contents: Mapping[str, bytes], folder: str = "cifar-10-batches-py") -> bytes:
    """A compressed tar file, with the folder itself and a page beside the data, as published."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        entry = tarfile.TarInfo(folder)
        entry.type = tarfile.DIRTYPE
        tar.addfile(entry)
        for name, content in {"readme.html": b"<html>", **contents}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def svhn_file(pixels: Pixels, digits: list[int]) -> bytes:
    """Images in the last dimension, a column of labels, and 10 for zero."""
    buffer = io.BytesIO()
    labels = np.array([[digit or 10] for digit in digits], np.uint8)
    scipy.io.savemat(buffer, {"X": pixels.transpose(1, 2, 3, 0), "y": labels}, do_compression=True)
    return buffer.getvalue()


def idx_images(pixels: Pixels) -> bytes:
    count, height, width, _ = pixels.shape
    return struct.pack(">IIII", 0x803, count, height, width) + pixels.tobytes()


def idx_labels(labels: list[int]) -> bytes:
    return struct.pack(">II", 0x801, len(labels)) + bytes(labels)


def digits_table(pixels: Pixels, labels: list[int]) -> bytes:
    lines = (
        ",".join(map(str, [*image.reshape(-1).tolist(), label]))
        for image, label in zip(pixels, labels, strict=True)
    )
    return gzip.compress("".join(line + "\n" for line in lines).encode())


def write_jpeg(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "JPEG", quality=95, subsampling=0)


def write_photographs(root: Path, classes: int, training: int, testing: int, size: int = 40) -> None:
    """Folders as of ImageNet, with so many images a class."""
    for part, count in (("train", training), ("val", testing)):
        for number in range(classes):
            for image, pixels in enumerate(random_images(count, size, size + 8, 3, seed=number)):
                write_jpeg(root / part / f"n{number:08}" / f"n{number:08}_{image}.JPEG", pixels)
