"""Counts what this rank sends, by wrapping torch's collectives."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


@dataclass
class Traffic:
    """What one rank did.

    Attributes:
        calls: How often each collective was called; "full_tensor" and "redistribute" are DTensor's.
        bytes_sent: By all-to-alls and all-gathers (as a ring sends them), to other ranks.
        bytes_agreed: By all-reduces, as a ring sends them.
    """

    calls: Counter[str] = field(default_factory=Counter)
    bytes_sent: int = 0
    bytes_agreed: int = 0


@contextmanager
def counted() -> Iterator[Traffic]:
    """Context manager: count the collectives inside."""
    traffic = Traffic()
    usual = dist.all_to_all_single, dist.all_gather, dist.all_reduce

    def all_to_all_single(
        output: Tensor, sent: Tensor, receives: Sequence[int], sends: Sequence[int], **more: Any
    ) -> object:
        traffic.calls["all_to_all_single"] += 1
        own = sends[dist.get_rank(more["group"])]
        traffic.bytes_sent += (sent.numel() - own) * sent.element_size()
        return usual[0](output, sent, receives, sends, **more)

    def all_gather(gathered: Sequence[Tensor], sent: Tensor, **more: Any) -> object:
        traffic.calls["all_gather"] += 1
        traffic.bytes_sent += (len(gathered) - 1) * sent.numel() * sent.element_size()  # passed on in a ring
        return usual[1](gathered, sent, **more)

    def all_reduce(tensor: Tensor, *arguments: Any, **more: Any) -> object:
        traffic.calls["all_reduce"] += 1
        ranks = dist.get_world_size(more.get("group"))
        traffic.bytes_agreed += math.ceil(2 * (ranks - 1) / ranks * tensor.numel() * tensor.element_size())
        return usual[2](tensor, *arguments, **more)

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            traffic.calls[name] += 1
            return function(*arguments, **more)

        return call

    others = ("all_gather_into_tensor", "all_gather_object", "broadcast", "all_to_all")
    patches = [
        patch.object(dist, "all_to_all_single", all_to_all_single),
        patch.object(dist, "all_gather", all_gather),
        patch.object(dist, "all_reduce", all_reduce),
        *(patch.object(dist, name, counting(name, getattr(dist, name))) for name in others),
        *(
            patch.object(DTensor, name, counting(name, getattr(DTensor, name)))
            for name in ("full_tensor", "redistribute")
        ),
    ]
    with ExitStack() as stack:
        for each in patches:
            stack.enter_context(each)
        yield traffic
