"""What is gathered within a step."""

import math

import pytest
import torch

from amuse_optim.measurement import Measurement


def test_root_mean_squares_over_chunks_and_stacks() -> None:
    """Entries 3 and 4 with scale 2, and one of 12: (36 + 64 + 144) / 3; errors of three 2 x 3 matrices."""
    measurement = Measurement()
    one, other = torch.zeros(2), torch.zeros(1)
    measurement.add_update(one, [torch.tensor([3.0]), torch.tensor([4.0], dtype=torch.bfloat16)], 2.0)
    measurement.add_update(other, [torch.tensor([12.0])], torch.tensor(1.0))
    orthogonal = torch.eye(2, 3)
    measurement.add_polar_factors(torch.stack([orthogonal, 2 * orthogonal]))  # O O^T - I = 0 and 3 I
    measurement.add_polar_factors(torch.zeros(1, 3, 2))  # -I
    values = measurement.values([one, other])
    assert float(values["update_rms"]) == pytest.approx(math.sqrt(244 / 3))
    assert float(values["orthogonality_error"]) == pytest.approx(math.sqrt((0 + 9 + 1) / 3))


def test_without_updates_there_is_no_number() -> None:
    values = Measurement().values([torch.zeros(3)])
    assert values.keys() == {"update_rms"}
    assert bool(values["update_rms"].isnan())
