"""The measure by which landscapes' peers are compared; the peers themselves are not installed."""

from collections.abc import Callable, Iterator

import pytest
import torch

from benchmarks import landscape_peers
from benchmarks.landscape_peers import Found, Problem, compare, ours


@pytest.fixture(scope="module")
def problem() -> Iterator[Problem]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(landscape_peers, "STEPS", 3)
        yield Problem(8)


def shifted(problem: Problem, k: int, tolerance: float) -> Iterator[Callable[[], Found]]:
    """A peer whose eigenvalues are off by a hundredth of the largest."""
    (find,) = ours(problem, k, tolerance)

    def find_shifted() -> Found:
        found = find()
        return Found(found.values + 0.01 * found.values[0], found.vectors, found.products, "shifted")

    yield find_shifted


def test_ours_reaches_its_tolerance_and_a_wrong_answer_does_not(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landscape_peers, "PEERS", {"ours": ours, "wrong": shifted})
    right, wrong = compare(problem, 2, 1e-3, rounds=1)
    assert right["reached"]
    assert right["largest_residual"] <= 1.05e-3
    assert right["largest_error_of_an_eigenvalue"] < 1e-4
    assert right["products"] > 2
    assert not wrong["reached"]


def test_a_residual_is_the_distance_of_the_product_from_the_multiple(problem: Problem) -> None:
    size = problem.exact.coordinates.size
    vector = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vector /= vector.norm()
    (residual,) = problem.residuals(Found(torch.zeros(1), 3 * vector.unsqueeze(0), 0, ""))
    assert residual == pytest.approx(float((problem.exact @ vector).norm()))
