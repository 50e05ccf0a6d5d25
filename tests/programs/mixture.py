"""A small decoder with a mixture of experts in every block, for `divided`."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from amuse_lab.tasks.lm.model import Llama, ModelConfig

EXPERTS, CHOSEN, HIDDEN = 6, 2, 10  # on four ranks the last one has no expert


class MixtureOfExperts(nn.Module):
    """A router and stacked SwiGLU experts; what was not chosen for a position has weight 0 there."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, EXPERTS, bias=False)
        self.gate = nn.Parameter(torch.randn(EXPERTS, HIDDEN, width) / width**0.5)
        self.up = nn.Parameter(torch.randn(EXPERTS, HIDDEN, width) / width**0.5)
        self.down = nn.Parameter(torch.randn(EXPERTS, width, HIDDEN) / HIDDEN**0.5)

    def forward(self, x: Tensor) -> Tensor:
        odds = self.router(x).softmax(-1)
        most, chosen = odds.topk(CHOSEN)
        weights = torch.zeros_like(odds).scatter(-1, chosen, most / most.sum(-1, keepdim=True))
        gate, up = (torch.einsum("btw,ehw->bteh", x, stack) for stack in (self.gate, self.up))
        return torch.einsum("bteh,ewh,bte->btw", functional.silu(gate) * up, self.down, weights)


def mixture(settings: ModelConfig) -> Llama:
    """A Llama with experts in place of its SwiGLU layers."""
    model = Llama(settings)
    for block in model.blocks:
        block.mlp = MixtureOfExperts(settings.n_embd)
    return model
