"""Averages of z that are kept for reading, beside the average x."""

import copy
import io
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from amuse_optim import (
    AMUSE,
    OptimizerModeError,
    accept_weights,
    averaged,
    averaged_state_dict,
    param_groups,
    project,
    report,
)
from amuse_optim.reference import AMUSEReference
from amuse_optim.schedule import PowerAverage
from tests.amuse_optim.training import KINDS, bits, build, build_list, same, take_steps, train

KAPPAS = (1.0, 10.0)


def z_of(optimizer: AMUSE, parameter: Tensor) -> Tensor:
    return optimizer.state[parameter].get("z", parameter).detach().double().clone()


def weights(kappa: float, steps: int) -> Tensor:
    """Of z_1, ..., z_t in the average: kappa G(i + kappa - 1) G(t) / (G(i) G(t + kappa))."""
    logs = [
        math.lgamma(i + kappa - 1) - math.lgamma(i) + math.lgamma(steps) - math.lgamma(steps + kappa)
        for i in range(1, steps + 1)
    ]
    return kappa * torch.tensor(logs, dtype=torch.float64).exp()


@pytest.mark.parametrize("kappa", [1.0, 2.5, 10.0, 40.0])
def test_the_weights_are_those_of_the_gamma_functions_and_sum_to_1(kappa: float) -> None:
    rule, expected = PowerAverage(kappa), torch.zeros(30, dtype=torch.float64)
    for t in range(1, 31):
        expected *= 1 - rule(t)
        expected[t - 1] += rule(t)
    torch.testing.assert_close(weights(kappa, 30), expected)
    assert float(weights(kappa, 30).sum()) == pytest.approx(1.0)
    assert rule(1) == 1.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_an_average_is_the_weighted_sum_of_all_z(kind: str, dtype: torch.dtype) -> None:
    options = KINDS[kind]
    if dtype == torch.float64 and options.get("state_precision") == "lean":
        return  # refused: lean state is for float32 and below
    if dtype == torch.bfloat16 and options.get("capturable"):
        return  # refused: captured steps are for float32 and float64
    model, optimizer = build_list(3, dtype, averages=KAPPAS, **options)
    path: list[list[Tensor]] = []
    for step in range(12):
        take_steps(optimizer, range(step, step + 1))
        path.append([z_of(optimizer, p) for p in model])
    stored = torch.float64 if dtype == torch.float64 else torch.float32
    exact = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 0.02}[dtype]
    for place, parameter in enumerate(model):
        for kappa in KAPPAS:
            average = optimizer.state[parameter][f"average_{kappa:g}"]
            assert average.dtype == stored
            z = torch.stack([step[place] for step in path])
            expected = torch.einsum("t,tij->ij", weights(kappa, 12), z)
            torch.testing.assert_close(average.double(), expected, rtol=0, atol=exact)


@pytest.mark.parametrize("kind", KINDS)
def test_training_does_not_see_the_averages(kind: str) -> None:
    with_averages, without = (build_list(3, averages=averages, **KINDS[kind]) for averages in (KAPPAS, ()))
    for model, optimizer in (with_averages, without):
        take_steps(optimizer, range(9), without=1)
        model.eval()
    assert same([*with_averages[0].parameters()], [*without[0].parameters()])


def test_a_parameter_that_rests_averages_its_own_steps() -> None:
    model, optimizer = build_list(2, torch.float64, averages=(10.0,))
    path = []
    for step in range(8):
        take_steps(optimizer, range(step, step + 1), without=1)
        if step % 2 == 0:
            path.append(z_of(optimizer, model[1]))
    expected = torch.einsum("t,tij->ij", weights(10.0, 4), torch.stack(path))
    torch.testing.assert_close(optimizer.state[model[1]]["average_10"], expected)


def test_the_specification_has_the_same_averages() -> None:
    ours, specified = (
        kind(param_groups(model), lr=0.05, warmup_steps=3, averages=KAPPAS, orthogonalize="exact")
        for kind, model in ((kind, build(seed=3)[0].double()) for kind in (AMUSE, AMUSEReference))
    )
    take_steps(ours, range(7))
    take_steps(specified, range(7))
    for group, other in zip(ours.param_groups, specified.param_groups, strict=True):
        for p, q in zip(group["params"], other["params"], strict=True):
            for name in ("average_1", "average_10"):
                torch.testing.assert_close(ours.state[p][name], specified.state[q][name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["muon", "gradients at z", "lean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reading_puts_an_average_in_and_y_back_to_the_bit(kind: str, dtype: torch.dtype) -> None:
    model, optimizer = build_list(2, dtype, averages=KAPPAS, **KINDS[kind])
    take_steps(optimizer, range(6))
    before = bits(model, optimizer)
    x = averaged_state_dict(model, optimizer)
    with averaged(optimizer, kappa=10):
        for parameter in model:
            assert torch.equal(parameter, optimizer.state[parameter]["average_10"].to(dtype))
        inside = averaged_state_dict(model, optimizer, kappa=10)
        with averaged(optimizer, kappa=10), pytest.raises(OptimizerModeError, match=r"step\(\) in eval mode"):
            optimizer.step()
    assert same(before, bits(model, optimizer))
    outside = averaged_state_dict(model, optimizer, kappa=10)
    assert same([*inside.values()], [*outside.values()])
    assert not same([*outside.values()], [*x.values()])
    assert same([*averaged_state_dict(model, optimizer).values()], [*x.values()])


def test_one_average_at_a_time_and_only_what_is_kept() -> None:
    model, optimizer = build_list(1, averages=(10.0,))
    take_steps(optimizer, range(3))
    with pytest.raises(ValueError, match=r"kappa must be None or one of averages=\(10.0,\), got 5"):
        optimizer.eval(kappa=5)
    with pytest.raises(ValueError, match="kappa must be None or one of"):
        averaged_state_dict(model, optimizer, kappa=5)
    assert optimizer.mode == "train"
    wanted = "the parameters hold the average with kappa=10, and the average x was asked for"
    with averaged(optimizer, kappa=10):
        with pytest.raises(OptimizerModeError, match=wanted), averaged(optimizer):
            pass
        with pytest.raises(OptimizerModeError, match=wanted):
            averaged_state_dict(model, optimizer)
        assert optimizer.readout == 10
    assert (optimizer.mode, optimizer.readout) == ("train", None)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (10.0, TypeError, "averages must be a tuple of numbers"),
        ((0.5,), ValueError, "averages must be finite and >= 1, got 0.5"),
        ((10.0, 10), ValueError, "averages must be numbers that differ in their first six digits"),
        ((1.0, 1.0000001), ValueError, "averages must be numbers that differ in their first six digits"),
        (("a",), TypeError, "averages must be a Python number, got 'a'"),
    ],
)
def test_wrong_averages_are_refused(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build_list(1, averages=value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shown", [None, "x", 10])
def test_a_run_is_saved_and_resumed_with_its_averages(kind: str, shown: object) -> None:
    model, optimizer = build_list(3, averages=KAPPAS, **KINDS[kind])
    take_steps(optimizer, range(5))
    if shown is not None:
        optimizer.eval(kappa=None if shown == "x" else 10)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other, resumed = build_list(3, averages=KAPPAS, **KINDS[kind])
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert (resumed.mode, resumed.readout) == (optimizer.mode, optimizer.readout)
    for each in (optimizer, resumed):
        each.train()
        take_steps(each, range(5, 9))
    assert same(bits(model, optimizer), bits(other, resumed))


@pytest.mark.parametrize("made", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "lean"])  # which float64 does not have
def test_a_model_of_another_precision_keeps_its_averages(kind: str, made: torch.dtype) -> None:
    options = KINDS[kind]
    then = torch.float32 if made == torch.float64 else torch.float64
    model, optimizer = build_list(3, made, averages=KAPPAS, **options)
    path: list[list[Tensor]] = []
    for step in range(9):
        if step == 5:
            model.to(then)
        take_steps(optimizer, range(step, step + 1))
        path.append([z_of(optimizer, p) for p in model])
    for place, parameter in enumerate(model):
        for kappa in KAPPAS:
            average = optimizer.state[parameter][f"average_{kappa:g}"]
            z = torch.stack([step[place] for step in path])
            expected = torch.einsum("t,tij->ij", weights(kappa, 9), z)
            torch.testing.assert_close(average.double(), expected, rtol=0, atol=1e-5)


def test_state_of_a_run_without_averages_goes_on_without_them_and_says_so() -> None:
    model, optimizer = build_list(2)
    take_steps(optimizer, range(3))
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["averages"], group["readout"]  # as an older version wrote it
    other, resumed = build_list(2, averages=KAPPAS)
    other.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match="other values than this optimizer for averages"):
        resumed.load_state_dict(saved)
    take_steps(optimizer, range(3, 6))
    take_steps(resumed, range(3, 6))
    assert same(bits(model, optimizer), bits(other, resumed))


def test_an_average_cannot_be_added_after_the_first_step() -> None:
    model, optimizer = build_list(1)
    take_steps(optimizer, range(1))
    before = bits(model, optimizer)
    optimizer.param_groups[0]["averages"] = (10.0,)
    with pytest.raises(ValueError, match="needs average_10 in its state"):
        take_steps(optimizer, range(1, 2))
    assert same(before, bits(model, optimizer))


def test_edits_reach_the_averages() -> None:
    model, optimizer = build_list(1, averages=KAPPAS)
    take_steps(optimizer, range(4))
    mask = torch.tensor([[1.0, 0.0, 1.0]]).expand(4, 3)
    project(optimizer, lambda tensor: tensor.mul_(mask))
    assert (optimizer.state[model[0]]["average_10"][:, 1] == 0).all()
    with torch.no_grad():
        model[0].fill_(7.0)
    accept_weights(optimizer)
    for name in ("average_1", "average_10"):
        assert (optimizer.state[model[0]][name] == 7.0).all()


def test_weights_loaded_before_the_first_step_are_where_the_averages_begin() -> None:
    model, optimizer = build_list(1, averages=KAPPAS)
    with torch.no_grad():
        model[0].fill_(3.0)
    optimizer.state_dict()
    assert (optimizer.state[model[0]]["average_10"] == 3.0).all()
    with averaged(optimizer, kappa=10):
        assert (model[0] == 3.0).all()


def test_parameters_that_are_not_dense_and_kernels_have_averages() -> None:
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    slices = nn.Parameter(torch.randn(6, 8)[:, ::2])
    optimizer = AMUSE([kernel, slices], direction="muon", lr=0.1, warmup_steps=2, averages=(1.0,))
    path = []
    for step in range(5):
        take_steps(optimizer, range(step, step + 1))
        path.append([z_of(optimizer, p) for p in (kernel, slices)])
    for place, parameter in enumerate((kernel, slices)):
        mean = torch.stack([step[place] for step in path]).mean(0)
        torch.testing.assert_close(optimizer.state[parameter]["average_1"].double(), mean, rtol=0, atol=1e-6)


def test_sharded_parameters_have_sharded_averages() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        start = torch.arange(12.0).reshape(4, 3)
        whole = nn.Parameter(start.clone())
        sharded = nn.Parameter(distribute_tensor(start.clone(), mesh, [Shard(0)]))
        found = []
        for parameter in (whole, sharded):
            optimizer = AMUSE([parameter], direction="muon", lr=0.1, warmup_steps=2, averages=(10.0,))
            for step in range(4):
                gradient = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
                parameter.grad = (
                    gradient if parameter is whole else distribute_tensor(gradient, mesh, [Shard(0)])
                )
                optimizer.step()
            average = optimizer.state[parameter]["average_10"]
            found.append(average if parameter is whole else average.full_tensor())
            optimizer.zero_grad()
        torch.testing.assert_close(found[0], found[1])
    finally:
        dist.destroy_process_group()


def test_the_report_says_what_the_averages_cost() -> None:
    model, optimizer = build(averages=(5.0, 10.0))
    entries = sum(parameter.numel() for parameter in model.parameters())
    line = report(optimizer.param_groups).splitlines()[-1]
    assert line == f"averages for reading: kappa 5, 10, {8 * entries:,} bytes of state"
    assert "averages" not in report(build()[1].param_groups)
    groups: list[dict[str, Any]] = [
        {"params": [nn.Parameter(torch.ones(10))], "averages": (5.0,)},
        {"params": [nn.Parameter(torch.ones(1000))]},
        {"params": [nn.Parameter(torch.ones(3, dtype=torch.float64))], "averages": (5.0, 7.0)},
    ]
    kept = AMUSE(groups, direction="sgd", warmup_steps=2).param_groups
    assert report(kept).splitlines()[-1] == "averages for reading: kappa 5, 7, 88 bytes of state"


def test_a_larger_kappa_is_nearer_to_the_end_of_a_straight_way() -> None:
    model, optimizer = build_list(1, averages=(1.0, 5.0, 20.0), direction="sgd", beta1=0.0, rho=0.0)
    for _ in range(40):
        model[0].grad = torch.ones(4, 3)
        optimizer.step()
    state = optimizer.state[model[0]]
    distances = [float((state[f"average_{k}"] - model[0].detach()).norm()) for k in (1, 5, 20)]
    assert distances[0] > distances[1] > distances[2] > 0


def test_averages_of_a_trained_model_read_alike_under_a_wrapper() -> None:
    model, optimizer = build(averages=(10.0,))
    train(model, optimizer, 5)

    class Wrapper:
        def __init__(self, inner: AMUSE) -> None:
            self.optimizer = inner

    with averaged(Wrapper(optimizer), kappa=10):
        shown = [p.detach().clone() for p in model.parameters()]
    assert same(shown, [*averaged_state_dict(model, optimizer, kappa=10).values()])


@pytest.mark.requirement("B4")
@pytest.mark.parametrize("missing", ["x", "y"])
def test_state_saved_while_an_average_is_shown_is_read_with_x_and_y(missing: str) -> None:
    """`torch.distributed.checkpoint` leaves out what the optimizer that reads does not have."""
    model, optimizer = build(averages=(3.0,))
    train(model, optimizer, 5)
    with averaged(optimizer, kappa=3.0):
        saved = optimizer.state_dict()
    _, other = build(averages=(3.0,))
    other.load_state_dict(saved)
    for state in saved["state"].values():
        del state[missing]
    with pytest.raises(ValueError, match=rf"holds no {missing} for .*call optimizer.eval\(kappa=3\) before"):
        other.load_state_dict(saved)


def test_averages_are_kept_as_a_tuple_of_pythons_numbers() -> None:
    """Which `torch.load(weights_only=True)` reads, and which is the same when the run is resumed twice."""
    given = [np.array([3.0])[0], 10]
    _, optimizer = build(averages=given)
    assert all(group["averages"] == (3.0, 10) for group in optimizer.param_groups)
    assert all(type(kappa) in (int, float) for group in optimizer.param_groups for kappa in group["averages"])
    for _ in range(2):
        buffer = io.BytesIO()
        torch.save(optimizer.state_dict(), buffer)
        buffer.seek(0)
        _, optimizer = build(averages=given)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.load_state_dict(torch.load(buffer, weights_only=True))


@pytest.mark.parametrize("how", ["added", "converted"])
def test_state_that_is_made_while_an_average_is_shown_is_whole(how: str) -> None:
    model, optimizer = build_list(2, averages=(3.0,))
    with averaged(optimizer, kappa=3.0):
        if how == "added":
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
        else:
            model.double()
        saved = optimizer.state_dict()
        optimizer.load_state_dict(saved)
        kept = [state for _, _, state in optimizer.members()]
        assert all({"x", "y"} <= state.keys() for state in kept)
    assert not any({"x", "y"} & state.keys() for state in kept)
    optimizer.load_state_dict(optimizer.state_dict())
