"""Updates over a stretch of steps, of runs whose steps are known beforehand."""

from collections.abc import Callable, Sequence
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from amuse_lab.landscape.watching import Watched, watch
from amuse_lab.trainer import Trainer
from amuse_optim.landscape import Coordinates, Subspace


class Scripted:
    """A run that takes the steps it is told, of a model with one 2 x 2 matrix; the momentum is ones."""

    def __init__(self, steps: Sequence[Sequence[float]], momentum: Tensor | None) -> None:
        self.model = nn.Linear(2, 2, bias=False)
        self.optimizer = self
        self._left = [torch.tensor(step).view(2, 2) for step in steps]
        self._momentum = momentum

    def advance(self, *, look: bool) -> None:
        assert not look
        self.model.weight.data += self._left.pop(0)

    def fast(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        return list(parameters)

    def momentum(self, parameters: Sequence[Tensor]) -> list[Tensor | None]:
        return [self._momentum for _ in parameters]


def watched(steps: Sequence[Sequence[float]], momentum: Tensor | None = None) -> Watched | None:
    """The first entry is dominant, the three others are the bulk."""
    run = Scripted(steps, momentum)
    subspace = Subspace(
        torch.eye(4)[:1], torch.ones(1), 0.0, Coordinates.of({"weight": run.model.weight.detach()})
    )
    return watch(cast(Trainer, run), subspace, None, len(steps))


def test_shares_cosines_and_persistence() -> None:
    back_and_forth = [
        [3.0, 4.0, 0.0, 0.0],
        [-3.0, 4.0, 0.0, 0.0],
        [3.0, 4.0, 0.0, 0.0],
        [-3.0, 4.0, 0.0, 0.0],
    ]
    found = watched(back_and_forth, torch.ones(2, 2))
    assert found is not None
    assert found.update == pytest.approx([0.6] * 4)
    assert found.momentum == pytest.approx([0.5] * 4)
    assert found.cosines == {"dominant": pytest.approx([-1.0] * 3), "bulk": pytest.approx([1.0] * 3)}
    assert found.persistence == {"dominant": pytest.approx(0, abs=1e-12), "bulk": pytest.approx(4.0)}


def test_ranks_and_singular_values() -> None:
    found = watched([[2.0, 0.0, 0.0, 1.0]], torch.eye(2))
    assert found is not None
    assert found.ranks["momentum"] == pytest.approx(1.0)
    entropy = (2 / 3) * torch.tensor(3 / 2).log() + (1 / 3) * torch.tensor(3.0).log()
    assert found.ranks["update"] == pytest.approx(float(entropy.exp()) / 2, rel=1e-4)
    assert found.singular == {"momentum": [1.0, 1.0], "update": [1.0, 0.5]}


def test_a_momentum_that_is_not_kept_is_not_measured() -> None:
    found = watched([[1.0, 1.0, 0.0, 0.0]] * 2)
    assert found is not None
    assert found.momentum is None
    assert set(found.ranks) == {"update"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: watched([[0.0] * 4] * 2),
        lambda: watch(cast(Trainer, Scripted([[1.0] * 4], None)), None, None, 1),
    ],
    ids=["nothing moves", "no subspace"],
)
def test_nothing_to_measure(make: Callable[[], Watched | None]) -> None:
    assert make() is None
