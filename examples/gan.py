"""A GAN: two optimizers with modes of their own; samples are drawn from the generator at x."""

import torch
from torch import nn

from amuse_optim import AMUSE, averaged, param_groups

torch.manual_seed(0)
center = torch.tensor([2.0, -1.0])
generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
critic = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
# The other side moves: gradients near the fast sequence (beta1), averages that forget the beginning (r).
options = {"lr": 0.003, "warmup_steps": 20, "beta1": 0.3, "rho": 0.0, "r": 4.0}
of_generator = AMUSE(param_groups(generator), **options)
of_critic = AMUSE(param_groups(critic), **options)


def real(count: int) -> torch.Tensor:
    """Samples of the distribution to learn."""
    return center + 0.5 * torch.randn(count, 2)


with torch.no_grad():
    before = (generator(torch.randn(1000, 4)).mean(0) - center).norm().item()
for _ in range(400):
    of_critic.zero_grad()
    fake = generator(torch.randn(64, 4)).detach()
    loss = nn.functional.softplus(-critic(real(64))) + nn.functional.softplus(critic(fake))
    loss.mean().backward()
    of_critic.step()

    of_generator.zero_grad()
    nn.functional.softplus(-critic(generator(torch.randn(64, 4)))).mean().backward()
    of_generator.step()

with averaged(of_generator), torch.no_grad():  # the critic stays at y
    samples = generator(torch.randn(1000, 4))
distance = (samples.mean(0) - center).norm().item()
print(f"distance of the means: {before:.3f} -> {distance:.3f}")
assert distance < 0.5 * before
