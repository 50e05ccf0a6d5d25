"""Sharded parameters (DTensor, as FSDP2 makes them): what is done where.

Everything but the orthogonalization works entry by entry, so every rank moves its own shards as plain
tensors. A momentum that is to be orthogonalized is gathered; every rank orthogonalizes it and keeps its part.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_SHARDED: tuple[type, ...] = ()
if torch.distributed.is_available():
    from torch.distributed import tensor as dtensor
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    _SHARDED = (DTensor,)


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds only a part of a tensor, as a DTensor."""
    return isinstance(tensor, _SHARDED)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: a view of it where it is sharded, else the tensor itself."""
    if not is_sharded(tensor):
        return tensor
    assert isinstance(tensor, DTensor)
    part: Tensor = tensor.to_local()
    return part


def gathered(part: Tensor, like: Tensor) -> Tensor:
    """The whole of a tensor of which this rank has a part; all ranks of the mesh call this.

    Args:
        part: Of this rank, shaped as its part of `like`.
        like: A DTensor.
    """
    assert isinstance(like, DTensor)
    spread = DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    whole: Tensor = spread.full_tensor()
    return whole


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor: itself, or gathered where it is sharded; all ranks of the mesh call this."""
    if not is_sharded(tensor):
        return tensor
    assert isinstance(tensor, DTensor)
    return tensor.full_tensor()


def store_whole_(tensor: Tensor, value: Tensor) -> None:
    """Write what `whole` gave, and what was made of it in place, back to this rank's part."""
    if is_sharded(tensor):
        local(tensor).copy_(own_part(value, tensor))


def own_part(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor that every rank has, cut as the DTensor `like` is."""
    assert isinstance(like, DTensor)
    spread = distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    part: Tensor = spread.to_local()
    return part


def zeros(shape: tuple[int, ...], dtype: torch.dtype, like: Tensor) -> Tensor:
    """Zeros of another shape, on the device of `like` and divided over ranks as its leading dimensions are.

    Args:
        shape: The first dimensions of `like`'s shape, or fewer.
        dtype: Of the zeros.
        like: A parameter.
    """
    if not is_sharded(like):
        return torch.zeros(shape, dtype=dtype, device=like.device)
    assert isinstance(like, DTensor)
    placements = [
        placement if isinstance(placement, Shard) and placement.dim < len(shape) else Replicate()
        for placement in like.placements
    ]
    made: Tensor = dtensor.zeros(shape, dtype=dtype, device_mesh=like.device_mesh, placements=placements)
    return made


def summed(value: Tensor, like: Sequence[Tensor]) -> Tensor:
    """A sum over this rank's parts of tensors, added up over the ranks that share the first sharded one."""
    sharded = next((tensor for tensor in like if is_sharded(tensor)), None)
    if sharded is None:
        return value
    assert isinstance(sharded, DTensor)
    value = value.clone()
    for dim, placement in enumerate(sharded.placements):
        if placement.is_shard():  # along other dimensions all have the same
            torch.distributed.all_reduce(value, group=sharded.device_mesh.get_group(dim))
    return value
