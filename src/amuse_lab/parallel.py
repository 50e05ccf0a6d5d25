"""Several processes as one: torchrun's environment, DDP and FSDP2."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from amuse_lab.errors import ConfigError, require

Mode = Literal["ddp", "fsdp"]
Precision = Literal["fp32", "amp-bf16", "bf16"]

SHARDED_OPTIMIZERS = ("adamw", "amuse", "anytime", "sf-adamw")
"""The optimizers that are tested to take the same steps on sharded parameters as on whole ones."""

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as one of them sees them.

    Attributes:
        rank: Number of this process; 0 is the main one, which alone writes and prints.
        world_size: Number of processes of the run.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this one writes and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the elementwise sum over all processes; every one of them must call it."""
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def all_reduce_max(self, number: int) -> int:
        """Return the largest of the processes' numbers; every one of them must call it."""
        if self.world_size == 1:
            return number
        value = torch.tensor(number)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value)

    def broadcast(self, value: T) -> T:
        """Return the leading process's value; every one of them must call it."""
        if self.world_size == 1:
            return value
        shared: list[Any] = [value]
        dist.broadcast_object_list(shared)
        received: T = shared[0]
        return received

    def barrier(self) -> None:
        """Return once every process has called it."""
        self.all_reduce_max(0)

    def rows(self, size: int, batch: int | None) -> Iterator[tuple[slice, float]]:
        """Divide one training batch: this process's microbatches, each with its weight.

        The sum over all processes and microbatches of weight times mean loss, divided by the number of
        processes, is the mean loss of the whole batch. (DDP and FSDP divide by that number themselves.)

        Args:
            size: Rows of the whole batch, a multiple of `world_size`.
            batch: Rows of a microbatch at most; None takes all of this process's rows at once.
        """
        share = size // self.world_size
        first = self.rank * share
        batch = batch or share
        for start in range(first, first + share, batch):
            stop = min(start + batch, first + share)
            yield slice(start, stop), (stop - start) * self.world_size / size

    def parts(self, size: int, batch: int) -> Iterator[tuple[slice, int]]:
        """Divide evaluation data: this process's batches, each with the number of rows that count.

        Every process gets the same number of batches, because the forward pass of a sharded model involves
        all processes. A process that has no rows left gets row 0 with a count of 0.

        Args:
            size: Number of rows in all.
            batch: Rows of a batch at most.
        """
        for start in range(0, size, batch * self.world_size):
            stop = min(start + batch * self.world_size, size)
            share = -(-(stop - start) // self.world_size)
            mine = slice(start + self.rank * share, min(start + (self.rank + 1) * share, stop))
            counted = max(0, mine.stop - mine.start)
            yield (mine, counted) if counted else (slice(0, 1), 0)


ALONE = Processes()
"""A run on one process."""


@contextmanager
def init_distributed(device: str, *, sharded: bool) -> Iterator[tuple[Processes, torch.device]]:
    """Context manager: join the processes of torchrun, or of a launcher that sets the same variables.

    Args:
        device: Device in the config; under torchrun "cuda" becomes the GPU of this process's LOCAL_RANK.
        sharded: Whether FSDP2 will be used, which needs a process group for one process too.

    Yields:
        The processes, and the device of this one. An existing process group is used and not destroyed.

    Raises:
        ConfigError: If the device cannot be used here.
    """
    launched = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    if launched and device.startswith("cuda:"):
        raise ConfigError(f"device must be cpu or cuda under torchrun, got {device!r}")
    place = usable(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if launched and device == "cuda" else device)
    if not launched and not sharded:
        yield ALONE, place
        return
    begun = not dist.is_initialized()
    if begun:
        _begin(place, launched=launched)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size()), place
    finally:
        if begun:
            dist.destroy_process_group()


def _begin(device: torch.device, *, launched: bool) -> None:
    """Make the process group: gloo for the CPU, nccl for GPUs."""
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    if launched:
        dist.init_process_group(backend)
    else:
        store = dist.HashStore()  # type: ignore[attr-defined]  # torch does not say that it exports it
        dist.init_process_group(backend, store=store, rank=0, world_size=1)


def check_threads(threads: int) -> None:
    """Check a number of CPU threads.

    Raises:
        ConfigError: If it is more than this machine has cores: each would cost memory and none would help.
    """
    cores = os.cpu_count() or 1
    require(1 <= threads <= cores, "threads", f"from 1 to the {cores} cores of this machine", threads)


def usable(name: str) -> torch.device:
    """Check that a device exists and computes.

    Raises:
        ConfigError: If it does not.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # the device meta has no values
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled for the device
        raise ConfigError(
            f"device must be one that torch can use here, got {name!r}: {error}".split("\n")[0]
        ) from error
    return device


def parallelize(
    model: nn.Module, *, processes: Processes, mode: Mode, precision: Precision, compiled: bool
) -> nn.Module:
    """Convert, compile, shard or wrap a model.

    Args:
        model: On its device, before any optimizer holds its parameters; changed in place.
        processes: Processes that train the model together.
        mode: "fsdp" shards its parameters, whatever the number of processes.
        precision: "bf16" converts it; "amp-bf16" gathers shards in bfloat16.
        compiled: Whether `torch.compile` translates it, or each of its units where it is sharded.

    Returns:
        What to call for the training loss: the model, or DDP around it.
    """
    if precision == "bf16":
        model.to(torch.bfloat16)
    if mode == "fsdp":
        _shard(model, processes, precision, compiled)
        return model
    if compiled:
        model.compile()
    return DistributedDataParallel(model, gradient_as_bucket_view=True) if processes.world_size > 1 else model


def _shard(model: nn.Module, processes: Processes, precision: Precision, compiled: bool) -> None:
    """FSDP2: every member of a ModuleList is gathered on its own, the rest of the model together."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    kind = next(model.parameters()).device.type
    mesh = init_device_mesh(kind, (processes.world_size,))
    mixed = precision == "amp-bf16"
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if mixed else None, reduce_dtype=torch.float32 if mixed else None
    )
    units = [member for module in model.modules() if isinstance(module, nn.ModuleList) for member in module]
    for unit in (*reversed(units), model):  # inner ones first
        if compiled:
            unit.compile()
        # Also the root gives its gathered parameters up after each forward: what an evaluation gathered at
        # x must not be there any more when training goes on at y.
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def replicating(model: nn.Module) -> dist.ProcessGroup | None:
    """The processes that hold copies of a model and get the same gradients; None for one, and for shards."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return None
    return dist.group.WORLD


def no_sync(model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Context manager: DDP exchanges gradients in the last microbatch of a step alone."""
    if isinstance(model, DistributedDataParallel) and not last:
        waiting: AbstractContextManager[None] = model.no_sync()
        return waiting
    return nullcontext()


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor; every process must call it. Others are returned as they are."""
    gather = getattr(tensor, "full_tensor", None)
    gathered: Tensor = tensor if gather is None else gather()
    return gathered
