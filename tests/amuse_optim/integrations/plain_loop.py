"""The plain loop that runs of Lightning are compared with, and what is compared."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from amuse_optim import averaged_state_dict
from tests.programs.lightning_runs import inputs, loss_of, make_optimizer, network


class Plain:
    """A loop without Lightning that does the same: what it saw at each step."""

    def __init__(self, steps: int, model: nn.Module | None = None, ranks: int = 1, batches: int = 1) -> None:
        self.model = model or network()
        self.optimizer = make_optimizer(self.model)
        self.losses: list[float] = []
        self.x = [self.shipped()]
        for step in range(steps):
            self.optimizer.zero_grad()
            for batch in range(batches * step, batches * (step + 1)):
                for rank in range(ranks):
                    loss = loss_of(self.model(inputs(batch, rank)), inputs(batch, rank))
                    self.losses.append(loss.item())
                    (loss / ranks / batches).backward()
            self.optimizer.step()
            self.x.append(self.shipped())

    def shipped(self) -> dict[str, Tensor]:
        return averaged_state_dict(self.model, self.optimizer)


def in_file(path: Any) -> dict[str, Tensor]:
    """The weights of the network in a checkpoint file."""
    saved = torch.load(path, weights_only=True)["state_dict"]
    return {name.removeprefix("network."): value for name, value in saved.items()}


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("network."): p.detach().clone() for name, p in module.named_parameters()}


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def same_everywhere(ours: Any, theirs: Any) -> bool:
    """Whether two parts of checkpoints are equal to the bit."""
    if isinstance(ours, Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same_everywhere(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same_everywhere, ours, theirs))
    return bool(ours == theirs)


def validation_loss(model: nn.Module, batches: Iterable[int] = (1000, 1001)) -> float:
    with torch.no_grad():
        losses = [loss_of(model(inputs(i)), inputs(i)) for i in batches]
    return float(sum(losses) / len(losses))
