"""Every packaged optimizer against its published update rule, in a few lines of float64."""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from amuse_lab.config import OptimizerConfig
from amuse_lab.optimizers import (
    SGD,
    AdamW,
    AdEMAMix,
    Adopt,
    DMuon,
    Lion,
    Mars,
    NorMuon,
    Prodigy,
    Signum,
    Soap,
    Sophia,
)
from amuse_lab.protocols import NeedsCurvature, TrainingOptimizer
from tests.oracle.directions import make_direction, quintic

LR, DECAY = 0.03, 0.2
STILL = {"schedule": "none", "warmup_steps": 0}
STEPS = 3


class Parts(nn.Module):
    """A matrix that decays, one that does not, and vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.up = nn.Linear(4, 7)
        self.lm_head = nn.Linear(7, 5, bias=False)


def parts() -> Parts:
    torch.manual_seed(0)
    return Parts().double()


def gradient(name: str, shape: torch.Size, step: int) -> Tensor:
    seed = step + 100 * sorted(n for n, _ in Parts().named_parameters()).index(name)
    return 0.3 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def curvature(name: str, shape: torch.Size, step: int) -> Tensor:
    return gradient(name, shape, step + 50)


def packaged(config: OptimizerConfig, steps: int = STEPS, scale: float = 1.0) -> dict[str, list[Tensor]]:
    """Where the optimizer takes each parameter, step by step; the first entry is the beginning."""
    model = parts()
    optimizer = config.build(model, steps=steps)
    path = {name: [p.detach().clone()] for name, p in model.named_parameters()}
    for step in range(1, steps + 1):
        if isinstance(optimizer, NeedsCurvature) and optimizer.wants_curvature:
            give(model, lambda name, shape, step=step: curvature(name, shape, step))
            optimizer.observe_curvature()
        give(model, lambda name, shape, step=step: scale * gradient(name, shape, step))
        optimizer.step()
        for name, p in model.named_parameters():
            path[name].append(p.detach().clone())
    return path


def give(model: nn.Module, make: Callable[[str, torch.Size], Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.grad = make(name, parameter.shape)


@dataclass
class Memory:
    """What a rule knows of one parameter besides its value, its gradient and the step."""

    name: str
    decay: float
    kept: dict[str, Tensor] = field(default_factory=dict)

    def mean(self, name: str, value: Tensor, beta: float) -> Tensor:
        """An exponential moving average that starts at 0."""
        self.kept[name] = beta * self.kept.get(name, torch.zeros_like(value)) + (1 - beta) * value
        return self.kept[name]


def memory_of(name: str, *, everywhere: bool = False) -> Memory:
    return Memory(name, DECAY if everywhere or name in ("up.weight", "lm_head.weight") else 0.0)


Rule = Callable[[Memory, Tensor, Tensor, int], Tensor]


def published(rule: Rule, steps: int = STEPS, *, everywhere: bool = False) -> dict[str, list[Tensor]]:
    """The same by a rule (memory, p, g, t) -> p, with t from 1."""
    path = {}
    for name, parameter in parts().named_parameters():
        memory = memory_of(name, everywhere=everywhere)
        values = [parameter.detach().clone()]
        for step in range(1, steps + 1):
            values.append(rule(memory, values[-1], gradient(name, parameter.shape, step), step))
        path[name] = values
    return path


def check(config: OptimizerConfig, rule: Rule, *, everywhere: bool = False, atol: float = 1e-12) -> None:
    ours, theirs = published(rule, everywhere=everywhere), packaged(config)
    for name, values in ours.items():
        for step in range(1, STEPS + 1):
            torch.testing.assert_close(theirs[name][step], values[step], rtol=1e-9, atol=atol)


def adam(memory: Memory, g: Tensor, t: int, *, beta1: float, beta2: float, eps: float = 1e-8) -> Tensor:
    m = memory.mean("m", g, beta1) / (1 - beta1**t)
    v = memory.mean("v", g**2, beta2) / (1 - beta2**t)
    return m / (v.sqrt() + eps)


def test_adamw() -> None:
    def rule(memory: Memory, p: Tensor, g: Tensor, t: int) -> Tensor:
        return p * (1 - LR * memory.decay) - LR * adam(memory, g, t, beta1=0.8, beta2=0.95)

    check(AdamW(lr=LR, beta1=0.8, beta2=0.95, weight_decay=DECAY, **STILL), rule)


def test_sgd_is_nesterov_with_coupled_decay_everywhere() -> None:
    def rule(memory: Memory, p: Tensor, g: Tensor, t: int) -> Tensor:  # noqa: ARG001
        g = g + memory.decay * p
        memory.kept["b"] = 0.9 * memory.kept.get("b", torch.zeros_like(g)) + g
        return p - LR * (g + 0.9 * memory.kept["b"])

    check(SGD(lr=LR, weight_decay=DECAY, **STILL), rule, everywhere=True)


def test_lion() -> None:
    def rule(memory: Memory, p: Tensor, g: Tensor, t: int) -> Tensor:  # noqa: ARG001
        m = memory.kept.get("m", torch.zeros_like(g))
        memory.kept["m"] = 0.99 * m + 0.01 * g
        return p - LR * ((0.9 * m + 0.1 * g).sign() + memory.decay * p)

    check(Lion(lr=LR, weight_decay=DECAY, **STILL), rule)


def test_signum() -> None:
    def rule(memory: Memory, p: Tensor, g: Tensor, t: int) -> Tensor:  # noqa: ARG001
        return p - LR * (memory.mean("m", g, 0.95).sign() + memory.decay * p)

    check(Signum(lr=LR, weight_decay=DECAY, **STILL), rule)


def test_adopt_divides_by_the_second_moment_before_and_clips() -> None:
    """Gradient 0 only starts the second moment. The package lets it decay the weights, too."""

    def rule(memory: Memory, p: Tensor, g: Tensor, t: int) -> Tensor:
        decayed = p * (1 - LR * memory.decay)
        if t == 1:
            memory.kept["v"] = g**2
            return decayed
        bound = (t - 1) ** 0.25
        normalized = (g / memory.kept["v"].sqrt().clamp(min=0.1)).clamp(-bound, bound)
        memory.kept["v"] = 0.9 * memory.kept["v"] + 0.1 * g**2
        return decayed - LR * memory.mean("m", normalized, 0.7)

    check(Adopt(lr=LR, beta1=0.7, beta2=0.9, eps=0.1, weight_decay=DECAY, **STILL), rule)


@pytest.mark.parametrize("warmup", [0, 2, 5])
def test_ademamix_warms_its_slow_momentum_up(warmup: int) -> None:
    beta1, beta3, alpha = 0.9, 0.999, 8.0

    def rule(memory: Memory, p: Tensor, g: Tensor, t: int) -> Tensor:
        share = t / warmup if warmup else 1.0
        slow = math.log(beta1) * math.log(beta3)
        slow /= (1 - share) * math.log(beta3) + share * math.log(beta1)
        now = min(math.exp(slow), beta3) if warmup else beta3
        m1 = memory.mean("m1", g, beta1) / (1 - beta1**t)
        m2 = memory.mean("m2", g, now)
        v = memory.mean("v", g**2, 0.99) / (1 - 0.99**t)
        direction = (m1 + min(share, 1.0) * alpha * m2) / (v.sqrt() + 1e-8)
        return p - LR * (direction + memory.decay * p)

    config = AdEMAMix(lr=LR, beta2=0.99, slow_warmup_steps=warmup, weight_decay=DECAY, **STILL)
    check(config, rule)


def test_mars_corrects_matrices_and_gives_vectors_adamw() -> None:
    def rule(memory: Memory, p: Tensor, g: Tensor, t: int) -> Tensor:
        if p.dim() < 2:
            return p - 0.5 * LR * adam(memory, g, t, beta1=0.8, beta2=0.99)
        corrected = g + 0.3 * 0.95 / 0.05 * (g - memory.kept.get("g", torch.zeros_like(g)))
        memory.kept["g"] = g
        corrected = corrected / max(1.0, corrected.norm().item())
        return p - LR * (adam(memory, corrected, t, beta1=0.95, beta2=0.9) + memory.decay * p)

    config = Mars(lr=LR, lr_rest=0.5 * LR, beta2=0.9, beta2_rest=0.99, gamma=0.3, weight_decay=DECAY, **STILL)
    check(
        config, rule, atol=1e-6
    )  # the package adds eps before it corrects the bias, and 1e-15 below the root


def test_d_muon_has_nesterov_momentum_the_scale_of_adamw_and_adamw_for_the_rest() -> None:
    def rule(memory: Memory, p: Tensor, g: Tensor, t: int) -> Tensor:
        if memory.name != "up.weight":
            return p - LR * (adam(memory, g, t, beta1=0.8, beta2=0.95) + memory.decay * p)
        m = memory.mean("m", g, 0.95)
        orthogonal = torch.from_numpy(quintic((0.05 * g + 0.95 * m).numpy()))
        return p - LR * (0.2 * math.sqrt(7) * orthogonal + memory.decay * p)

    config = DMuon(lr=LR, beta2=0.95, weight_decay=DECAY, **STILL)
    ours, theirs = published(rule), packaged(config)
    for name, values in ours.items():
        if name != "up.weight":
            torch.testing.assert_close(theirs[name], values, rtol=1e-9, atol=1e-12)
            continue
        for before, after, exact_before, exact in zip(
            theirs[name], theirs[name][1:], values, values[1:], strict=False
        ):  # torch orthogonalizes in bfloat16
            update, expected = before - after, exact_before - exact
            assert cosine_similarity(update.flatten(), expected.flatten(), dim=0) > 0.9995
            assert (update - expected).norm() < 0.03 * expected.norm()


def test_normuon_is_normuon_without_averaging_and_adamw_for_the_rest() -> None:
    states: dict[str, dict[str, Any]] = defaultdict(dict)
    direction = make_direction(
        "normuon",
        momentum=0.8,
        beta2=0.95,
        eps=1e-10,
        nesterov=True,
        auxiliary_momentum=0.9,
        scale="match_rms",
        orthogonalize="quintic",
        orthogonalize_steps=5,
    )

    def rule(memory: Memory, p: Tensor, g: Tensor, t: int) -> Tensor:
        if memory.name == "up.weight":
            d = torch.from_numpy(direction(states[memory.name], g.numpy()))
        else:
            d = adam(memory, g, t, beta1=0.9, beta2=0.95, eps=1e-10)
        return p - LR * (d + memory.decay * p)

    check(NorMuon(lr=LR, momentum=0.8, beta2=0.95, weight_decay=DECAY, **STILL), rule)


def test_sophia_clips_where_curvature_is_small() -> None:
    rho, batch = 0.5, 4
    clipped = []

    def rule(memory: Memory, p: Tensor, g: Tensor, t: int) -> Tensor:
        if t % 2 == 1:
            memory.mean("h", rho * batch * curvature(memory.name, g.shape, t) ** 2, 0.8)
        ratio = memory.mean("m", g, 0.9) / memory.kept["h"]
        clipped.append((ratio.abs() > 1).double().mean())
        return p - LR * (ratio.clamp(-1, 1) + memory.decay * p)

    settings = {"rho": rho, "curvature_batch": batch, "curvature_every": 2, "weight_decay": DECAY}
    check(Sophia(lr=LR, beta2=0.8, **settings, **STILL), rule)
    assert 0.1 < torch.stack(clipped).mean() < 0.9  # both regimes are there


def test_prodigy() -> None:
    """The paper's Adam variant with the bias correction of its authors' code; all parameters share d."""
    beta1, beta2, d0 = 0.9, 0.99, 1e-6
    beta3 = math.sqrt(beta2)
    path = {name: [p.detach().clone()] for name, p in parts().named_parameters()}
    memories = {name: memory_of(name) for name in path}
    d, r = d0, 0.0
    for t in range(1, 7):
        rate = d * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        r *= beta3
        gradients = {name: gradient(name, values[0].shape, t) for name, values in path.items()}
        for name, g in gradients.items():
            memory, values = memories[name], path[name]
            r += d * rate / d0 * (g * (values[0] - values[-1])).sum().item()
            memory.mean("m", d * g, beta1)
            memory.mean("v", (d * g) ** 2, beta2)
            memory.kept["s"] = beta3 * memory.kept.get("s", torch.zeros_like(g)) + d * rate / d0 * g
        d = max(d, r / sum(memory.kept["s"].abs().sum().item() for memory in memories.values()))
        for name, memory in memories.items():
            direction = memory.kept["m"] / (memory.kept["v"].sqrt() + d * 1e-8)
            path[name].append(path[name][-1] * (1 - rate * memory.decay) - rate * direction)
    theirs = packaged(Prodigy(beta2=beta2, weight_decay=DECAY, **STILL), steps=6)
    for name, values in path.items():
        for ours, other in zip(values, theirs[name], strict=True):
            torch.testing.assert_close(other - values[0], ours - values[0], rtol=1e-4, atol=1e-12)


def test_prodigy_finds_the_scale_of_the_problem_itself() -> None:
    """From a step size of 1e-6 it grows, never shrinks, and does not depend on the scale of the loss."""
    target = torch.linspace(-3, 3, 12, dtype=torch.float64).reshape(4, 3)

    def run(scale: float) -> tuple[list[float], list[float]]:
        model = nn.Linear(3, 4, bias=False).double()
        nn.init.zeros_(model.weight)
        optimizer = Prodigy(**STILL).build(model, steps=100)
        losses, sizes = [], []
        for _ in range(100):
            loss = (model.weight - target).abs().mean()
            (scale * loss).backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            sizes.append(optimizer.telemetry()["d"])
        return losses, sizes

    losses, sizes = run(1.0)
    assert sizes == sorted(sizes)
    assert sizes[-1] > 1e4 * 1e-6
    assert min(losses) < 0.2 * losses[0]
    assert run(1000.0)[1] == pytest.approx(sizes, rel=1e-3)


def test_soap_without_a_basis_is_adam_one_step_late() -> None:
    def rule(memory: Memory, p: Tensor, g: Tensor, t: int) -> Tensor:
        if t == 1:
            return p
        s = t - 1
        m = memory.mean("m", g, 0.9) / (1 - 0.9**s)
        v = memory.mean("v", g**2, 0.99)
        moved = p - LR * math.sqrt(1 - 0.99**s) * m / (v.sqrt() + 1e-8)
        return moved * (1 - LR * memory.decay)

    config = Soap(lr=LR, beta2=0.99, max_precondition_dim=1, weight_decay=DECAY, **STILL)
    check(config, rule)


def test_soap_turns_with_the_matrix() -> None:
    """Adam in the eigenbasis: gradients U G V^T move the matrix as G does, turned. Plain Adam's do not."""
    turns = [torch.linalg.qr(gradient("up.weight", torch.Size((n, n)), n))[0] for n in (4, 3)]
    gradients = [gradient("up.weight", torch.Size((4, 3)), step) for step in range(8)]

    def moved(config: OptimizerConfig, given: list[Tensor]) -> Tensor:
        model = nn.Linear(3, 4, bias=False).double()
        nn.init.zeros_(model.weight)
        optimizer: TrainingOptimizer = config.build(model, steps=len(given))
        for g in given:
            model.weight.grad = g.clone()
            optimizer.step()
        return model.weight.detach()

    def turned(matrix: Tensor) -> Tensor:
        return turns[0] @ matrix @ turns[1].mT

    soap, adamw = Soap(lr=LR, precondition_every=100, **STILL), AdamW(lr=LR, **STILL)
    given = [turned(g) for g in gradients]
    torch.testing.assert_close(moved(soap, given), turned(moved(soap, gradients)), rtol=1e-6, atol=1e-9)
    assert (moved(adamw, given) - turned(moved(adamw, gradients))).norm() > LR


def test_soap_renews_its_basis_when_it_is_due() -> None:
    every, never = (packaged(Soap(lr=LR, precondition_every=n, **STILL), steps=5) for n in (2, 100))
    same = [torch.equal(a, b) for a, b in zip(every["up.weight"], never["up.weight"], strict=True)]
    assert same == [True, True, True, True, False, False]
    assert all(torch.equal(a, b) for a, b in zip(every["up.bias"], never["up.bias"], strict=True))
