import hashlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amuse_lab.tasks.image.order import Order, Visits, hold_out, uniforms


def test_every_image_comes_once_in_an_epoch_in_another_order_each_time() -> None:
    images = np.array([3, 5, 8, 13, 21, 34, 55])
    order = Order(images, batch=4, stream="training 0")
    visits = [order.visits(step) for step in range(7)]  # 28 visits, four epochs
    epochs = np.concatenate([visit.epochs for visit in visits])
    seen = np.concatenate([visit.images for visit in visits])
    assert epochs.tolist() == sorted([0, 1, 2, 3] * 7)
    by_epoch = [seen[epochs == epoch].tolist() for epoch in range(4)]
    assert all(sorted(epoch) == images.tolist() for epoch in by_epoch)
    assert len({tuple(epoch) for epoch in by_epoch}) == 4


def test_rows_of_a_step_are_the_same_whoever_asks() -> None:
    order = Order(np.arange(50), batch=12, stream="training 3")
    whole = order.visits(9)
    for rows in (slice(0, 4), slice(4, 12), slice(11, 12)):
        part = order.visits(9, rows)
        assert np.array_equal(part.images, whole.images[rows])
        assert np.array_equal(part.epochs, whole.epochs[rows])
        assert np.array_equal(uniforms(part, 3), uniforms(whole, 3)[rows])


def test_streams_have_orders_of_their_own() -> None:
    seen = {
        tuple(Order(np.arange(50), 50, stream).visits(0).images)
        for stream in ("training 0", "training 1", "statistics 0")
    }
    assert len(seen) == 3


def test_random_numbers_are_those_of_the_hash() -> None:
    visits = Visits("training 7", np.array([2, 0]), np.array([40_001, 3]))
    for row, key in zip(uniforms(visits, 5), (b"training 7 2 40001", b"training 7 0 3"), strict=True):
        drawn = hashlib.shake_128(key).digest(40)
        exact = [Fraction(int.from_bytes(drawn[8 * i : 8 * i + 8], "little") >> 11, 2**53) for i in range(5)]
        assert [Fraction(number) for number in row.tolist()] == exact


def test_random_numbers_look_uniform_and_independent() -> None:
    numbers = uniforms(Visits("s", np.repeat(np.arange(20), 500), np.tile(np.arange(500), 20)), 3)
    count = len(numbers)
    assert np.abs(numbers.mean(axis=0) - 1 / 2).max() < 4 * np.sqrt(1 / 12 / count)
    in_tenths = np.histogram(numbers, bins=10, range=(0, 1))[0]
    expected = numbers.size / 10
    assert ((in_tenths - expected) ** 2 / expected).sum() < 27.9  # chi-squared, 9 degrees, 0.1 %
    by_epoch = numbers[:, 0].reshape(20, 500)
    related = np.corrcoef([*numbers.T, np.roll(numbers[:, 0], 1)]) - np.eye(4)
    assert np.abs(related).max() < 4 / np.sqrt(count)
    assert np.abs(np.corrcoef(by_epoch) - np.eye(20)).max() < 5 / np.sqrt(500)


@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=200).map(np.array),
    share=st.fractions(0, 1),
)
def test_held_out_images_have_the_same_share_of_every_class(labels: np.ndarray, share: Fraction) -> None:
    count = max(1, min(len(labels) - 1, int(share * len(labels))))
    kept, held_out = hold_out(labels, count)
    assert len(held_out) == count
    assert sorted([*kept, *held_out]) == list(range(len(labels)))
    for label in np.unique(labels):
        exact = Fraction(int((labels == label).sum()) * count, len(labels))
        assert abs((labels[held_out] == label).sum() - exact) < 1


def test_held_out_images_are_spread_over_a_sorted_file_and_always_the_same() -> None:
    labels = np.repeat(np.arange(10), 500)
    _, held_out = hold_out(labels, 1000)
    assert np.bincount(labels[held_out]).tolist() == [100] * 10
    places = held_out % 500  # within the class
    assert places.mean() == pytest.approx(249.5, abs=20)
    assert hashlib.sha256(held_out.tobytes()).hexdigest()[:16] == "c22bb11032a394b8"
