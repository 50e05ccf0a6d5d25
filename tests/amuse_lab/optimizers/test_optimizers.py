import copy
import io
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from amuse_lab.config import OptimizerConfig, RunConfig
from amuse_lab.errors import ConfigError
from amuse_lab.optimizers import (
    OPTIMIZERS,
    SGD,
    AdamW,
    AdEMAMix,
    Amuse,
    Anytime,
    Muon,
    NorMuon,
    Signum,
    Soap,
    Sophia,
)
from amuse_lab.optimizers.sophia import Curved
from amuse_lab.optimizers.wrappers import AveragedAmuse, Packaged, WithEMA
from amuse_lab.tasks.sampling import sampled_cross_entropy
from amuse_optim import AMUSE, param_groups
from tests.amuse_lab.small import CONFIGS, VARIANTS, Convolutional, same, small, train, trained, values

Make = Callable[..., RunConfig]


def test_every_optimizer_is_tested_here_and_recipes_agree(tiny: Make) -> None:
    assert list(OPTIMIZERS) == list(CONFIGS)
    assert all(type(CONFIGS[name]) is kind for name, kind in OPTIMIZERS.items())
    for name in ("amuse", "sf-adamw", "muon", "adamw"):
        assert type(tiny(name).optimizer) is OPTIMIZERS[name]


@pytest.mark.parametrize("kind", OPTIMIZERS.values())
def test_first_line_names_where_it_comes_from(kind: type[OptimizerConfig]) -> None:
    first = (kind.__doc__ or "").partition("\n")[0]
    sources = ("from torch", "`schedulefree`", "`pytorch_optimizer`", "`amuse_optim`")
    assert any(source in first for source in sources)


@pytest.mark.parametrize("config", VARIANTS)
def test_lowers_the_loss_at_x(config: OptimizerConfig) -> None:
    model = small()
    optimizer = config.build(model, steps=80)
    first = train(model, optimizer, range(80))[0]
    tokens = torch.arange(11)
    with optimizer.averaged():
        last = functional.cross_entropy(model(tokens), (3 * tokens + 1) % 11).item()
    assert last < 0.5 * first


@pytest.mark.parametrize("config", VARIANTS)
def test_a_step_moves_every_parameter(config: OptimizerConfig) -> None:
    before = values(trained(config, steps=0)[0])
    after = values(trained(config, steps=2)[0])
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("config", VARIANTS)
def test_averaged_holds_another_point_and_gives_y_back_exactly(config: OptimizerConfig) -> None:
    model, optimizer = trained(config)
    y = values(model)
    with optimizer.averaged():
        x = values(model)
    assert same(y, values(model))
    assert same(x, y) is not optimizer.averages


@pytest.mark.parametrize("config", VARIANTS)
def test_evaluating_does_not_change_the_trajectory(config: OptimizerConfig) -> None:
    model, optimizer = trained(config, steps=2)
    with optimizer.averaged():
        pass
    train(model, optimizer, range(2, 3))
    assert same(values(model), values(trained(config, steps=3)[0]))


@pytest.mark.parametrize("config", VARIANTS)
def test_averaged_gives_y_back_when_evaluation_fails(config: OptimizerConfig) -> None:
    model, optimizer = trained(config)
    y = values(model)
    with pytest.raises(RuntimeError, match="inside"), optimizer.averaged():
        raise RuntimeError("inside")
    assert same(y, values(model))
    train(model, optimizer, range(3, 4))


@pytest.mark.parametrize("config", VARIANTS)
def test_three_steps_and_three_after_a_checkpoint_are_six(config: OptimizerConfig) -> None:
    model, undisturbed = trained(config, steps=6)

    half, optimizer = trained(config, steps=3)
    file = io.BytesIO()
    torch.save({"model": half.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = small(seed=1)
    resumed.load_state_dict(saved["model"])
    continued = config.build(resumed, steps=10)
    continued.load_state_dict(saved["optimizer"])
    train(resumed, continued, range(3, 6))

    assert same(values(model), values(resumed))
    assert undisturbed.telemetry() == continued.telemetry()
    with undisturbed.averaged(), continued.averaged():
        assert same(values(model), values(resumed))


@pytest.mark.parametrize("config", VARIANTS)
def test_a_checkpoint_before_the_first_step_changes_nothing(config: OptimizerConfig) -> None:
    model, optimizer = trained(config, steps=0)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, range(2))
    assert same(values(model), values(trained(config, steps=2)[0]))


@pytest.mark.parametrize("name", ["amuse", "sf-adamw", "adamw"])
def test_an_average_has_no_place_in_a_checkpoint_or_a_step(name: str) -> None:
    _, optimizer = trained(replace(CONFIGS[name], ema=0.9))
    with optimizer.averaged():
        with pytest.raises(RuntimeError, match=r"state_dict\(\) inside averaged\(\)"):
            optimizer.state_dict()
        with pytest.raises(RuntimeError, match=r"step\(\) inside averaged\(\)"):
            optimizer.step()


def test_schedule_free_refuses_a_checkpoint_of_x() -> None:
    _, optimizer = trained(CONFIGS["sf-sgd"])
    with optimizer.averaged(), pytest.raises(RuntimeError, match="the parameters hold x, not y"):
        optimizer.state_dict()


@pytest.mark.parametrize(("ours", "theirs"), [("adamw", "lion"), ("muon", "adamw"), ("amuse", "sf-adamw")])
def test_state_of_another_optimizer_is_refused(ours: str, theirs: str) -> None:
    model, optimizer = trained(CONFIGS[ours])
    before = values(model)
    with pytest.raises(ValueError, match="state must be that of"):
        optimizer.load_state_dict(trained(CONFIGS[theirs])[1].state_dict())
    with pytest.raises(ValueError, match=r"state must be that of .*, got 'EMA'"):
        optimizer.load_state_dict(trained(replace(CONFIGS[ours], ema=0.5))[1].state_dict())
    with pytest.raises(ValueError, match="state must be that of EMA"):
        trained(replace(CONFIGS[ours], ema=0.5))[1].load_state_dict(optimizer.state_dict())
    assert same(before, values(model))


@pytest.mark.parametrize("name", ["amuse", "sf-adamw", "soap"])
def test_ema_is_the_weighted_mean_of_what_was_trained(name: str) -> None:
    model = small()
    optimizer = replace(CONFIGS[name], ema=0.8).build(model, steps=10)
    visited: list[list[Tensor]] = []
    for step in range(5):
        train(model, optimizer, range(step, step + 1))
        visited.append([value.double() for value in values(model)])
        weights = torch.tensor([0.8 ** (step - i) for i in range(step + 1)], dtype=torch.float64)
        with optimizer.averaged():
            x = values(model)
        for i, average in enumerate(x):
            exact = sum(w * v[i] for w, v in zip(weights / weights.sum(), visited, strict=True))
            torch.testing.assert_close(average.double(), exact, rtol=1e-5, atol=1e-6)


def test_ema_of_bfloat16_weights_does_not_stall() -> None:
    """After 0 once and 100 ever after, the mean still grows by less than bfloat16 can tell."""
    weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    optimizer = WithEMA(Packaged(torch.optim.SGD([weight], lr=1.0)), [weight], decay=1 - 1e-9)
    for step in range(200):
        weight.grad = torch.full_like(weight, -100.0 if step == 1 else 0.0)
        optimizer.step()
    with optimizer.averaged():
        assert torch.equal(weight, torch.full_like(weight, 100 * 199 / 200))


def test_scheduled_learning_rate_starts_and_ends_at_a_hundredth() -> None:
    optimizer = AdamW(lr=0.5, warmup_steps=2).build(model := small(), steps=5)
    used = []
    for step in range(5):
        train(model, optimizer, range(step, step + 1))
        used.append(optimizer.telemetry()["lr"])
    assert used[0] == 0.005
    assert max(used) == used[2] == 0.5
    assert used[4] == 0.005


@pytest.mark.parametrize(
    ("schedule", "warmup", "used"),
    [("wsd", 1, [0.005, 0.5, 0.5, 0.5, 0.0]), ("constant", 1, [0.005] + [0.5] * 4), ("none", 0, [0.5] * 5)],
)
def test_schedules_can_be_chosen(schedule: Any, warmup: int, used: list[float]) -> None:
    optimizer = SGD(lr=0.5, warmup_steps=warmup, schedule=schedule).build(model := small(), steps=5)
    rates = []
    for step in range(5):
        train(model, optimizer, range(step, step + 1))
        rates.append(optimizer.telemetry()["lr"])
    assert rates == used


def test_a_resumed_run_takes_the_learning_rate_of_its_config() -> None:
    _, optimizer = trained(CONFIGS["adamw"], steps=3)
    lowered = replace(CONFIGS["adamw"], lr=0.01, schedule="constant").build(model := small(), steps=10)
    lowered.load_state_dict(optimizer.state_dict())
    train(model, lowered, range(3, 4))
    assert lowered.telemetry()["lr"] == 0.01


def test_telemetry_names_lr_and_what_the_optimizer_has_besides() -> None:
    assert trained(CONFIGS["amuse"], steps=1)[1].telemetry()["beta"] == 0.6
    assert trained(CONFIGS["sf-adamw"])[1].telemetry()["beta"] == 0.9
    assert trained(CONFIGS["sf-sgd"])[1].telemetry()["beta"] == 0.9
    assert trained(CONFIGS["prodigy"], steps=10)[1].telemetry()["d"] > 1e-6
    assert "beta" not in trained(CONFIGS["muon"])[1].telemetry()
    assert all(trained(config)[1].telemetry()["lr"] > 0 for config in CONFIGS.values())


def test_sophia_says_when_it_needs_curvature() -> None:
    config = Sophia(lr=0.1, warmup_steps=0, curvature_batch=4, curvature_every=2)
    model = small()
    optimizer = config.build(model, steps=10)
    wanted = []
    for step in range(5):
        wanted.append(optimizer.wants_curvature)
        train(model, optimizer, range(step, step + 1))
    assert wanted == [True, False, True, False, True]
    train(model, optimizer, range(5, 6))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = values(model)
    with pytest.raises(RuntimeError, match=r"step 7 needs an estimate of the curvature: .*observe_curvature"):
        optimizer.step()
    assert same(before, values(model))


def test_sophia_estimates_the_gauss_newton_diagonal() -> None:
    """B g^2 in the mean over draws of labels, against the matrix J' (diag p - p p') J of the mean loss."""
    torch.manual_seed(0)
    samples, classes = 12, 5
    model = nn.Linear(3, classes, bias=False).double()
    inputs = torch.randn(samples, 3, dtype=torch.float64)
    optimizer = Sophia(lr=0.1, warmup_steps=0, rho=1.0, curvature_batch=samples).build(model, steps=10)
    assert isinstance(optimizer, Curved)
    matrix = torch.zeros(3 * classes, 3 * classes, dtype=torch.float64)
    for row, p in zip(inputs, model(inputs).detach().softmax(-1), strict=True):
        jacobian = torch.kron(torch.eye(classes, dtype=torch.float64), row)
        matrix += jacobian.T @ (p.diag() - p.outer(p)) @ jacobian / samples
    mean = torch.zeros_like(model.weight)
    for _ in range(3000):
        sampled_cross_entropy(model(inputs), torch.rand(samples)).backward()
        optimizer.observe_curvature()
        optimizer.zero_grad()
        (estimate,) = optimizer._estimate or ()
        mean += estimate / 3000
    torch.testing.assert_close(mean, matrix.diagonal().view_as(mean), rtol=0.15, atol=0)
    assert mean.sum().item() == pytest.approx(matrix.trace().item(), rel=0.03)


def test_sampled_labels_are_decided_by_their_numbers() -> None:
    """By hand: probabilities 1/4, 0, 3/4, of which the second can never come."""
    logits = torch.tensor([0.25, 0.0, 0.75]).log().expand(5, 3)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.9, 1 - 2**-24])
    losses = [sampled_cross_entropy(logits[:1], each[None]).item() for each in uniforms]
    assert losses == pytest.approx([math.log(4)] * 2 + [math.log(4 / 3)] * 3)


def test_sophia_keeps_momentum_and_curvature_and_no_estimate() -> None:
    model, optimizer = trained(CONFIGS["sophia"])
    (state,) = optimizer.state_dict()["optimizers"]
    tensors = [value for one in state["state"].values() for value in one.values()]
    assert sum(value.numel() for value in tensors) == 2 * sum(p.numel() for p in model.parameters())


def test_amuse_averages_exactly_or_as_the_released_code_does() -> None:
    averages = {}
    for parity in ("exact", "published"):
        settings = {"lr": 0.05, "warmup_steps": 2, "weight_decay": 0.1, "rho": 2.0, "parity": parity}
        model, optimizer = trained(Amuse(**settings), steps=6)
        expected = small()
        train(expected, AveragedAmuse(AMUSE(param_groups(expected), beta1=0.6, **settings)), range(6))
        assert same(values(model), values(expected))
        with optimizer.averaged():
            averages[parity] = values(model)
    assert not same(averages["exact"], averages["published"])


def test_anytime_is_the_library_s_preset() -> None:
    """30 steps, so that the learning rate has begun to decay after six warm-ups."""
    settings = {"lr": 0.05, "warmup_steps": 2, "weight_decay": 0.1}
    model, optimizer = trained(Anytime(**settings, split_qkv=False), steps=30)
    expected = small()
    groups = param_groups(expected, matrices="normuon", decaying="matrices")
    train(expected, preset := AveragedAmuse(AMUSE.anytime(groups, **settings)), range(30))
    assert same(values(model), values(expected))
    with optimizer.averaged(), preset.averaged():
        assert same(values(model), values(expected))


def test_amuse_can_divide_queries_keys_and_values_and_leave_the_rest_undecayed() -> None:
    """As three matrices that are parameters of their own, and as groups that say which of the rest decay."""
    torch.manual_seed(0)
    block = nn.Linear(4, 12, bias=False)
    model = nn.ModuleDict({"qkv": block, "norm": nn.LayerNorm(4), "head": nn.Linear(4, 3)})
    thirds = [nn.Parameter(part.detach().clone()) for part in block.weight.split(4)]
    config = Amuse(lr=0.05, warmup_steps=2, weight_decay=0.5, split_qkv=True, decaying="matrices")
    optimizer = config.build(model, steps=5)
    expected = AMUSE(
        [
            {"params": thirds, "direction": "muon"},
            {"params": [nn.Parameter(torch.ones(4))], "direction": "adamw", "weight_decay": 0.0},
        ],
        lr=0.05,
        warmup_steps=2,
        weight_decay=0.5,
    )
    scale = expected.param_groups[1]["params"]
    for step in range(5):
        gradients = torch.randn(12, 4, generator=torch.Generator().manual_seed(step))
        block.weight.grad = gradients
        for third, gradient in zip(thirds, gradients.split(4), strict=True):
            third.grad = gradient.clone()
        model["norm"].weight.grad = torch.full((4,), 0.1)
        scale[0].grad = torch.full((4,), 0.1)
        optimizer.step()
        expected.step()
    torch.testing.assert_close(block.weight, torch.cat(thirds))
    torch.testing.assert_close(model["norm"].weight, scale[0])
    for one in (config, NorMuon(lr=0.05, warmup_steps=2, split_qkv=True)):
        with pytest.raises(ConfigError, match="split_qkv must be False for a model without attention"):
            one.build(small(), steps=5)


def test_what_a_library_rejects_is_a_wrong_request() -> None:
    with pytest.raises(ConfigError, match="t0_steps"):
        Amuse(lr=0.01, warmup_steps=100, t0_steps=1).build(small(), steps=10)
    with pytest.raises(ConfigError, match="Muon only supports 2D parameters"):
        Muon(lr=0.01, lr_rest=0.01, warmup_steps=0).build(Convolutional(), steps=10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdamW(lr=1.0, warmup_steps=0, ema=1.0), r"ema must be None or in \(0, 1\), got 1.0"),
        (
            lambda: AdamW(lr=1.0, warmup_steps=5, schedule="none"),
            "warmup_steps must be 0 with schedule 'none'",
        ),
        (lambda: SGD(lr=1.0, warmup_steps=0, momentum=0.0), r"momentum must be in \(0, 1\), got 0.0"),
        (lambda: Signum(lr=1.0, warmup_steps=0, momentum=0.0), r"momentum must be in \(0, 1\), got 0.0"),
        (lambda: AdamW(lr=1.0, warmup_steps=0, schedule="wave"), "schedule must be one of cosine, .*'wave'"),
        (
            lambda: Amuse(lr=1.0, warmup_steps=2, lr_rest=0.0),
            "lr_rest must be (None or )?positive and finite, got 0.0",
        ),
        (
            lambda: Amuse(lr=1.0, warmup_steps=2, auxiliary="sgd", auxiliary_momentum=0.9),
            "auxiliary_momentum must be 0 with auxiliary 'sgd', got 0.9",
        ),
        (
            lambda: AdEMAMix(lr=1.0, warmup_steps=0, slow_warmup_steps=-1),
            "slow_warmup_steps must be at least 0",
        ),
        (lambda: Soap(lr=1.0, warmup_steps=0, precondition_every=0), "precondition_every must be at least 1"),
        (lambda: Sophia(lr=1.0, warmup_steps=0, curvature_batch=0), "curvature_batch must be at least 1"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_value(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
