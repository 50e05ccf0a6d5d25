import math

import pytest

from amuse_lab.schedules import cosine


@pytest.mark.parametrize(("steps", "warmup"), [(1000, 100), (16_000, 2000), (10, 1), (3, 1)])
def test_end_points_are_exact(steps: int, warmup: int) -> None:
    assert cosine(0, steps=steps, warmup_steps=warmup) == 0.01
    assert cosine(warmup, steps=steps, warmup_steps=warmup) == 1.0
    assert cosine(steps - 1, steps=steps, warmup_steps=warmup) == 0.01


def test_rises_to_the_peak_and_falls_to_the_last_step() -> None:
    values = [cosine(step, steps=100, warmup_steps=20) for step in range(100)]
    assert values[:21] == sorted(values[:21])
    assert values[20:] == sorted(values[20:], reverse=True)
    assert len(set(values[20:])) == 80


def test_half_way_up_and_down_is_the_mean_of_floor_and_peak() -> None:
    assert math.isclose(cosine(10, steps=121, warmup_steps=20), 0.505)
    assert math.isclose(cosine(70, steps=121, warmup_steps=20), 0.505)


def test_without_warm_up_it_starts_at_the_peak() -> None:
    assert cosine(0, steps=10, warmup_steps=0) == 1.0
    assert cosine(9, steps=10, warmup_steps=0) == 0.01
    assert cosine(0, steps=1, warmup_steps=0) == 1.0


def test_a_run_shorter_than_its_warm_up_ends_inside_it() -> None:
    whole = [cosine(step, steps=100, warmup_steps=20) for step in range(10)]
    assert [cosine(step, steps=10, warmup_steps=20) for step in range(10)] == whole
