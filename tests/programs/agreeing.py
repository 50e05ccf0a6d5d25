"""What two processes of test_ranks.py do that do not have the same: they stop together, or go on together."""

import copy
import gc
import os
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from amuse_lab.launch import exit_rank
from amuse_optim import AMUSE, OptimizerModeError, telemetry
from amuse_optim.directions import divided
from amuse_optim.exchange import Exchange
from benchmarks.traffic import counted

SHAPES = ((6, 4), (4, 5), (3, 7), (6, 4))


def sharded(value: Tensor) -> DTensor:
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    return distribute_tensor(value, mesh, [Shard(0)])


def replicated(value: Tensor) -> DTensor:
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    return distribute_tensor(value, mesh, [Replicate()])


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def build(of: Callable[[Tensor], Tensor] | None = None, **options: Any) -> AMUSE:
    """Four matrices in two groups, replicated, or as `of` puts them on the ranks."""
    torch.manual_seed(0)
    values = [torch.randn(shape, dtype=torch.float64) for shape in SHAPES]
    parameters = [nn.Parameter(value if of is None else of(value)) for value in values]
    groups = [{"params": parameters[:3]}, {"params": parameters[3:]}]
    if of is None:
        options.setdefault("process_group", distributed.group.WORLD)
    return AMUSE(groups, direction="muon", lr=0.1, warmup_steps=2, **options)


def parameters_of(optimizer: AMUSE) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def feed(optimizer: AMUSE, step: int, without: tuple[int, ...] = ()) -> None:
    """The same gradients on every rank, but for parameters at these places."""
    for place, parameter in enumerate(parameters_of(optimizer)):
        generator = torch.Generator().manual_seed(10 * step + place)
        gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
        like = gradient
        if isinstance(parameter, DTensor):
            like = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
        parameter.grad = None if place in without else like


def held(optimizer: AMUSE) -> list[Tensor]:
    """Copies of everything that a step could change on this rank."""
    found = [*parameters_of(optimizer)]
    for parameter in parameters_of(optimizer):
        found += [value for value in optimizer.state[parameter].values() if isinstance(value, Tensor)]
    return [t.to_local().clone() if isinstance(t, DTensor) else t.detach().clone() for t in found]


def unchanged(optimizer: AMUSE, before: list[Tensor]) -> bool:
    same = all(torch.equal(a, b) for a, b in zip(held(optimizer), before, strict=True))
    return same and all(group["t"] == 1 for group in optimizer.param_groups)


def stepped_once(**options: Any) -> tuple[AMUSE, list[Tensor]]:
    optimizer = build(**options)
    feed(optimizer, 0)
    optimizer.step()
    return optimizer, held(optimizer)


def missing_shards_count_as_zeros() -> None:
    """Also where a whole group has no gradient on one rank; one without a gradient anywhere rests."""
    optimizer, expected = build(sharded), build(process_group=None)
    rank = distributed.get_rank()
    for step in range(4):
        feed(optimizer, step, (1, 3, 2) if rank else (2,))
        feed(expected, step, (2,))
        for place in (1, 3):
            gradient = parameters_of(expected)[place].grad
            gradient[len(gradient) // 2 :] = 0.0  # what rank 1 has of it
        optimizer.step()
        expected.step()
    for place, (ours, theirs) in enumerate(
        zip(parameters_of(optimizer), parameters_of(expected), strict=True)
    ):
        torch.testing.assert_close(whole(ours.detach()), theirs.detach(), rtol=0, atol=1e-10)
        assert optimizer.state[ours]["step"] == expected.state[theirs]["step"] == (0 if place == 2 else 4)
    assert [group["t"] for group in optimizer.param_groups] == [4, 4]


def replicas_have_the_same_gradients() -> None:
    optimizer, before = stepped_once()
    feed(optimizer, 1, (1,) if distributed.get_rank() else ())
    with pytest.raises(ValueError, match=r"shape \(4, 5\) has a gradient on 1 of 2 ranks"):
        optimizer.step()
    assert unchanged(optimizer, before)


def copies_among_sharded_parameters_do_so_too() -> None:
    """A DTensor that every rank has whole is no shard, whose missing gradient could count as zeros."""
    optimizer, before = stepped_once(of=replicated)
    feed(optimizer, 1, (1,) if distributed.get_rank() else ())
    with pytest.raises(ValueError, match=r"shape \(4, 5\) has a gradient on 1 of 2 ranks"):
        optimizer.step()
    assert unchanged(optimizer, before)


def gradients_whose_sums_are_left_open_are_summed() -> None:
    """As autograd leaves those of replicated weights where tensor parallelism divides the activations."""
    mesh = init_device_mesh("cpu", (2,))
    optimizer, expected = build(replicated), build(process_group=None)
    for step in range(3):
        for place, (ours, theirs) in enumerate(
            zip(parameters_of(optimizer), parameters_of(expected), strict=True)
        ):
            generator = torch.Generator().manual_seed(10 * step + place)
            inputs = torch.randn(6, theirs.shape[1], generator=generator, dtype=torch.float64)
            for weight, given in ((theirs, inputs), (ours, distribute_tensor(inputs, mesh, [Shard(0)]))):
                weight.grad = None
                (given @ weight.t()).square().sum().backward()
            assert ours.grad.placements[0].is_partial()
        for each in (optimizer, expected):
            each.step()
        assert all(p.grad.placements[0].is_partial() for p in parameters_of(optimizer))  # read, not written
    for ours, theirs in zip(parameters_of(optimizer), parameters_of(expected), strict=True):
        torch.testing.assert_close(ours.detach().to_local(), theirs.detach(), rtol=0, atol=1e-10)


def not_finite_anywhere_stops_all() -> None:
    for of in (None, sharded):
        for reaction in ("raise", "skip"):
            optimizer, before = stepped_once(of=of, nonfinite=reaction)
            feed(optimizer, 1)
            if distributed.get_rank() == 1:
                gradient = parameters_of(optimizer)[3].grad
                (gradient.to_local() if of else gradient)[0, 0] = torch.inf
            if reaction == "skip":
                optimizer.step()
                assert [group["skipped_steps"] for group in optimizer.param_groups] == [1, 1]
            else:
                whose = "the gradient of parameter" if distributed.get_rank() else "gradients on another rank"
                with pytest.raises(FloatingPointError, match=whose):
                    optimizer.step()
            assert unchanged(optimizer, before)


def parameters_that_are_not_finite_are_counted_once() -> None:
    """Also where every rank has the same gradients."""
    optimizer, before = stepped_once()
    feed(optimizer, 1)
    parameters_of(optimizer)[0].grad[0, 0] = torch.nan
    members = len(optimizer.param_groups[0]["params"])
    with pytest.raises(FloatingPointError, match=rf"not finite \(1 of {members} parameters of the group\)"):
        optimizer.step()
    assert unchanged(optimizer, before)


def what_one_rank_refuses_none_does() -> None:
    optimizer, before = stepped_once(of=sharded)
    feed(optimizer, 1)
    if distributed.get_rank() == 0:
        optimizer.param_groups[0]["lr"] = -1.0
    kind, match = (ValueError, "lr must be") if distributed.get_rank() == 0 else (RuntimeError, "refused")
    with pytest.raises(kind, match=match):
        optimizer.step()
    assert unchanged(optimizer, before)


def a_function_that_fails_for_one_matrix_stops_all() -> None:
    """One rank has it; the momenta of both are put back."""
    broken = [False]

    def factor(stack: Tensor) -> Tensor:
        if broken[0] and stack.shape[1:] == (3, 7):
            raise ArithmeticError("no factor")
        return torch.nn.functional.normalize(stack, dim=-1)

    for of in (None, sharded):
        broken[0] = False
        optimizer, before = stepped_once(of=of, orthogonalize=factor)
        broken[0] = True
        feed(optimizer, 1)
        with pytest.raises((ArithmeticError, RuntimeError)) as error:
            optimizer.step()
        failed = [None, None]
        distributed.all_gather_object(failed, type(error.value).__name__)
        assert sorted(failed) == ["ArithmeticError", "RuntimeError"]
        assert unchanged(optimizer, before)
        broken[0] = False
        optimizer.step()
        assert not unchanged(optimizer, before)


def the_first_difference_is_named() -> None:
    for other, first in (
        ({"split_rows": (2, 4)}, "second, matrix 0 of"),
        ({"orthogonalize_dtype": torch.bfloat16}, "second, matrix 0 of"),
        ({"orthogonalize": "exact"}, "orthogonalize=.quintic"),
        ({"direction": "normuon"}, "direction=.muon"),
    ):
        options = {} if distributed.get_rank() == 0 else other
        torch.manual_seed(0)
        weights = [("first", nn.Parameter(torch.randn(6, 5))), ("second", nn.Parameter(torch.randn(6, 4)))]
        groups = [{"params": weights[:1]}, {"params": weights[1:], **options}]
        world = distributed.group.WORLD
        optimizer = AMUSE(groups, direction="muon", lr=0.1, warmup_steps=2, process_group=world)
        for _, weight in weights:
            weight.grad = torch.ones_like(weight)
        with pytest.raises(ValueError, match=rf"difference is .group 1, {first}.* on rank 1"):
            optimizer.step()


def ranks_without_the_same_values_are_no_replicas() -> None:
    """Such as shards in plain tensors, each of which would get the updates of another one."""
    weight = nn.Parameter(torch.full((3, 2), 1.0 + distributed.get_rank()))
    world = distributed.group.WORLD
    optimizer = AMUSE([weight], direction="muon", warmup_steps=2, process_group=world)
    weight.grad = torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"difference is 'group 0, parameter 0, .* values with the checksum"):
        optimizer.step()
    assert torch.equal(weight, torch.full((3, 2), 1.0 + distributed.get_rank()))


def groups_that_come_later_are_divided_too() -> None:
    optimizer, expected = build(), build(process_group=None)
    for step in range(6):
        if step == 3:
            for each in (optimizer, expected):
                late = nn.Parameter(torch.arange(24.0, dtype=torch.float64).sin().view(4, 6))
                each.add_param_group({"params": [late], "num_heads": 2})
        for each in (optimizer, expected):
            feed(each, step)
            each.step()
    for ours, theirs in zip(parameters_of(optimizer), parameters_of(expected), strict=True):
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=0, atol=1e-10)


def another_process_group_is_used_from_then_on() -> None:
    optimizer, _ = stepped_once()
    optimizer.process_group = distributed.new_group([0, 1])
    feed(optimizer, 1)
    optimizer.step()
    assert [members.group for members in optimizer.division.members()] == [optimizer.process_group]


def divided_state_needs_a_process_group_at_every_step() -> None:
    optimizer, before = stepped_once(shard_state=True)
    optimizer.process_group = None
    feed(optimizer, 1)
    with pytest.raises(TypeError, match="process_group must be"):
        optimizer.step()
    assert unchanged(optimizer, before)


def missing_shards_have_the_dtype_of_the_gradients() -> None:
    """bfloat16 shards with gradients in float32: the ranks exchange the matrices of both at once."""
    weights = [nn.Parameter(sharded(torch.ones(6, 4, dtype=torch.bfloat16))) for _ in range(2)]
    optimizer = AMUSE(weights, direction="muon", lr=0.1, warmup_steps=2)
    for weight in weights:
        weight.grad_dtype = torch.float32
        weight.grad = sharded(torch.ones(6, 4))
    if distributed.get_rank() == 1:
        weights[1].grad = None
    optimizer.step()
    assert [optimizer.state[weight]["step"] for weight in weights] == [1, 1]


def lean_state_of_shards_is_rounded_differently() -> None:
    """Equal shards get other random bits on another rank; replicas get the same."""
    mesh = init_device_mesh("cpu", (2,))
    for placement, same in ((Shard(0), False), (Replicate(), True)):
        parameter = nn.Parameter(distribute_tensor(torch.ones(64, 8), mesh, [placement]))
        optimizer = AMUSE([parameter], direction="sgd", lr=0.1, warmup_steps=2, state_precision="lean")
        for _ in range(3):
            parameter.grad = distribute_tensor(torch.full((64, 8), 0.01), mesh, [placement])
            optimizer.step()
        part = optimizer.state[parameter]["z"].to_local()
        parts = [torch.empty_like(part) for _ in range(2)]
        distributed.all_gather(parts, part)
        assert torch.equal(*parts) == same


def lean_momenta_are_rounded_differently_by_each_rank() -> None:
    """Each keeps one of two equal matrices; z is the same everywhere."""
    world = distributed.group.WORLD
    weights = [nn.Parameter(torch.ones(16, 8)) for _ in range(2)]
    options: dict[str, Any] = {"process_group": world, "shard_state": True, "state_precision": "lean"}
    optimizer = AMUSE(weights, direction="muon", lr=0.1, warmup_steps=2, **options)
    for weight in weights:
        weight.grad = torch.linspace(0.1, 0.3, 128).view(16, 8)
    optimizer.step()
    saved = optimizer.state_dict()["state"]
    assert not torch.equal(saved[0]["momentum_buffer"], saved[1]["momentum_buffer"])
    torch.testing.assert_close(saved[0]["momentum_buffer"], saved[1]["momentum_buffer"], rtol=2**-7, atol=0)
    z = optimizer.state[weights[0]]["z"]
    copies = [torch.empty_like(z) for _ in range(2)]
    distributed.all_gather(copies, z)
    assert torch.equal(*copies)


def measured_over_all_ranks() -> None:
    """On the one rank that asks; the other one, which does not, takes part."""
    asking = distributed.get_rank() == 1
    optimizer, expected = build(), build(process_group=None)
    for step in range(3):
        for each in (optimizer, expected):
            if asking:
                telemetry(each)
            feed(each, step)
            each.step()
    assert optimizer.measurements is None or asking
    if asking:
        ours = telemetry(optimizer)
        for name, value in telemetry(expected).items():
            torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-9, msg=name)
    feed(optimizer, 3)
    optimizer.step()


def a_rank_with_other_groups_stops_all() -> None:
    """Between steps: an option that was changed, or a group that was added, on one rank alone."""
    for change in (
        lambda optimizer: optimizer.param_groups[1].update(orthogonalize_steps=3),
        lambda optimizer: optimizer.param_groups[1].update(orthogonalize="exact"),
        lambda optimizer: optimizer.param_groups[0].update(foreach=False),
        lambda optimizer: optimizer.param_groups[0].update(scale="spectral"),
        lambda optimizer: optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, 3))]}),
    ):
        optimizer, _ = stepped_once()
        feed(optimizer, 1)
        if distributed.get_rank() == 1:
            change(optimizer)
        before = held(optimizer)
        for _ in range(2):  # it is found again
            with pytest.raises(ValueError, match=r"the first difference is .* on rank 0 and .* on rank 1"):
                optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(held(optimizer), before, strict=True))


def what_one_rank_cannot_divide_none_does() -> None:
    """An option that was made impossible before the first step, with which there is no plan."""
    for options in ({}, {"shard_state": True}):
        optimizer = build(**options)
        feed(optimizer, 0)
        if distributed.get_rank() == 1:
            optimizer.param_groups[1]["split_rows"] = (4, 5)
        kind = ValueError if distributed.get_rank() == 1 else RuntimeError
        with pytest.raises(kind, match="split_rows" if distributed.get_rank() == 1 else "refused the step"):
            optimizer.step()
        assert [group["t"] for group in optimizer.param_groups] == [0, 0]


def a_rank_in_eval_mode_stops_all() -> None:
    for steps in (0, 1):
        optimizer = stepped_once()[0] if steps else build()
        feed(optimizer, 1)
        if distributed.get_rank() == 0:
            optimizer.eval()
        error = OptimizerModeError if distributed.get_rank() == 0 else RuntimeError
        with pytest.raises(error, match="eval mode" if distributed.get_rank() == 0 else "refused the step"):
            optimizer.step()
        optimizer.train()
        optimizer.step()
        assert [group["t"] for group in optimizer.param_groups] == [steps + 1, steps + 1]


def parameters_may_have_the_same_name() -> None:
    weights = [("weight", nn.Parameter(torch.ones(2, 3))), ("weight", nn.Parameter(torch.ones(2, 3)))]
    world = distributed.group.WORLD
    optimizer = AMUSE(weights, direction="muon", warmup_steps=2, process_group=world)
    for _, weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert torch.equal(weights[0][1], weights[1][1])


def matrices_of_one_shape_travel_in_batches() -> None:
    """Where they would be too many at once; the results are the same."""
    found, calls = [], []
    for of, bound in ((None, divided.ENTRIES_TOGETHER), (None, 2 * 6 * 4), (sharded, 2 * 6 * 4 // 2)):
        torch.manual_seed(0)
        values = [torch.randn(6, 4, dtype=torch.float64) for _ in range(7)]
        weights = [nn.Parameter(value if of is None else of(value)) for value in values]
        world = None if of else distributed.group.WORLD
        optimizer = AMUSE(weights, direction="normuon", lr=0.1, warmup_steps=2, process_group=world)
        divided.ENTRIES_TOGETHER, before = bound, divided.ENTRIES_TOGETHER
        with counted() as traffic:
            for step in range(3):
                feed(optimizer, step)
                optimizer.step()
        divided.ENTRIES_TOGETHER = before
        found.append([whole(weight.detach()) for weight in weights])
        calls.append(traffic.calls["all_to_all_single" if of else "all_gather"])
    assert calls == [3, 12, 24]
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*found, strict=True))


def momenta_are_kept_by_their_owners() -> None:
    """Half of them by each of two ranks, also of groups that come later; what is saved has all of them."""
    optimizer, expected = build(shard_state=True), build(process_group=None)
    owners = []
    for step in range(6):
        if step in (2, 4):  # owners change
            for each in (optimizer, expected):
                late = torch.arange(30.0, dtype=torch.float64).mul(step).sin().view(5, 6)
                each.add_param_group({"params": [nn.Parameter(late)], "direction": "normuon"})
        for each in (optimizer, expected):
            feed(each, step)
            each.step()
        owners.append([optimizer.division.shared[p].keeper for p in parameters_of(optimizer)[:4]])
    assert owners[0] != owners[2]
    assert owners[2] != owners[4]
    kept = {p: optimizer.state[p]["momentum_buffer"].numel() for p in parameters_of(optimizer)}
    assert all(number in (0, parameter.numel()) for parameter, number in kept.items())
    numbers: list[Any] = [None, None]
    distributed.all_gather_object(numbers, list(kept.values()))
    assert [sum(pair) for pair in zip(*numbers, strict=True)] == [p.numel() for p in parameters_of(optimizer)]
    assert all(0 < sum(number) < sum(map(Tensor.numel, kept)) for number in numbers)
    saved, theirs = optimizer.state_dict()["state"], expected.state_dict()["state"]
    for index, state in theirs.items():
        for name, value in state.items():
            torch.testing.assert_close(saved[index][name], value, rtol=0, atol=1e-10)


def divided_state_is_saved_and_loaded() -> None:
    """By a run that goes on as it would have, whether it has divided state or not."""
    optimizer = build(shard_state=True)
    first = optimizer.state_dict()["state"]  # before the first step nobody has all of it either
    assert all(state["momentum_buffer"].shape == state["z"].shape for state in first.values())
    kept = [optimizer.state[p]["momentum_buffer"].numel() for p in parameters_of(optimizer)]
    assert 0 < sum(kept) < sum(p.numel() for p in parameters_of(optimizer))
    for step in range(3):
        feed(optimizer, step)
        optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    for options in ({"shard_state": True}, {}, {"process_group": None}):
        again = build(**options)
        for ours, theirs in zip(parameters_of(again), parameters_of(optimizer), strict=True):
            ours.data.copy_(theirs.data)
        again.load_state_dict(saved)
        if options == {"shard_state": True}:
            kept = [again.state[p]["momentum_buffer"].numel() for p in parameters_of(again)]
            assert kept == [optimizer.state[p]["momentum_buffer"].numel() for p in parameters_of(optimizer)]
            more = again.state_dict()["state"]
            assert all(
                torch.equal(more[i]["momentum_buffer"], state["momentum_buffer"])
                for i, state in saved["state"].items()
            )
        found = copy.deepcopy([p.detach() for p in parameters_of(optimizer)])
        assert all(torch.equal(a, b) for a, b in zip(found, parameters_of(again), strict=True))
        feed(again, 3)
        again.step()
        rested = build(process_group=None)
        for ours, theirs in zip(parameters_of(rested), found, strict=True):
            ours.data.copy_(theirs)
        rested.load_state_dict(saved)
        feed(rested, 3)
        rested.step()
        for ours, theirs in zip(parameters_of(again), parameters_of(rested), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def divided_state_may_lie_in_memory_in_any_order() -> None:
    """Channels-last kernels and transposed weights: what is saved, and handed on, are the same entries."""
    found = []
    for options in ({"process_group": distributed.group.WORLD, "shard_state": True}, {}):
        torch.manual_seed(0)
        values = torch.randn(6, 3, 3, 2), torch.randn(6, 3, 3, 2), torch.randn(4, 6).t(), torch.randn(5, 5)
        values = [value.to(torch.float64) for value in values]
        values[:2] = [value.to(memory_format=torch.channels_last) for value in values[:2]]
        groups = [{"params": []}, {"params": [nn.Parameter(value) for value in values]}]
        optimizer = AMUSE(groups, direction="muon", lr=0.1, warmup_steps=2, **options)
        saved = []
        for step in range(3):
            feed(optimizer, step)
            optimizer.step()
            saved.append(copy.deepcopy(optimizer.state_dict()["state"]))
            if step == 0:
                owners = options and [s.keeper for s in optimizer.division.shared.values()]
                late = torch.arange(64.0, dtype=torch.float64).sin().view(8, 8)
                optimizer.add_param_group({"params": [nn.Parameter(late)]})
        assert not options or owners != [s.keeper for s in optimizer.division.shared.values()][:4]
        found.append(saved)
    for ours, theirs in zip(*found, strict=True):
        for index, state in theirs.items():
            momentum = ours[index]["momentum_buffer"]
            torch.testing.assert_close(momentum, state["momentum_buffer"], rtol=0, atol=1e-12)
            assert momentum.stride() == state["momentum_buffer"].stride()


def weights_may_be_loaded_after_divided_state() -> None:
    """Ranks that were built with other weights are compared at the step, and not when state is loaded."""
    saved, weights = (optimizer := stepped_once(shard_state=True)[0]).state_dict(), parameters_of(optimizer)
    again = build(shard_state=True)
    for weight in parameters_of(again):
        weight.data.add_(distributed.get_rank())
    again.load_state_dict(saved)
    for ours, theirs in zip(parameters_of(again), weights, strict=True):
        ours.data.copy_(theirs.data)
    for each in (optimizer, again):
        feed(each, 1)
        each.step()
    assert all(torch.equal(a, b) for a, b in zip(parameters_of(again), weights, strict=True))


def divided_state_follows_options_until_the_first_step() -> None:
    optimizer, expected = build(shard_state=True), build(process_group=None)
    for each in (optimizer, expected):
        each.param_groups[0]["direction"] = "normuon"
        for step in range(2):
            feed(each, step)
            each.step()
    for ours, theirs in zip(parameters_of(optimizer), parameters_of(expected), strict=True):
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=0, atol=1e-10)
    rows = [optimizer.state[p]["row_exp_avg_sq"].numel() for p in parameters_of(optimizer)[:3]]
    shared = [optimizer.division.shared[p] for p in parameters_of(optimizer)[:3]]
    assert rows == [each.keeps * shape[0] for each, shape in zip(shared, SHAPES[:3], strict=True)]


def what_other_ranks_keep_is_not_copied() -> None:
    for copying in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="shard_state=True cannot be copied or pickled"):
            copying(build(shard_state=True))


def ends(between_steps: bool) -> None:
    """The other rank ends, between steps or with results to share; this one is told what it waits for."""
    optimizer, _ = stepped_once()
    if distributed.get_rank() == 1:
        if between_steps:
            os._exit(0)
        Exchange.from_owners = lambda _: os._exit(0)
    feed(optimizer, 1)
    with pytest.raises(RuntimeError) as error:
        optimizer.step()
    doing = (
        "asked whether all ranks can take the step"
        if between_steps
        else "shared matrices of parameters of shape (6, 4)"
    )
    assert f"while rank 0 of 2 {doing}" in "".join(error.value.__notes__)


CASES = [
    missing_shards_count_as_zeros,
    replicas_have_the_same_gradients,
    copies_among_sharded_parameters_do_so_too,
    gradients_whose_sums_are_left_open_are_summed,
    not_finite_anywhere_stops_all,
    parameters_that_are_not_finite_are_counted_once,
    what_one_rank_refuses_none_does,
    a_function_that_fails_for_one_matrix_stops_all,
    the_first_difference_is_named,
    ranks_without_the_same_values_are_no_replicas,
    groups_that_come_later_are_divided_too,
    another_process_group_is_used_from_then_on,
    divided_state_needs_a_process_group_at_every_step,
    lean_state_of_shards_is_rounded_differently,
    lean_momenta_are_rounded_differently_by_each_rank,
    measured_over_all_ranks,
    a_rank_with_other_groups_stops_all,
    what_one_rank_cannot_divide_none_does,
    a_rank_in_eval_mode_stops_all,
    parameters_may_have_the_same_name,
    matrices_of_one_shape_travel_in_batches,
    momenta_are_kept_by_their_owners,
    divided_state_is_saved_and_loaded,
    divided_state_may_lie_in_memory_in_any_order,
    weights_may_be_loaded_after_divided_state,
    divided_state_follows_options_until_the_first_step,
    what_other_ranks_keep_is_not_copied,
]
if hasattr(Tensor, "grad_dtype"):  # in older torch gradients have their parameter's dtype
    CASES.append(missing_shards_have_the_dtype_of_the_gradients)

if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    if sys.argv[1:]:
        ends(between_steps=sys.argv[1] == "between")
        print("told", flush=True)
        exit_rank(0)
    for case in CASES:
        case()
        if distributed.get_rank() == 0:
            print(f"passed {case.__name__}", flush=True)
    gc.collect()
    distributed.destroy_process_group()
    exit_rank(0)
