"""Checks of single options: what passes, what does not, and what is said then."""

import re
from typing import Any

import numpy as np
import pytest
import torch

from amuse_optim.checks import (
    _ELSEWHERE,
    Check,
    choice,
    count,
    flag,
    fraction,
    not_negative,
    optional,
    positive,
    steps,
    unknown_name,
)
from amuse_optim.options import OPTIONS

NAN, INF = float("nan"), float("inf")
CHECKS: list[tuple[Check, list[Any], list[Any], list[Any]]] = [  # passes, ValueError, TypeError
    (
        not_negative,
        [0, 0.0, 1e300, torch.tensor(0.5)],
        [-1e-9, NAN, INF, torch.tensor(-1.0)],
        ["1", True, None],
    ),
    (positive, [1e-300, 3, torch.tensor([0.5])], [0, 0.0, -1, NAN, INF], [False, "1"]),
    (fraction, [0, 0.999], [1, 1.0, -0.1, NAN], [None, True]),
    (choice("a", "b"), ["a", "b"], ["c", None, 1, True], []),
    (count, [1, 10**9], [0, -1], [1.0, True, "1", None]),
    (flag, [True, False], [], [0, 1, None, "yes"]),
    (steps, [0, 5, 0.5], [-1, 0.0, 1.0, 1.5, -0.5, NAN], [True, "1", None]),
    (optional(count), [None, 1], [0], [1.0]),
]


@pytest.mark.parametrize(("check", "passes", "values", "types"), CHECKS)
def test_what_passes_and_what_does_not(
    check: Check, passes: list[Any], values: list[Any], types: list[Any]
) -> None:
    for value in passes:
        check("it", value)
    for value in values:
        with pytest.raises(ValueError, match=r"^it must be .*, got "):
            check("it", value)
    for value in types:
        with pytest.raises(TypeError, match=r"^it must be .*, got "):
            check("it", value)


def test_numbers_are_python_s_numpy_s_or_tensors_of_one_element() -> None:
    not_negative("lr", np.float32(0.5))
    not_negative("lr", np.int64(2))
    with pytest.raises(ValueError, match=r"Tensor lr must be 1-element, got one of shape \(2,\)"):
        not_negative("lr", torch.ones(2))


def test_the_nearest_name_is_offered_if_one_is_near() -> None:
    known = ("momentum", "nesterov")
    assert unknown_name("option", "momentun", known) == "unknown option 'momentun'; did you mean 'momentum'?"
    assert unknown_name("option", "zzz", known) == "unknown option 'zzz'"


@pytest.mark.parametrize(("name", "message"), list(_ELSEWHERE.items()))
def test_names_of_other_optimizers_are_translated(name: str, message: str) -> None:
    assert name not in OPTIONS
    assert unknown_name("option", name, OPTIONS) == f"unknown option {name!r}; {message}"
    for quoted in re.findall(r"'(\w+)'", message):
        assert quoted in OPTIONS
