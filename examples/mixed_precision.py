"""Mixed precision with GradScaler: unscale, clip, step, as with any torch optimizer.

On a CPU the products are in bfloat16, which needs no scaling; the loop is the same.
"""

import torch
from torch import nn

from amuse_optim import AMUSE, averaged, param_groups

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
precision = torch.float16 if device == "cuda" else torch.bfloat16
inputs = torch.randn(512, 8, device=device)
targets = inputs[:, :2] * inputs[:, 2:4]
model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 2)).to(device)
# A step whose scaled gradients overflowed is left out by the scaler; the optimizer never sees it.
optimizer = AMUSE(param_groups(model), lr=0.01, warmup_steps=20, t0_steps=80)
scaler = torch.amp.GradScaler(device)
for _ in range(200):
    rows = torch.randint(0, 448, (64,), device=device)
    optimizer.zero_grad()
    with torch.autocast(device, dtype=precision):
        loss = nn.functional.mse_loss(model(inputs[rows]), targets[rows])
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()

with averaged(optimizer), torch.no_grad(), torch.autocast(device, dtype=precision):
    loss = nn.functional.mse_loss(model(inputs[448:]), targets[448:])
print(f"held-out loss at x {loss.item():.4f}, scale {scaler.get_scale():g}")
assert loss < 0.5 * targets[448:].square().mean()
