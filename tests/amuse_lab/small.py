"""A small problem with one of everything that optimizers tell apart, and settings that solve it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from amuse_lab.config import OptimizerConfig
from amuse_lab.optimizers import (
    SGD,
    AdamW,
    AdEMAMix,
    Adopt,
    Amuse,
    Anytime,
    DMuon,
    Lion,
    Mars,
    Muon,
    MuonSGD,
    NorMuon,
    Prodigy,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
    Signum,
    Soap,
    Sophia,
)
from amuse_lab.protocols import NeedsCurvature, TrainingOptimizer

CONFIGS: dict[str, OptimizerConfig] = {
    config.name: config
    for config in (
        Amuse(lr=0.05, warmup_steps=2, weight_decay=0.1),
        Anytime(lr=0.05, warmup_steps=2, weight_decay=0.1, split_qkv=False),
        ScheduleFreeAdamW(lr=0.05, warmup_steps=2, weight_decay=0.1),
        ScheduleFreeSGD(lr=1.0, warmup_steps=2, weight_decay=1e-4),
        Muon(lr=0.05, lr_rest=0.05, warmup_steps=2, weight_decay=0.1),
        DMuon(lr=0.05, warmup_steps=2, weight_decay=0.1),
        NorMuon(lr=0.05, warmup_steps=2, weight_decay=0.1),
        MuonSGD(lr=0.1, lr_rest=0.5, warmup_steps=2, weight_decay=1e-3),
        AdamW(lr=0.05, warmup_steps=2, weight_decay=0.1),
        SGD(lr=0.5, warmup_steps=2, weight_decay=1e-4),
        AdEMAMix(lr=0.02, warmup_steps=2, slow_warmup_steps=6, weight_decay=0.1),
        Adopt(lr=0.05, warmup_steps=2, weight_decay=0.1),
        Lion(lr=0.02, warmup_steps=2, weight_decay=0.1),
        Mars(lr=0.05, lr_rest=0.02, warmup_steps=2, weight_decay=0.1),
        Prodigy(warmup_steps=2, weight_decay=0.1),
        Signum(lr=0.02, warmup_steps=2, weight_decay=0.1),
        Soap(lr=0.05, warmup_steps=2, precondition_every=2, weight_decay=0.1),
        Sophia(lr=0.02, warmup_steps=2, curvature_batch=32, curvature_every=2, weight_decay=0.1),
    )
}
VARIANTS = [
    pytest.param(replace(config, ema=ema), id=f"{name}-ema" if ema else name)
    for name, config in CONFIGS.items()
    for ema in (None, 0.7)
]


class Small(nn.Module):
    """One of everything that optimizers tell apart; predicts the next of 11 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8, bias=False)
        self.lm_head = nn.Linear(8, 11, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(self.down(self.up(self.norm(self.embedding(tokens))).tanh()))


def small(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    return Small()


def train(model: nn.Module, optimizer: TrainingOptimizer, steps: range) -> list[float]:
    """Takes steps, whose data depends on the step alone, as a training loop would."""
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(11, (32,), generator=generator)
        if isinstance(optimizer, NeedsCurvature) and optimizer.wants_curvature:
            logits = model(tokens)
            labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
            functional.cross_entropy(logits, labels).backward()
            optimizer.observe_curvature()
            optimizer.zero_grad()
        loss = functional.cross_entropy(model(tokens), (3 * tokens + 1) % 11)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def values(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def trained(config: OptimizerConfig, steps: int = 3) -> tuple[Small, TrainingOptimizer]:
    model = small()
    optimizer = config.build(model, steps=10)
    train(model, optimizer, range(steps))
    return model, optimizer


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 4, 3, bias=False)
        self.fc = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.deep(self.norm(self.stem(images)).relu()).mean((2, 3)))
