"""Sharded parameters (DTensor, as FSDP2 and tensor parallelism make them): which rank holds which part.

All operations but the orthogonalization are elementwise, so every rank updates its local shards as plain
tensors. A shard is a box: a range of indices along every dimension of the full tensor.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_SHARDED: tuple[type, ...] = ()
if torch.distributed.is_available():
    from torch.distributed.tensor import DTensor, Replicate

    _SHARDED = (DTensor,)

# A range [start, stop) of indices along every dimension of a tensor.
Box = tuple[tuple[int, int], ...]


class Held(NamedTuple):
    """What a rank holds of a tensor.

    Args:
        box: The part: a range of indices along every dimension; an empty one where the rank holds nothing.
        shard: Number of the part; ranks that hold the same one have the same number.
        replica: Number of the copy that the part belongs to: ranks of one replica hold every part once.
    """

    box: Box
    shard: int
    replica: int


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, of which this rank may hold only a part."""
    return isinstance(tensor, _SHARDED)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: a view of it where it is sharded, else the tensor itself."""
    if not is_sharded(tensor):
        return tensor
    assert isinstance(tensor, DTensor)
    part: Tensor = tensor.to_local()
    return part


def held_parts(shape: Sequence[int], mesh: Sequence[int], placements: Sequence[Any]) -> list[Held]:
    """What every rank of a mesh holds of a tensor, in the mesh's order.

    As `torch.chunk` cuts: all parts along a dimension have ceil(size / parts) indices, but the last ones,
    which have what is left, or none. FSDP2 on top of tensor parallelism cuts what that has left, though its
    mesh dimension comes first; torch says so by `_StridedShard`.

    Args:
        shape: Shape of the whole tensor.
        mesh: Number of ranks along every dimension of the mesh.
        placements: One for each dimension of the mesh.
    """
    dims = [getattr(placement, "dim", None) for placement in placements]
    order = sorted(range(len(mesh)), key=lambda i: hasattr(placements[i], "split_factor"))
    found = []
    for coordinate in itertools.product(*map(range, mesh)):
        box, shard, replica = [(0, size) for size in shape], 0, 0
        for i in order:
            dim = dims[i]
            if dim is None:
                replica = replica * mesh[i] + coordinate[i]
                continue
            shard = shard * mesh[i] + coordinate[i]
            start, stop = box[dim]
            size = -(-(stop - start) // mesh[i])
            first = min(start + coordinate[i] * size, stop)
            box[dim] = first, min(first + size, stop)
        found.append(Held(tuple(box), shard, replica))
    return found


def held_here(tensor: Tensor) -> Held:
    """What this rank holds of a DTensor."""
    assert isinstance(tensor, DTensor)
    mesh = tensor.device_mesh
    held = held_parts(tensor.shape, mesh.shape, tensor.placements)
    return held[mesh.mesh.flatten().tolist().index(torch.distributed.get_rank())]


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


def leading_placements(placements: Sequence[Any], dims: int) -> list[Any]:
    """The placements of a tensor that has the first `dims` dimensions of another one alone."""
    return [each if getattr(each, "dim", dims) < dims else Replicate() for each in placements]


def zeros(shape: tuple[int, ...], dtype: torch.dtype, like: Tensor) -> Tensor:
    """Zeros of another shape, on the device of `like` and divided over ranks as its leading dimensions are.

    Args:
        shape: As many dimensions as the result has.
        dtype: The dtype of the result.
        like: The parameter whose device, mesh and placements are used.
    """
    whole = torch.zeros(shape, dtype=dtype, device=like.device)
    if not is_sharded(like):
        return whole
    assert isinstance(like, DTensor)
    placements = leading_placements(like.placements, len(shape))
    mesh = like.device_mesh
    held = held_parts(shape, mesh.shape, placements)
    box = held[mesh.mesh.flatten().tolist().index(torch.distributed.get_rank())].box
    part = whole[tuple(slice(*span) for span in box)].clone()
    made: Tensor = DTensor.from_local(
        part, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )
    return made


def copies(tensor: Tensor) -> int:
    """How many ranks hold each part of a tensor, as far as the tensor knows."""
    if not is_sharded(tensor):
        return 1
    assert isinstance(tensor, DTensor)
    mesh = zip(tensor.device_mesh.shape, tensor.placements, strict=True)
    return math.prod(size for size, placement in mesh if not hasattr(placement, "dim"))


def placed_like(gradient: Tensor, parameter: Tensor) -> Tensor:
    """A gradient that lies on the ranks as its parameter does.

    Autograd may leave it otherwise, above all as sums over ranks that are still to be taken (`Partial`), as
    it does with replicated weights of tensor parallelism. Every rank of the mesh calls this.
    """
    if not is_sharded(parameter):
        return gradient
    assert isinstance(parameter, DTensor)
    assert isinstance(gradient, DTensor)
    if gradient.placements == parameter.placements:
        return gradient
    placed: Tensor = gradient.redistribute(placements=parameter.placements)
    return placed


def summed(parts: Iterable[tuple[Any, Tensor]], parameters: Sequence[Tensor], size: int) -> Tensor:
    """Sums over all entries of parameters, from those over the entries that this rank has.

    Where parameters are sharded, every rank of their meshes calls this. An entry counts once, however many
    ranks have a copy of it.

    Args:
        parts: Pairs of a mesh, from `mesh_of`, and sums over entries of parameters on it, shape (size,),
            divided by their `copies`.
        parameters: The parameters, in the same order on all ranks.
        size: How many sums there are.
    """
    like = next((p for p in parameters if is_sharded(p)), parameters[0])
    zero = local(like.detach()).new_zeros(size, dtype=torch.promote_types(like.dtype, torch.float32))
    by_mesh = {mesh_of(parameter): zero.clone() for parameter in parameters}
    for mesh, part in parts:
        by_mesh[mesh] = by_mesh.get(mesh, zero) + part.to(zero)
    for mesh, total in by_mesh.items():
        for group in () if mesh is None else mesh.get_all_groups():
            torch.distributed.all_reduce(total, group=group)
    return torch.stack([*by_mesh.values()]).sum(dim=0)


def mesh_of(tensor: Tensor) -> Any:
    """The device mesh of a sharded tensor; None for a plain one, which every rank has whole."""
    return getattr(tensor, "device_mesh", None)
