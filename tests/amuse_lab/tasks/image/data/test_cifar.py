import contextlib
import io
import pickle
import pickletools
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amuse_lab.errors import DataError
from amuse_lab.tasks.image.data.cifar import read_cifar
from amuse_lab.tasks.image.data.labelled import Labelled
from tests.amuse_lab.tasks.image.originals import (
    Python2Pickle,
    cifar10_batch,
    cifar100_file,
    cycling,
    random_images,
)

PIXELS = random_images(7, 32, 32, 3)
BATCH = cifar10_batch(PIXELS, cycling(7, 10))
BATCH_BY_COLUMNS = BATCH.replace(b"tb\x89", b"tb\x88")  # the flag before the bytes


def read(content: bytes) -> Labelled:
    return read_cifar(content, "data_batch_1", labels=b"labels", classes=10)


def test_images_and_labels_come_out_as_they_went_in() -> None:
    held = read(BATCH)
    assert np.array_equal(held.pixels, PIXELS)
    assert held.labels.tolist() == [0, 1, 2, 3, 4, 5, 6]
    fine = read_cifar(cifar100_file(PIXELS, cycling(7, 100)), "train", labels=b"fine_labels", classes=100)
    assert np.array_equal(fine.pixels, PIXELS)


def test_the_same_as_pickle_itself_reads() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old names in numpy
        trusted = pickle.loads(BATCH, encoding="bytes")
        by_columns = pickle.loads(BATCH_BY_COLUMNS, encoding="bytes")
    assert by_columns[b"data"].flags.f_contiguous
    for content, held in ((BATCH, trusted), (BATCH_BY_COLUMNS, by_columns)):
        rows = held[b"data"]
        assert rows.shape == (7, 3072)
        assert np.array_equal(read(content).pixels, rows.reshape(7, 3, 32, 32).transpose(0, 2, 3, 1))


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def hostile(sentinel: Path) -> dict[str, bytes]:
    """Pickles that create the file when they are read by a reader that trusts them."""
    line = f"open({str(sentinel)!r}, 'w').close()"
    name = str(sentinel).encode()
    batch = {b"data": Calls(eval, line), b"labels": [0]}
    return {
        "as data": pickle.dumps(batch, protocol=2),
        "in the newest protocol": pickle.dumps(batch, protocol=5),
        "instead of a dictionary": pickle.dumps(Calls(Path.touch, sentinel), protocol=4),
        "by name in text": b"cposix\nsystem\n(Vtouch " + name + b"\ntR.",
        "as an instance": b"(S'touch " + name + b"'\niposix\nsystem\n.",
        "as an object": b"(cposix\nsystem\nS'touch " + name + b"'\no.",
        "behind the array": BATCH[:-1] + b"0cposix\nsystem\n(Vtouch " + name + b"\ntR.",
        "through numpy": b"cnumpy.core.multiarray\nnp.runstring\n(V" + line.encode() + b"\ntR.",
        "through a stand-in's parts": b"cnumpy\nndarray.__init__.__globals__\n.",
    }


@pytest.mark.parametrize("kind", hostile(Path("sentinel")))
def test_pickles_that_would_run_code_are_refused_and_run_nothing(kind: str, tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    with pytest.raises(DataError, match=r"^data_batch_1 is not a file of CIFAR, or is damaged: it names "):
        read(hostile(sentinel)[kind])
    assert not sentinel.exists()


@pytest.mark.parametrize("kind", ["as data", "instead of a dictionary", "by name in text", "as an object"])
def test_those_pickles_do_run_code_elsewhere(kind: str, tmp_path: Path) -> None:
    """Otherwise the test above would prove nothing."""
    sentinel = tmp_path / "sentinel"
    pickle.loads(hostile(sentinel)[kind])
    assert sentinel.exists()


def test_stand_ins_cannot_be_changed_by_a_pickle() -> None:
    """BUILD on the class itself would set attributes of it for all pickles to come."""
    change = b"\x80\x02cnumpy\nndarray\nN}(U\x09argumentsU\x01xu\x86b."
    pickletools.dis(change, io.StringIO())  # well-formed
    with pytest.raises(DataError):
        read(change)
    assert np.array_equal(read(BATCH).pixels, PIXELS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Ran out of input"),
        (BATCH[: len(BATCH) // 2], "pickle data was truncated"),
        (Python2Pickle.of([1, 2]), "list indices"),
        (Python2Pickle.of({b"labels": [0]}), "b'data'"),
        (Python2Pickle.of({b"data": b"abc", b"labels": [0]}), "no attribute 'state'"),
        (Python2Pickle.of({b"data": PIXELS[:, 0, 0], b"labels": [0]}), "cannot reshape"),
        (Python2Pickle.of({b"data": np.zeros((1, 3072), np.uint8), b"labels": [b"x"]}), "labels are not"),
        (BATCH.replace(b"U\x02u1", b"U\x02f1"), "not an array of bytes"),
    ],
)
def test_anything_else_is_refused_in_one_line(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("count", "labels", "message"),
    [
        (7, cycling(6, 10), "6 labels"),
        (7, [10] * 7, r"labels in \[0, 10\), got 10 to 10"),
        (0, [], "labels are not a list"),
    ],
)
def test_labels_have_to_fit(count: int, labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(cifar10_batch(PIXELS[:count], labels))


@settings(max_examples=300)
@given(data=st.data())
def test_damage_never_raises_anything_else(data: st.DataObject) -> None:
    """Bytes changed, removed or inserted in the structure around the pixels."""
    content = bytearray(BATCH)
    structure = BATCH.index(PIXELS[0, :, :, 0].tobytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, structure - 1))
        what = data.draw(st.binary(max_size=2))
        content[place : place + data.draw(st.integers(0, 2))] = what
    with contextlib.suppress(DataError):
        assert read(bytes(content)).pixels.shape[1:] == (32, 32, 3)
