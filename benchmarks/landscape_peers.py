"""Leading eigenvalues of a Hessian: ours against curvlinops with SciPy's ARPACK, and hessian-eigenthings.

    python benchmarks/landscape_peers.py --out records/landscape/peers.json

The same loss, batches and parameters for all: a byte-level Llama on the plays after some steps of AMUSE. Each
peer looks for the k largest eigenvalues until all residuals ||H v - lambda v|| are within a tolerance times
the largest one. Residuals are measured alike for all, by products in float64, and eigenvalues are compared
with those of ARPACK in float64 at machine precision; products for that are not counted.

hessian-eigenthings has no restarts and is told how many steps to take: the smallest multiple of ten that
suffices counts, which a user would not know. ARPACK's tolerance is each eigenvalue's own: the loosest of some
that suffices counts. Neither has attention in its plain form: they run inside the context that ours enters by
itself, without which there is no second derivative on a CPU. curvlinops takes forward derivatives of
gradients, which torch does not have for SiLU; the model has x sigmoid(x) in its place, for all.

The peers are in none of the extras: `pip install curvlinops-for-pytorch==3.0.1 hessian-eigenthings==1.0.0a5`.
Times are those of the processor, with one thread; medians over rounds in which the peers take turns.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from amuse_lab.environment import describe
from amuse_lab.landscape.points import Points, objective
from amuse_lab.optimizers import Amuse
from amuse_lab.parallel import ALONE
from amuse_lab.recipes.lm import shakespeare
from amuse_lab.tasks.lm.model import ModelConfig
from amuse_lab.tasks.lm.task import LanguageModelConfig
from amuse_lab.trainer import Trainer
from amuse_optim.landscape import eigenpairs, hessian

STEPS = 100
BATCHES = 2
ARPACK_TOLERANCES = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)


@dataclass(frozen=True)
class Found:
    """What a peer has found: eigenvalues, eigenvectors as rows, and the products that it took."""

    values: Tensor
    vectors: Tensor
    products: int
    setting: str


class Problem:
    """The loss around x of a short run."""

    def __init__(self, width: int) -> None:
        model = ModelConfig(n_embd=width, n_head=2, n_layer=2, context=64, mlp_multiple=32)
        config = replace(
            shakespeare(),
            task=LanguageModelConfig(model=model, data="shakespeare", batch=16),
            optimizer=Amuse(lr=0.02, warmup_steps=40, t0_steps=130),
            steps=STEPS,
        )
        trainer = Trainer.build(config, ALONE, torch.device("cpu"))
        for _ in range(STEPS):
            trainer.advance(look=False)
        self.loss = objective(trainer, BATCHES)
        self.x = Points.of(trainer).x
        self.batches = self.loss.batches
        self.model = trainer.model
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.x[name])
        exact = {name: value.double() for name, value in self.x.items()}
        self.exact = hessian(self.loss, exact)

    def residuals(self, found: Found) -> list[float]:
        """Norms of H v - lambda v, in float64."""
        vectors = found.vectors.double()
        vectors = vectors / vectors.norm(dim=1, keepdim=True)
        pairs = zip(vectors, found.values.double(), strict=True)
        return [float((self.exact @ vector - value * vector).norm()) for vector, value in pairs]

    def eigenvalues(self, k: int) -> Tensor:
        """The k largest, by ARPACK in float64."""
        size = self.exact.coordinates.size
        product = LinearOperator(
            (size, size),
            matvec=lambda v: (self.exact @ torch.from_numpy(v).flatten()).numpy(),
            dtype=np.float64,
        )
        return torch.from_numpy(eigsh(product, k, which="LA", return_eigenvectors=False)).flip(0)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Context manager: attention that can be differentiated twice on a CPU."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def counted(product: Callable[[Tensor], Tensor], counts: list[int]) -> Callable[[Tensor], Tensor]:
    """The product, counting."""

    def count(vector: Tensor) -> Tensor:
        counts[0] += 1
        return product(vector)

    return count


def ours(problem: Problem, k: int, tolerance: float) -> Iterator[Callable[[], Found]]:
    """`amuse_optim.landscape.eigenpairs`, whose tolerance is the one asked for."""

    def find() -> Found:
        operator = hessian(problem.loss, problem.x)
        pairs = eigenpairs(operator, k, tolerance=tolerance)
        return Found(pairs.values, pairs.vectors, pairs.products, f"tolerance {tolerance:g}")

    yield find


class _Flat(nn.Module):
    """A language model with one row of logits for each token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens).flatten(0, 1)
        return logits


def curvlinops(problem: Problem, k: int, tolerance: float) -> Iterator[Callable[[], Found]]:
    """The Hessian of curvlinops with SciPy's `eigsh`, at looser and then at tighter tolerances."""
    from curvlinops import HessianLinearOperator

    for each in ARPACK_TOLERANCES:
        if each > 30 * tolerance:
            continue

        def find(each: float = each) -> Found:
            data = [(tokens, targets.flatten()) for tokens, targets in problem.batches]
            with plain_attention():
                model = _Flat(problem.model)
                operator = HessianLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), data)
                counts, inner = [0], operator.to_scipy()
                product = LinearOperator(
                    inner.shape,
                    matvec=lambda v: (counts.__setitem__(0, counts[0] + 1), inner.matvec(v))[1],
                    dtype=np.float32,
                )
                start = torch.randn(inner.shape[0], generator=torch.Generator().manual_seed(0)).numpy()
                values, vectors = eigsh(product, k, which="LA", tol=each, v0=start)
            found = torch.from_numpy(vectors.T.copy()).flip(0)
            return Found(torch.from_numpy(values.copy()).flip(0), found, counts[0], f"eigsh tol {each:g}")

        yield find


def eigenthings(problem: Problem, k: int, tolerance: float) -> Iterator[Callable[[], Found]]:
    """The Lanczos of hessian-eigenthings with full re-orthogonalization, of more and more steps."""
    import hessian_eigenthings

    del tolerance  # the steps decide
    for steps in range(2 * k, 40 * k, 10):

        def find(steps: int = steps) -> Found:
            with plain_attention():
                operator = hessian_eigenthings.HessianOperator(
                    problem.model, problem.batches, lambda model, batch: model(*batch)
                )
                counts = [0]
                operator.matvec = counted(operator.matvec, counts)
                found = hessian_eigenthings.lanczos(
                    operator, k=k, max_iter=steps, which="LA", reorthogonalize=True, seed=0
                )
            return Found(found.eigenvalues, found.eigenvectors, counts[0], f"{steps} steps")

        yield find


PEERS = {"amuse_optim.landscape": ours, "curvlinops + eigsh": curvlinops, "hessian-eigenthings": eigenthings}


def settled(
    problem: Problem, peer: Callable[..., Iterator[Callable[[], Found]]], k: int, tolerance: float
) -> tuple[Callable[[], Found], Found, float] | None:
    """The first setting whose residuals are within the tolerance, what it finds, and the largest residual."""
    for find in peer(problem, k, tolerance):
        found = find()
        worst = max(problem.residuals(found)) / float(found.values.max())
        if worst <= 1.05 * tolerance:  # residuals in float64 are not quite those in float32
            return find, found, worst
    return None


def compare(problem: Problem, k: int, tolerance: float, rounds: int) -> list[dict[str, Any]]:
    """One line for each peer."""
    exact = problem.eigenvalues(k)
    chosen = {name: settled(problem, peer, k, tolerance) for name, peer in PEERS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in PEERS}
    for _ in range(rounds):
        for name, each in chosen.items():
            if each is not None:
                started = time.process_time()
                each[0]()
                seconds[name].append(time.process_time() - started)
    lines = []
    for name, each in chosen.items():
        line: dict[str, Any] = {"peer": name, "k": k, "tolerance": tolerance, "reached": each is not None}
        if each is not None:
            _, found, worst = each
            error = (found.values.double() - exact).abs().max() / exact[0]
            line |= {
                "setting": found.setting,
                "products": found.products,
                "processor_seconds": round(statistics.median(seconds[name]), 3),
                "largest_residual": float(f"{worst:.3g}"),
                "largest_error_of_an_eigenvalue": float(f"{float(error):.3g}"),
            }
        lines.append(line)
        print(json.dumps(line), flush=True)
    return lines


def _silu(x: Tensor) -> Tensor:
    """SiLU by two operations whose backward passes have forward derivatives, which curvlinops needs."""
    return x * torch.sigmoid(x)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--k", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--tolerance", type=float, nargs="+", default=[1e-3, 1e-4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.nn.functional.silu = _silu
    problem = Problem(arguments.width)
    lines = [
        line
        for k in arguments.k
        for tolerance in arguments.tolerance
        for line in compare(problem, k, tolerance, arguments.rounds)
    ]
    described = describe(device=torch.device("cpu"), seed=0)
    described |= {name: version(name) for name in ("curvlinops-for-pytorch", "hessian-eigenthings", "scipy")}
    if arguments.out is not None:
        content = {"parameters": problem.exact.coordinates.size, "lines": lines, "environment": described}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
