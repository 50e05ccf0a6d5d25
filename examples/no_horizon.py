"""A run that is extended again and again: nobody says how long, and every stop is a finished model."""

import tempfile
from pathlib import Path

import torch
from torch import nn

from amuse_optim import AMUSE, averaged, param_groups

torch.manual_seed(0)
inputs = torch.randn(1024, 8)
targets = inputs[:, :2] * inputs[:, 2:4] + inputs[:, 4:6].sin()
checkpoint = Path(tempfile.mkdtemp()) / "run.pt"


def build() -> tuple[nn.Module, AMUSE]:
    """A new process would begin like this."""
    model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 2))
    # The learning rate falls as 1 / sqrt(t) from six warm-ups on, without an end; there is no other length.
    groups = param_groups(model, matrices="normuon", decaying="matrices")
    return model, AMUSE.anytime(groups, lr=0.02, warmup_steps=20, weight_decay=0.1)


def go_on(steps: int) -> float:
    """Resume where the last process stopped, if any; return the held-out loss at x."""
    model, optimizer = build()
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    for _ in range(steps):
        rows = torch.randint(0, 896, (64,))
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs[rows]), targets[rows]).backward()
        optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint)
    with averaged(optimizer), torch.no_grad():
        loss = nn.functional.mse_loss(model(inputs[896:]), targets[896:]).item()
    print(f"after {optimizer.param_groups[0]['t']} steps: held-out loss at x {loss:.4f}")
    return loss


losses = [go_on(steps) for steps in (100, 100, 200, 400)]
assert losses == sorted(losses, reverse=True)
