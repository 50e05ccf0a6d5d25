import io
import sys

import numpy as np
import pytest
import scipy.io

from amuse_lab.errors import DataError
from amuse_lab.tasks.image.data.svhn import read_svhn
from tests.amuse_lab.tasks.image.originals import cycling, random_images, svhn_file

PIXELS = random_images(12, 32, 32, 3)
FILE = svhn_file(PIXELS, cycling(12, 10))


def matlab(**held: object) -> bytes:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, held)
    return buffer.getvalue()


def test_images_come_out_as_they_went_in_and_ten_is_zero() -> None:
    held = read_svhn(FILE, "train")
    assert np.array_equal(held.pixels, PIXELS)
    assert held.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert scipy.io.loadmat(io.BytesIO(FILE))["y"].max() == 10


@pytest.mark.parametrize(
    "content",
    [
        b"",
        FILE[:1000],
        FILE[:-200],
        FILE[:200] + bytes(300) + FILE[500:],
        b"MATLAB 5.0 MAT-file" * 100,
        matlab(X=PIXELS.transpose(1, 2, 3, 0)),
        matlab(X=PIXELS[0], y=np.ones((1, 1))),
        matlab(X=PIXELS.transpose(1, 2, 3, 0).astype(float), y=np.ones((12, 1), np.uint8)),
        matlab(X=np.array([{"a": 1}], object), y=np.ones((1, 1), np.uint8)),
    ],
)
def test_anything_else_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(DataError, match=r"^train_32x32.mat is not a file of SVHN, or is damaged: ") as caught:
        read_svhn(content, "train_32x32.mat")
    assert "\n" not in str(caught.value)


def test_labels_have_to_fit() -> None:
    with pytest.raises(DataError, match="11 labels"):
        read_svhn(svhn_file(PIXELS, cycling(11, 10)), "train")


def test_without_scipy_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(DataError, match=r"needs the package scipy.*pip install 'amuse-optim\[image\]'"):
        read_svhn(FILE, "train")
