"""A model that AdamW has trained goes on with AMUSE: a new optimizer on its weights, with a warm-up."""

import torch
from torch import nn

from amuse_optim import AMUSE, averaged, param_groups, report

torch.manual_seed(0)
inputs = torch.randn(512, 8)
targets = inputs[:, :2] * inputs[:, 2:4]
model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 2))


def train(optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Steps on random rows of the first 448."""
    for _ in range(steps):
        rows = torch.randint(0, 448, (64,))
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs[rows]), targets[rows]).backward()
        optimizer.step()


@torch.no_grad()
def held_out_loss() -> float:
    """Mean squared error on the rows that are not trained on."""
    return nn.functional.mse_loss(model(inputs[448:]), targets[448:]).item()


train(torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1), 150)
before = held_out_loss()

groups = param_groups(model)
print(report(groups))
# The learning rate is larger, so the decay, which it multiplies, is smaller by as much.
optimizer = AMUSE(groups, lr=0.005, warmup_steps=30, t0_steps=100, weight_decay=0.02)
train(optimizer, 250)
with averaged(optimizer):
    after = held_out_loss()
print(f"held-out loss {before:.4f} after AdamW, {after:.4f} at x after AMUSE")
assert after < before
