"""Which rank orthogonalizes which matrix: numbers in, ranks out, without any communication.

Every rank computes the same owners from the same list, so nothing has to be sent to agree on them.
"""

import heapq
from collections.abc import Sequence
from typing import Any, NamedTuple

from .orthogonalize import GRAM_RATIO, ITERATIONS, segments


class Work(NamedTuple):
    """A matrix to be orthogonalized.

    Args:
        name: Its name, unlike that of any other.
        multiply_adds: What it costs, from `multiply_adds`.
        ranks: The ranks that may do it, where others would first have to be sent what these hold; empty means
            any rank.
    """

    name: str
    multiply_adds: int
    ranks: tuple[int, ...] = ()


def multiply_adds(rows: int, cols: int, method: Any, steps: int) -> int:
    """Multiply-adds of the orthogonalization of one matrix; products of symmetric results are counted whole.

    With s the shorter and l the longer side, every segment of the iteration (`orthogonalize.segments`) forms
    A = X X^T and multiplies X, s^2 l each; its first polynomial costs s^3, and each further one 4 s^3. In the
    plain form that is steps s^2 (2 l + s), which also stands in for methods that are no iteration.
    """
    short, long = sorted((rows, cols))
    if method not in ITERATIONS:
        return steps * short**2 * (2 * long + short)
    form = segments(method, steps, gram_form=long >= GRAM_RATIO * short)
    cubes = sum(4 * len(segment) - 3 for segment in form)
    return 2 * len(form) * short**2 * long + cubes * short**3


def owners_of(work: Sequence[Work], ranks: int) -> list[int]:
    """The rank of every matrix, by longest processing time first (Graham 1969).

    The largest matrix that is left goes to the rank with the least work so far, to the lowest of several;
    equal matrices are taken by name. Matrices that some ranks alone may do come before the others, those with
    the fewest ranks first. The result does not depend on the order of `work`. Without such restrictions the
    rank with the most work has at most 4/3 - 1/(3 `ranks`) times what the best division gives it.

    Args:
        work: The matrices and what each of them costs.
        ranks: Number of ranks that the matrices are divided over, at least 1.

    Returns:
        A rank in [0, `ranks`) for each, in the order of `work`.

    Raises:
        ValueError: For two of one name.

    Example:
        >>> owners_of([Work("a", 3), Work("b", 2), Work("c", 2)], ranks=2)
        [0, 1, 1]
    """
    if len({each.name for each in work}) < len(work):
        raise ValueError("work must have names that are all different, because names decide between equals")
    largest_first = sorted(range(len(work)), key=lambda i: (-work[i].multiply_adds, work[i].name))
    loads = [0] * ranks
    owners = [0] * len(work)
    for i in sorted((i for i in largest_first if work[i].ranks), key=lambda i: len(work[i].ranks)):
        owners[i] = min(work[i].ranks, key=lambda rank: (loads[rank], rank))
        loads[owners[i]] += work[i].multiply_adds
    least_first = [(load, rank) for rank, load in enumerate(loads)]
    heapq.heapify(least_first)
    for i in largest_first:
        if not work[i].ranks:
            load, owners[i] = least_first[0]
            heapq.heapreplace(least_first, (load + work[i].multiply_adds, owners[i]))
    return owners
