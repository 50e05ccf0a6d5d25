"""A convolutional network with BatchNorm: its statistics belong to y, so they are refreshed at x."""

import torch
from torch import nn

from amuse_optim import AMUSE, averaged, param_groups, refresh_batch_norm

torch.manual_seed(0)
labels = torch.randint(0, 4, (512,))
images = torch.randn(512, 1, 8, 8) * 0.7
for quarter in range(4):  # a brighter quarter tells the class
    row, column = 4 * (quarter // 2), 4 * (quarter % 2)
    images[labels == quarter, :, row : row + 4, column : column + 4] += 1.0

model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1, bias=False),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(256, 4),
)
# SGD for the rest goes with the "spectral" scale and larger learning rates, as in the paper's image runs.
optimizer = AMUSE(param_groups(model, auxiliary="sgd"), lr=0.1, warmup_steps=10, t0_steps=40, beta1=0.8)
for _ in range(80):
    rows = torch.randint(0, 384, (64,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
    optimizer.step()

with averaged(optimizer):
    refresh_batch_norm(model, images[:384].split(64))
    model.eval()
    with torch.no_grad():
        accuracy = (model(images[384:]).argmax(1) == labels[384:]).float().mean().item()
    model.train()
print(f"accuracy at x {accuracy:.3f}")
assert accuracy > 0.9
