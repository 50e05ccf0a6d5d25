"""Parameters, states and moments that are rare, and that nothing else looks at."""

import sys
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.utils import parametrizations, parametrize

from amuse_optim import (
    AMUSE,
    AMUSEReference,
    averaged,
    averaged_state_dict,
    orthogonalize,
    param_groups,
    precision,
    refresh_batch_norm,
    report,
    telemetry,
)


def gradients(parameter: Tensor, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    random = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return torch.empty_like(parameter, requires_grad=False).copy_(random)  # in the parameter's memory format


def train(optimizer: AMUSE, steps: range) -> None:
    for step in steps:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = gradients(parameter, step)
        optimizer.step()


def state_of(optimizer: AMUSE) -> dict[str, object]:
    return optimizer.state_dict()


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 2, 4, 5)])
def test_stacks_in_channels_last_are_the_same_matrices(shape: tuple[int, ...]) -> None:
    """As `model.to(memory_format=...)` makes them of every parameter of four or five dimensions."""
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    start = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    found = []
    for kind, value in (
        (AMUSEReference, start),
        (AMUSE, start),
        (AMUSE, start.contiguous(memory_format=layout)),
    ):
        parameter = nn.Parameter(value.clone(memory_format=torch.preserve_format))
        train(kind([parameter], direction="muon", stacked=True, lr=0.1, warmup_steps=2), range(4))
        found.append(parameter.detach().contiguous())
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[2], found[0], rtol=1e-12, atol=1e-12)


def test_two_that_rest_at_different_steps_move_by_their_own_beta() -> None:
    """They have taken as many steps and have different coefficients, so they cannot move together."""

    def run(kind: type[AMUSE] | type[AMUSEReference]) -> Tensor:
        parameters = [nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2)]
        optimizer = kind(parameters, direction="sgd", warmup_steps=2, lr=0.1)
        for step in range(1, 12):
            for number, parameter in enumerate(parameters):
                rests = (step, number) in ((5, 0), (6, 1))
                parameter.grad = (
                    None if rests else torch.full((3,), float(step + number), dtype=torch.float64)
                )
            optimizer.step()
        return torch.stack([parameter.detach() for parameter in parameters])

    torch.testing.assert_close(run(AMUSE), run(AMUSEReference), rtol=1e-13, atol=1e-13)


def test_a_scalar_s_state_is_copied_when_it_is_loaded() -> None:
    def loaded(snapshot: dict[str, object]) -> Tensor:
        scale = nn.Parameter(torch.tensor(1.0))
        optimizer = AMUSE([scale], direction="adamw", lr=0.1, warmup_steps=2)
        optimizer.load_state_dict(snapshot)
        train(optimizer, range(3, 6))
        return scale.detach().clone()

    scale = nn.Parameter(torch.tensor(1.0))
    optimizer = AMUSE([scale], direction="adamw", lr=0.1, warmup_steps=2)
    train(optimizer, range(3))
    snapshot = state_of(optimizer)
    assert torch.equal(loaded(snapshot), loaded(snapshot))


def test_state_of_a_scalar_does_not_fit_a_vector() -> None:
    scalar, vector = (
        AMUSE([nn.Parameter(torch.ones(shape))], direction="sgd", warmup_steps=2) for shape in ((), (3,))
    )
    train(scalar, range(1))
    with pytest.raises(ValueError, match=r"holds a z of shape \(\) for"):
        vector.load_state_dict(state_of(scalar))


@pytest.mark.parametrize("other", [torch.ones(3, 2), torch.ones(5, 5)])
def test_a_parameter_of_another_shape_is_refused_before_anything_moves(other: Tensor) -> None:
    first, second = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 3))
    optimizer = AMUSE([{"params": [first]}, {"params": [second]}], direction="muon", lr=0.1, warmup_steps=2)
    train(optimizer, range(2))
    before = first.detach().clone()
    second.data = other.clone()
    with pytest.raises(ValueError, match=r"does not fit its state, of shape \(2, 3\): it was replaced"):
        train(optimizer, range(2, 3))
    assert torch.equal(first, before)


def test_a_transposed_parameter_is_noticed() -> None:
    weight = nn.Parameter(torch.arange(6.0).view(2, 3))
    optimizer = AMUSE([weight], direction="muon", lr=0.1, warmup_steps=2)
    train(optimizer, range(2))
    weight.data = weight.data.T.contiguous()
    with pytest.raises(ValueError, match="does not fit its state"):
        train(optimizer, range(2, 3))


def test_telemetry_of_a_captured_schedule_keeps_its_values() -> None:
    optimizer = AMUSE(
        [nn.Parameter(torch.ones(3))],
        direction="sgd",
        lr=0.01,
        warmup_steps=4,
        capturable=True,
        nonfinite="ignore",
    )
    told = []
    for step in range(4):
        train(optimizer, range(step, step + 1))
        told.append(telemetry(optimizer))
    rates = [next(float(value) for name, value in each.items() if name.endswith("/lr")) for each in told]
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01])


def test_what_was_interrupted_on_its_way_back_to_y_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = [nn.Parameter(torch.randn(3, 3)) for _ in range(3)]
    optimizer = AMUSE(parameters, direction="muon", lr=0.1, warmup_steps=2)
    train(optimizer, range(5))
    y = [parameter.detach().clone() for parameter in parameters]
    optimizer.eval()
    assert not torch.equal(parameters[2], y[2])
    copy, calls = Tensor.copy_, []

    def interrupted(target: Tensor, source: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return copy(target, source)

    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "copy_", interrupted)
        with pytest.raises(KeyboardInterrupt):
            optimizer.train()
    assert optimizer.mode == "eval"
    optimizer.train()
    assert all(torch.equal(now, then) for now, then in zip(parameters, y, strict=True))


def test_empty_matrices_have_every_scale() -> None:
    with pytest.warns(UserWarning, match="zero-element"):
        empty = nn.Linear(0, 5)
    groups = param_groups(nn.Sequential(empty, nn.Linear(5, 2)), auxiliary="sgd")
    assert "5x0" in report(groups)
    train(AMUSE(groups, lr=0.1, warmup_steps=2), range(2))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: AMUSE([torch.ones(1).expand(4).requires_grad_()], direction="sgd", warmup_steps=2),
            ValueError,
            r"is expanded: several of its entries are one in memory",
        ),
        (
            lambda: AMUSE(
                [nn.Parameter(torch.ones(3))],
                direction="sgd",
                lr=torch.tensor([0.1, 0.2]),
                warmup_steps=2,
                capturable=True,
                nonfinite="ignore",
            ),
            ValueError,
            "Tensor lr must be 1-element",
        ),
    ],
)
def test_what_would_fail_in_a_step_is_refused_at_once(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(("length", "error"), [(-5, ValueError), ("a", TypeError)])
@pytest.mark.parametrize("name", ["warmup_steps", "t0_steps", "c_warmup_steps"])
def test_lengths_that_are_changed_to_nonsense_are_refused(
    name: str, length: object, error: type[Exception]
) -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = AMUSE([weight], direction="muon", lr=0.1, warmup_steps=4)
    train(optimizer, range(1))
    before = weight.detach().clone()
    optimizer.param_groups[0][name] = length
    with pytest.raises(error, match=name):
        train(optimizer, range(1, 2))
    assert torch.equal(weight, before)


def test_capturable_cannot_be_turned_off_under_way() -> None:
    weight = nn.Parameter(torch.ones(3))
    settings = {"direction": "sgd", "lr": 0.1, "warmup_steps": 2, "nonfinite": "ignore"}
    optimizer = AMUSE([weight], capturable=True, **settings)
    train(optimizer, range(1))
    saved = state_of(optimizer)
    optimizer.param_groups[0]["capturable"] = False
    with pytest.raises(ValueError, match="save the optimizer's state dict and load it into one without"):
        train(optimizer, range(1, 2))
    saved["param_groups"][0]["capturable"] = False
    without = AMUSE([weight], **settings)
    without.load_state_dict(saved)
    train(without, range(1, 2))


def test_a_captured_group_is_on_one_device() -> None:
    parameters = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, device="meta"))]
    optimizer = AMUSE(
        parameters, direction="sgd", lr=0.1, warmup_steps=2, capturable=True, nonfinite="ignore"
    )
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(ValueError, match="a group must be on one device, not on cpu, meta"):
        optimizer.step()


def test_every_tensor_of_a_parameter_is_rounded_with_bits_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[tuple[int, ...]] = []
    made = precision.rounding_generator

    def kept(device: torch.device, *key: int) -> torch.Generator:
        generator = made(device, *key)
        keys.append(tuple(torch.rand(4, generator=generator).tolist()))
        return made(device, *key)

    monkeypatch.setattr(precision, "rounding_generator", kept)
    weight = nn.Parameter(torch.randn(4, 4))
    train(AMUSE([weight], direction="muon", lr=0.1, warmup_steps=2, state_precision="lean"), range(1))
    assert len(keys) == len(set(keys)) >= 2


def test_a_function_may_answer_in_the_same_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = torch.zeros(1, 4, 4)

    def reused(stack: Tensor) -> Tensor:
        return buffer.copy_(stack)

    monkeypatch.setattr(sys.modules["amuse_optim.orthogonalize"], "BATCH_ENTRIES_ON_CPU", 16)
    parameters = [nn.Parameter(torch.zeros(4, 4)) for _ in range(2)]
    optimizer = AMUSE(parameters, direction="muon", lr=1.0, warmup_steps=1, t0_steps=2, orthogonalize=reused)
    for number, parameter in enumerate(parameters, start=1):
        parameter.grad = torch.full((4, 4), float(number))
    optimizer.step()
    assert parameters[1].detach().mean() == pytest.approx(2 * parameters[0].detach().mean().item())


def test_parametrized_layers_are_what_they_are_without() -> None:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(4, 8, 3)),
        parametrizations.spectral_norm(nn.Embedding(10, 4)),
        parametrizations.orthogonal(nn.Linear(8, 8)),
        parametrizations.spectral_norm(nn.Linear(8, 3)),
    )
    chosen = {
        name: (group["direction"], group.get("stacked", False))
        for group in param_groups(model)
        for name, _ in group["params"]
    }
    assert parametrize.is_parametrized(model[0])
    assert chosen["0.parametrizations.weight.original0"] == ("adamw", False)  # one length an output channel
    assert chosen["0.parametrizations.weight.original1"] == ("muon", False)
    assert chosen["1.parametrizations.weight.original"] == ("adamw", False)
    assert chosen["2.parametrizations.weight.original"] == ("muon", False)
    assert chosen["3.parametrizations.weight.original"] == ("adamw", False)  # the head
    with pytest.warns(FutureWarning, match="weight_norm"):
        old = nn.utils.weight_norm(nn.Conv2d(4, 8, 3))
    directions = {name: group["direction"] for group in param_groups(old) for name, _ in group["params"]}
    assert directions == {"bias": "adamw", "weight_g": "adamw", "weight_v": "muon"}


def test_layers_that_are_not_reached_keep_their_statistics() -> None:
    model = nn.ModuleDict({"used": nn.BatchNorm1d(3), "auxiliary": nn.BatchNorm1d(3)})
    for layer in model.values():
        layer(torch.randn(8, 3) + 5)
    before = {name: value.clone() for name, value in model["auxiliary"].state_dict().items()}
    refresh_batch_norm(model, [torch.zeros(8, 3)], forward=model["used"])
    assert all(torch.equal(value, before[name]) for name, value in model["auxiliary"].state_dict().items())
    assert not model["used"].running_mean.any()


def test_the_model_to_ship_has_the_versions_of_its_modules() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizer = AMUSE(param_groups(model), lr=0.1, warmup_steps=2)
    train(optimizer, range(2))
    shipped = averaged_state_dict(model, optimizer)
    assert shipped._metadata == model.state_dict()._metadata
    with averaged(optimizer):
        expected = model.state_dict()
        assert all(torch.equal(shipped[name], value) for name, value in expected.items())


@pytest.mark.parametrize("scale", [1e-200, 1e200])
@pytest.mark.parametrize("method", ["quintic", "polar_express", "exact"])
def test_matrices_beyond_the_range_of_single_precision(method: str, scale: float) -> None:
    matrix = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    near, far = (orthogonalize(m, method=method, dtype=torch.float64) for m in (matrix, matrix * scale))
    torch.testing.assert_close(far, near, rtol=1e-9, atol=1e-12)


@pytest.fixture
def sharded() -> Iterator[Callable[[Tensor], DTensor]]:
    """Makes tensors whose rows are divided over one process, which is enough to be of another kind."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    yield lambda tensor: distribute_tensor(tensor, mesh, [Shard(0)])
    dist.destroy_process_group()


def test_sharded_matrices_cannot_be_captured(sharded: Callable[[Tensor], DTensor]) -> None:
    weight = nn.Parameter(sharded(torch.ones(4, 3)))
    optimizer = AMUSE([weight], direction="muon", lr=0.1, warmup_steps=2, capturable=True, nonfinite="ignore")
    weight.grad = sharded(torch.randn(4, 3))
    with pytest.raises(ValueError, match="matrices must not be sharded"):
        optimizer.step()
    assert optimizer.param_groups[0]["t"] == 0
    assert float(optimizer.state[weight]["step"]) == 0
    assert torch.equal(weight.full_tensor(), torch.ones(4, 3))


def test_state_of_whole_parameters_does_not_fit_sharded_ones(sharded: Callable[[Tensor], DTensor]) -> None:
    plain = AMUSE([nn.Parameter(torch.ones(4, 3))], direction="muon", lr=0.1, warmup_steps=2)
    train(plain, range(1))
    weight = nn.Parameter(sharded(torch.ones(4, 3)))
    optimizer = AMUSE([weight], direction="muon", lr=0.1, warmup_steps=2)
    optimizer.load_state_dict(state_of(plain))
    weight.grad = sharded(torch.randn(4, 3))
    with pytest.raises(ValueError, match="does not fit its state"):
        optimizer.step()
    assert torch.equal(weight.full_tensor(), torch.ones(4, 3))
