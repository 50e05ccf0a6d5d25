"""A plain training loop: train, evaluate at x on the way, ship x, save for resuming."""

import torch
from torch import nn

from amuse_optim import AMUSE, averaged, averaged_state_dict, param_groups

torch.manual_seed(0)
inputs = torch.randn(512, 8)
targets = inputs[:, :3].sin() * inputs[:, 3:6]
model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 3))
optimizer = AMUSE(param_groups(model), lr=0.01, warmup_steps=30, t0_steps=100, weight_decay=0.01)


def loss_of(rows: torch.Tensor) -> torch.Tensor:
    """Mean squared error on some of the rows."""
    return nn.functional.mse_loss(model(inputs[rows]), targets[rows])


held_out = torch.arange(448, 512)
with torch.no_grad():
    first = loss_of(held_out).item()
for step in range(1, 301):
    optimizer.zero_grad()
    loss_of(torch.randint(0, 448, (64,))).backward()
    optimizer.step()
    if step % 100 == 0:
        with averaged(optimizer), torch.no_grad():  # x inside, y again afterwards
            print(f"step {step}: held-out loss at x {loss_of(held_out):.4f}")

model_to_ship = averaged_state_dict(model, optimizer)
to_resume = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
model.load_state_dict(model_to_ship)
with torch.no_grad():
    last = loss_of(held_out).item()
print(f"held-out loss {first:.4f} -> {last:.4f}")
assert last < 0.5 * first
