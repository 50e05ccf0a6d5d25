"""How two other projects divide Muon's matrices over ranks, restated from their sources for our counter.

Dion: `dion/megabatch_base.py` of github.com/microsoft/dion at commit 01287d7. torchtitan:
`torchtitan/distributed/flex_shard/dist_muon.py` of github.com/pytorch/torchtitan at commit 002e94a, with the
buckets of `torchtitan/models/kimi_k2_7/config_registry.py` at commit 47ef75e.
"""

import heapq
import math
import re
from collections import Counter
from collections.abc import Sequence

from amuse_optim.owners import multiply_adds
from amuse_optim.spread import Found
from benchmarks.scaling_models import Parameter, parts


def dion(parameters: Sequence[Parameter]) -> tuple[int, int]:
    """Multiply-adds of a rank and entries that it sends by Dion's rule, which are the same for all ranks.

    Parameters of one shape and placement are one batch, filled up with zeros until the ranks that share their
    rows get equally many; the shards are filled up to equal rows too, and zeros are multiplied and sent like
    the rest. Stacks are cut into matrices by nothing but their placement.
    """
    work = entries = 0
    for (shape, spread), number in Counter((each.shape, each.spread) for each in parameters).items():
        *stack, rows, cols = shape
        cuts = [1] * len(shape)
        for size, placement in zip(spread.mesh, spread.placements or (), strict=True):
            cuts[placement.dim] *= size
        ranks = cuts[-2]
        matrices = -(-number // ranks) * math.prod(map(lambda size, cut: -(-size // cut), stack, cuts))
        part = -(-rows // ranks)
        options = parameters[0].options
        cost = multiply_adds(part * ranks, cols, options["orthogonalize"], options["orthogonalize_steps"])
        work += matrices * cost
        entries += 2 * (ranks - 1) * matrices * part * cols
    return work, entries


def torchtitan(found: Sequence[tuple[Parameter, Found]], ranks: int) -> list[int]:
    """The owner of every matrix by torchtitan's rule.

    The first layer is a bucket, then every two are. In each bucket by itself the matrix with the most
    multiply-adds, of the plain form, goes first: to the rank that has the least of this bucket, in
    multiply-adds, then in entries, and of several to the one with the least of all buckets. Stacks are not
    balanced: their matrices are cut evenly among the ranks that hold parts of them, so that one matrix goes
    to the first.
    """
    owners = [0] * len(found)
    buckets: dict[int, list[tuple[int, int, str, int]]] = {}
    for number, (parameter, (single, _, work)) in enumerate(found):
        if parameter.options.get("stacked", False):
            owners[number] = int(parts(single.box, parameter.shape, parameter.spread).nonzero()[0])
            continue
        layer = re.search(r"\d+", parameter.name)
        assert layer is not None
        cost = multiply_adds(single.rows, single.cols, None, parameter.options["orthogonalize_steps"])
        wanted = -cost, -single.rows * single.cols, work.name, number
        buckets.setdefault((int(layer[0]) + 1) // 2, []).append(wanted)
    totals = [0] * ranks
    for _, bucket in sorted(buckets.items()):
        least = [(0, 0, total, rank) for rank, total in enumerate(totals)]
        heapq.heapify(least)
        for cost, size, _, number in sorted(bucket):
            here, entries, total, rank = least[0]
            owners[number] = rank
            heapq.heapreplace(least, (here - cost, entries - size, total - cost, rank))
        for _, _, total, rank in least:
            totals[rank] = total
    return owners
