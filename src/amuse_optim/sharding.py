"""Sharded parameters (DTensor, as FSDP2 makes them): conversion between local shards and full tensors.

All operations but the orthogonalization are elementwise, so every rank updates its local shards as plain
tensors. For the orthogonalization the full momentum is gathered on every rank, which then keeps its shard of
the result.
"""

from collections.abc import Iterable, Sequence

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
    """All-gather a full tensor from its shards; a collective that all ranks of the mesh must call.

    Args:
        part: This rank's shard, of the same shape as the local shard of `like`.
        like: A DTensor with the shape, mesh and placements of the full tensor.
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


def gather_anew(written: Iterable[Tensor]) -> None:
    """Have FSDP2 drop the gathered copies of parameters that were written to.

    Its outermost module keeps them after a forward pass until a backward pass has ended, and would compute
    the next one, after an evaluation, with what the parameters held before. The other modules, which are told
    as well, gather anew at every pass.

    Args:
        written: Parameters; where none of them is sharded nothing is done.
    """
    if not any(map(is_sharded, written)):
        return
    from torch.distributed._composable_state import _module_state_mapping  # no public list of them
    from torch.distributed.fsdp import FSDPModule

    for module in list(_module_state_mapping):
        if isinstance(module, FSDPModule):
            module.reshard()


def own_part(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor that every rank has, cut as the DTensor `like` is."""
    assert isinstance(like, DTensor)
    spread = distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    part: Tensor = spread.to_local()
    return part


def zeros(shape: tuple[int, ...], dtype: torch.dtype, like: Tensor) -> Tensor:
    """Zeros of another shape, on the device of `like` and divided over ranks as its leading dimensions are.

    Args:
        shape: Leading dimensions of `like`'s shape.
        dtype: The dtype of the result.
        like: The parameter whose device, mesh and placements are used.
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
    """All-reduce a sum over local shards, among the ranks that share the first sharded tensor of `like`."""
    sharded = next((tensor for tensor in like if is_sharded(tensor)), None)
    if sharded is None:
        return value
    assert isinstance(sharded, DTensor)
    value = value.clone()
    for dim, placement in enumerate(sharded.placements):
        if placement.is_shard():  # along other dimensions all have the same
            torch.distributed.all_reduce(value, group=sharded.device_mesh.get_group(dim))
    return value
