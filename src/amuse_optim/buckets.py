"""Buckets: the parameters of a group that move together, and the chunks that they are moved in.

A bucket holds parameters that are alike in device, dtypes, step count and beta, as flat buffers: the entries
of each tensor in the order they lie in memory. A chunk is a list of pieces of them. On a CPU it is small
enough for the cache, so that only the first operation on it waits for memory; elsewhere it is so large that
few operations are launched. Chunks are read in the precision of the computation, float32 or float64, and
written back in that of the storage.
"""

from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from . import averaging, kernels, precision
from .averaging import StepNumbers, Tensors
from .measurement import Measurement
from .ranks import Division
from .schedule import AVERAGE, Coefficients, Number, PowerAverage
from .sharding import held_here, is_sharded, local

Group = dict[str, Any]
State = MutableMapping[str, Any]
# Pieces of the buffers of one parameter, of equal length, by name: "y", "gradient" and the state's.
Row = dict[str, Tensor]

# Entries of each tensor in a chunk: on a CPU, for each thread, half a dozen of this size fit in a cache of
# 2 MiB; elsewhere the bound is one of memory.
CHUNK_ENTRIES_ON_CPU = 2**16
CHUNK_ENTRIES = 2**24

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def dense_order(tensors: Sequence[Tensor], *, channels_last: bool = True) -> tuple[int, ...] | None:
    """The order of dimensions in which the entries of tensors of one shape lie in memory without gaps.

    Channels-last kernels (out, k..., in) have the columns of their matrix in another order, which the
    polar factor keeps; all else works entry by entry.

    Returns:
        () where all are contiguous, (0, 2, ..., 1) where all are channels-last and that is
            allowed; else None.
    """
    if all(tensor.is_contiguous() for tensor in tensors):
        return ()
    dims = tensors[0].ndim
    last = _CHANNELS_LAST.get(dims) if channels_last else None
    if last is not None and all(tensor.is_contiguous(memory_format=last) for tensor in tensors):
        return (0, *range(2, dims), 1)
    return None


def flat(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """The entries in this order, one-dimensional: a view where they lie so in memory, else a copy."""
    return (tensor.permute(order) if order else tensor).reshape(-1)


@dataclass(slots=True)
class Slot:
    """A parameter in one step.

    Args:
        param: The parameter itself, for its shape and how it is sharded.
        index: Its index in the group.
        state: What the optimizer keeps of it between steps, by name: step count, beta, z or x or both, and
            the tensors of its direction.
        row: Its flat buffers; of a sharded parameter, this rank's part of them.
        copies: Stored tensors whose buffer had to be a copy, because they are not dense in memory.
        order: The order of dimensions in which the entries of the buffers lie; () for that of the shape.
    """

    param: Tensor
    index: int
    state: State
    row: Row
    copies: list[tuple[Tensor, Tensor]]
    order: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, group: Group, index: int, state: State, names: Sequence[str], gradient: Tensor | None = None
    ) -> "Slot":
        """The slot of a parameter with a gradient.

        Args:
            group: The group of the parameter.
            index: The parameter's index in the group.
            state: The optimizer's state of the parameter.
            names: Names of the tensors in the state that have the parameter's shape.
            gradient: The gradient; None means the parameter's `grad`.
        """
        param: Tensor = group["params"][index]
        gradient = param.grad if gradient is None else gradient
        assert gradient is not None
        tensors = [param, *(state[name] for name in names)]
        if is_sharded(param):
            tensors, gradient = [local(tensor) for tensor in tensors], local(gradient)
        order = None
        if type(tensors[0]) in kernels.PLAIN:
            whole = [
                tensor for tensor in tensors if tensor.numel()
            ] or tensors  # others may be on other ranks
            order = dense_order(whole, channels_last=not (group["stacked"] or group.get("transposed")))
        buffers = [flat(tensor, order or ()) for tensor in tensors]
        copies: list[tuple[Tensor, Tensor]] = []
        if order is None:
            buffers = [buffer.clone() for buffer in buffers]
            copies = list(zip(tensors, buffers, strict=True))
        row = dict(zip(("y", *names, "gradient"), (*buffers, flat(gradient, order or ())), strict=True))
        return cls(param, index, state, row, copies, order or ())

    def shaped(self, buffer: Tensor) -> Tensor:
        """A view of a flat buffer in the shape of what this rank has of the parameter."""
        shape = local(self.param).shape
        if not self.order:
            return buffer.view(shape)
        places = [self.order.index(dim) for dim in range(len(self.order))]
        return buffer.view([shape[dim] for dim in self.order]).permute(places)

    def put_back(self) -> None:
        """Write the copies to where they are from."""
        for stored, copy in self.copies:
            stored.copy_(copy.view(stored.shape))


@dataclass
class Bucket:
    """Parameters of a group that are alike in device, dtypes, step count, beta and how they are sharded.

    Args:
        group: The group of the parameters, with its options.
        number: The group's index in the optimizer.
        slots: The parameters, at least one.
        measurement: Collects the step's measurements for `telemetry`; None if it has not been called.
        division: Who orthogonalizes what, where ranks share parameters.
    """

    group: Group
    number: int
    slots: list[Slot]
    measurement: Measurement | None = None
    division: Division | None = None
    _generators: dict[str, torch.Generator] = field(default_factory=dict)

    def __post_init__(self) -> None:
        state, y = self.slots[0].state, self.slots[0].row["y"]
        self.names = tuple(self.slots[0].row)
        self.sequences = tuple(n for n in self.names if n in ("y", "z", "x") or n.startswith(AVERAGE))
        self.device = y.device
        self.dtype = y.dtype if y.dtype == torch.float64 else torch.float32
        self.sharded = is_sharded(self.slots[0].param)
        self.step: Number = state["step"] + 1
        self.beta: Number = state["beta"]

    def chunks(self) -> "Iterator[Chunk]":
        """All of it, cut into chunks."""
        return self.cut([slot.row for slot in self.slots], self.names)

    def cut(
        self, rows: Sequence[Row], names: Sequence[str], updates: Sequence[Tensor] = ()
    ) -> "Iterator[Chunk]":
        """Cut rows into chunks of about `CHUNK_ENTRIES` entries.

        Args:
            rows: The tensors of a row have equal lengths.
            names: Which of their tensors are wanted.
            updates: A tensor beside each row, of its length, which is cut with it; may be left out.
        """
        on_cpu = self.device.type == "cpu"
        bound = CHUNK_ENTRIES_ON_CPU * torch.get_num_threads() if on_cpu else CHUNK_ENTRIES
        chunk, entries = Chunk(self, [], []), 0
        for row, update in zip_longest(rows, updates):
            size = row[names[0]].numel()
            if entries and entries + size > bound:
                yield chunk
                chunk, entries = Chunk(self, [], []), 0
            if size > bound:
                most = max(1, bound * len(row[names[0]]) // size)
                pieces = zip(*(row[name].split(most) for name in names), strict=True)
                cut = [] if update is None else update.split(most)
                for piece, part in zip_longest(pieces, cut):
                    yield Chunk(self, [dict(zip(names, piece, strict=True))], [part])
            elif size:
                chunk.rows.append(row)
                chunk.update.append(update)
                entries += size
        if entries:
            yield chunk

    def numbers(self, now: Coefficients) -> StepNumbers:
        """What the equations of this step are told."""
        decay, at = self.group["weight_decay"], self.group["weight_decay_at"]
        published = self.group["parity"] == "published"
        rules = [PowerAverage(kappa) for kappa in self.group["averages"]]
        averages = tuple((rule.name, rule(self.step)) for rule in rules)
        return StepNumbers(now.lr, decay, at, self.beta, now.c, now.beta, published, averages)

    def generator(self, name: str) -> torch.Generator:
        """Random bits to round a state tensor with: the same in a resumed run, others for every tensor.

        And others for every shard of it; replicas of a shard have the same. Ranks that keep the momentum of
        some matrices each have others for it.
        """
        if name not in self._generators:
            first = self.slots[0].param
            key = [int(self.step), self.number, self.slots[0].index, self.names.index(name)]
            shared = None if self.division is None else self.division.shared.get(first)
            if self.sharded:
                key.append(held_here(first).shard)
            elif shared is not None and shared.keeper is not None and name not in self.sequences:
                key.append(shared.members.rank)
            self._generators[name] = precision.rounding_generator(self.device, *key)
        return self._generators[name]

    def finish(self, now: Coefficients) -> None:
        """Put back what was copied; record the step and the beta of the new y."""
        for slot in self.slots:
            slot.put_back()
            if not isinstance(self.step, Tensor):
                slot.state["step"], slot.state["beta"] = self.step, now.beta
        if isinstance(self.step, Tensor):  # which all of them share
            self.slots[0].state["step"].copy_(self.step)
            self.slots[0].state["beta"].fill_(now.beta)


@dataclass(slots=True)
class Chunk:
    """Pieces of a bucket's buffers that are computed on at once.

    Args:
        bucket: The bucket that the pieces belong to; it knows the group's options and the step count.
        rows: The pieces, parameter by parameter.
        update: A tensor beside each, if `Bucket.cut` was given some.
    """

    bucket: Bucket
    rows: list[Row]
    update: list[Tensor]

    @property
    def group(self) -> Group:
        """The options of the parameters."""
        return self.bucket.group

    @property
    def step(self) -> Number:
        """How many gradients the parameters have seen, this one included."""
        return self.bucket.step

    def __contains__(self, name: str) -> bool:
        return name in self.rows[0]

    def stored(self, name: str) -> list[Tensor]:
        """A buffer's pieces as they are stored."""
        return [row[name] for row in self.rows]

    def read(self, name: str) -> list[Tensor]:
        """A buffer's pieces to compute with: the stored ones where their precision is that of computation."""
        stored = self.stored(name)
        dtype = self.bucket.dtype
        return stored if stored[0].dtype == dtype else [tensor.to(dtype) for tensor in stored]

    def write(self, name: str, values: Tensors) -> list[Tensor]:
        """Store what was read and changed, or something new; nothing is to do where it was changed in place.

        bfloat16 state is rounded stochastically, so that it stays right on average; y to the nearest.

        Returns:
            What is stored now, to compute with.
        """
        stored = self.stored(name)
        if stored[0] is values[0]:
            return stored
        for target, value in zip(stored, values, strict=True):
            if target.dtype == torch.bfloat16 and name != "y":
                value = precision.stochastic_round(value, self.bucket.generator(name))
            target.copy_(value)
        return self.read(name)

    def advance_(self, update: Tensors, scale: Number, numbers: StepNumbers) -> None:
        """Update z, x and y, whichever of them are stored, and the averages for reading, by one step.

        Args:
            update: d / scale, one tensor for each piece of the chunk.
            scale: The common factor of the update.
            numbers: The step's coefficients, from `Bucket.numbers`.
        """
        z = self._advance_sequences_(update, scale, numbers)
        for name, c in numbers.averages:
            average = self.read(name)
            averaging.average_(average, z, c)
            self.write(name, average)

    def _advance_sequences_(self, update: Tensors, scale: Number, numbers: StepNumbers) -> Tensors:
        """Update the sequences; returns the new z."""
        y = self.read("y")
        z = self.read("z") if "z" in self else y  # for beta = 0, y is z
        if "x" not in self:
            if self.rows[0]["z"] is z[0]:
                kernels.advance_(y, z, update, scale, numbers)
                return z
            x = averaging.decode_(y, z, numbers.decode)
            averaging.descend_(z, x, update, scale, numbers)
            z = self.write("z", z)
            averaging.average_and_interpolate_(x, z, numbers)
            return z
        x = self.read("x")
        if numbers.published:
            averaging.decode_as_published_(x, z, numbers)
        averaging.descend_(z, x, update, scale, numbers)
        z = self.write("z", z) if "z" in self else self.write("y", z)
        averaging.average_(x, z, numbers.c)
        x = self.write("x", x)
        if "z" in self:
            self.write("y", averaging.interpolate(z, x, numbers.beta_next))
        return z
