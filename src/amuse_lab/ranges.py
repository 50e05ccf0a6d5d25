"""What a number may be, as types of settings: `lr: Positive`."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, get_type_hints

from amuse_lab.errors import require


@dataclass(frozen=True)
class Range:
    """A condition on the value of a setting.

    Attributes:
        holds: True for a value that is allowed. A comparison with NaN is false, so NaN never is.
        constraint: The condition in words; completes "must be ...".
    """

    holds: Callable[[float], bool]
    constraint: str


Positive = Annotated[float, Range(lambda value: 0 < value < math.inf, "positive and finite")]
NotNegative = Annotated[float, Range(lambda value: 0 <= value < math.inf, "finite and at least 0")]
Decay = Annotated[float, Range(lambda value: 0 <= value < 1, "in [0, 1)")]
PositiveDecay = Annotated[float, Range(lambda value: 0 < value < 1, "in (0, 1)")]
Steps = Annotated[int, Range(lambda value: value >= 0, "at least 0")]
Count = Annotated[int, Range(lambda value: value >= 1, "at least 1")]


def check_ranges(settings: object) -> None:
    """Check every field of a dataclass whose type has a `Range`; None passes where the type allows it.

    Raises:
        ConfigError: For the first value that is not allowed, by its name.
    """
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        value = getattr(settings, name, None)
        for part in (hint, *getattr(hint, "__args__", ())):
            for mark in getattr(part, "__metadata__", ()):
                if isinstance(mark, Range) and value is not None:
                    constraint = mark.constraint if part is hint else f"None or {mark.constraint}"
                    require(mark.holds(value), name, constraint, value)
