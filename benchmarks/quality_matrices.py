"""The matrices of `orthogonalization_quality.py`: momentum of small Llamas, and random ones."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from amuse_lab.files import replacing
from amuse_lab.recipes import find
from amuse_optim import AMUSE, orthogonalize, param_groups

SEED = 0


@dataclass(frozen=True)
class Training:
    """A short run of the `shakespeare` recipe whose momentum is kept at some steps."""

    width: int
    heads: int
    layers: int
    steps: tuple[int, ...]

    def momenta(self, cache: Path) -> dict[str, list[Tensor]]:
        """The matrices (1 - mu) g + mu m that AMUSE orthogonalizes, by step; trained unless cached."""
        steps = "-".join(map(str, self.steps))
        path = cache / f"width-{self.width}_layers-{self.layers}_steps-{steps}_seed-{SEED}.pt"
        if not path.exists():
            found = self._train()
            cache.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial_file:
                torch.save(found, partial_file)
        return torch.load(path)

    def _train(self) -> dict[str, list[Tensor]]:
        recipe = find("shakespeare")()
        task_config = replace(
            recipe.task,
            model=replace(recipe.task.model, n_embd=self.width, n_head=self.heads, n_layer=self.layers),
        )
        torch.manual_seed(SEED)
        task = task_config.build(seed=SEED, device=torch.device("cpu"))
        model = task_config.build_model()
        kept: list[Tensor] = []

        def keeping(stack: Tensor) -> Tensor:
            kept.extend(stack.clone())
            return orthogonalize(
                stack, dtype=torch.float32
            )  # so that a change in the bfloat16 forms moves no matrix

        optimizer = AMUSE(  # the recipe's settings
            param_groups(model),
            lr=0.005,
            warmup_steps=160,
            t0_steps=640,
            auxiliary_momentum=0.9,
            orthogonalize=keeping,
        )
        found: dict[str, list[Tensor]] = {}
        for step in range(max(self.steps)):
            kept.clear()
            task.loss(model, task.batch(step)).backward()
            optimizer.step()
            optimizer.zero_grad()
            if step + 1 in self.steps:
                found[f"momentum, width {self.width}, step {step + 1}"] = list(kept)
        return found


def random_basis(count: int, size: int, dimensions: int, generator: torch.Generator, kind: str) -> Tensor:
    """Orthonormal columns, shape (count, size, dimensions), float64, from Gaussian or uneven entries."""
    entries = torch.randn(count, size, dimensions, generator=generator, dtype=torch.float64)
    if kind == "levels":  # few different values, whose roundings agree
        entries = entries.round() + 1e-3 * entries
    elif kind == "sparse":
        entries = entries * (torch.rand(count, size, dimensions, generator=generator) < 0.1) + 1e-3 * entries
    elif kind == "lognormal":
        entries = entries.sign() * torch.exp(2 * entries)
    return torch.linalg.qr(entries).Q


def spectra(rows: int, cols: int) -> dict[str, list[Tensor]]:
    """Random matrices by kind, float32; rows <= cols. Noise is given by its spectral norm."""
    generator = torch.Generator().manual_seed(SEED)
    exact = torch.float64

    def with_values(values: Tensor) -> Tensor:
        left = random_basis(1, rows, rows, generator, "gauss")[0]
        return (left * values) @ random_basis(1, cols, rows, generator, "gauss")[0].T

    def noise(norm: float = 1.0) -> Tensor:
        entries = torch.randn(rows, cols, generator=generator, dtype=exact)
        return entries * norm / (math.sqrt(rows) + math.sqrt(cols))

    def levels(count: int, others: float) -> Tensor:
        return torch.where(torch.arange(rows) < count, 1.0, others).to(exact)

    index = torch.arange(1, rows + 1, dtype=exact)
    found = {"Gaussian": [noise()]}
    for condition in (1e2, 1e4):
        exponent = math.log(condition) / math.log(rows)
        found[f"power law, condition {condition:.0e}"] = [with_values(index**-exponent)]
    found["geometric, condition 1e+06"] = [with_values(torch.logspace(0, -6, rows, dtype=exact))]
    for count in (1, 8):
        found[f"{count} of 1, others 0.04 to 0.15"] = [
            with_values(levels(count, others))
            for others in (0.04, 0.052, 0.062, 0.074, 0.09, 0.106, 0.127, 0.15)
        ]
    for rank, norm in ((1, 1e-2), (1, 1e-3), (1, 1e-4), (1, 1e-6), (2, 1e-3), (4, 1e-2), (4, 1e-4)):
        found[f"rank {rank} + noise {norm:.0e}"] = [with_values(levels(rank, 0.0)) + noise(norm)]
    for share in (1e-2, 1e-4):
        others = share * math.sqrt(rows / 2)
        found[f"half at {share:.0e} of the norm"] = [with_values(levels(rows // 2, others))]
    constant = torch.full((rows, cols), 1 / math.sqrt(rows * cols), dtype=exact)
    for norm in (1e-2, 1e-4):
        found[f"constant + noise {norm:.0e}"] = [constant + noise(norm)]
    row, column = noise(), noise()
    row[0] *= 1e3
    column[:, 0] *= 1e3
    sizes = torch.exp(2 * torch.randn(rows, 1, generator=generator, dtype=exact))
    found |= {
        "one large row": [row],
        "one large column": [column],
        "rows of lognormal size": [noise() * sizes],
    }
    return {kind: [matrix.float() for matrix in matrices] for kind, matrices in found.items()}
