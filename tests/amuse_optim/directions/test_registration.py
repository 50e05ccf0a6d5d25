"""What is asked of directions, and the example of the documentation."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from amuse_optim import AMUSE
from amuse_optim.averaging import Tensors
from amuse_optim.buckets import Bucket, Chunk
from amuse_optim.checks import Option, choice, fraction
from amuse_optim.directions import DIRECTIONS, ElementwiseDirection
from amuse_optim.directions.base import Direction, Shape, Update, by_name
from amuse_optim.options import OPTIONS

PAGE = Path(__file__).parents[3] / "docs" / "architecture.md"


class Plain(ElementwiseDirection):
    """d = g, with an option and a state tensor that tests choose."""

    name = "plain"
    tensor: ClassVar[str] = "momentum_buffer"

    def state_shapes(self, group: Any, shape: Shape) -> dict[str, Shape]:  # noqa: ARG002
        return {self.tensor: shape}

    def update(self, chunk: Chunk) -> tuple[Tensors, float]:
        return chunk.read("gradient"), 1.0


def test_names_are_given_once() -> None:
    class Again(Plain):
        name = "sgd"

    with pytest.raises(ValueError, match="there are two directions 'sgd'"):
        by_name(*DIRECTIONS.values(), Again())


@pytest.mark.parametrize("option", [Option(0.9, fraction), Option(0.95, lambda *_: None)])
def test_an_option_of_one_name_is_declared_alike(option: Option) -> None:
    class Other(Plain):
        options: ClassVar[dict[str, Option]] = {"momentum": option}

    with pytest.raises(
        ValueError, match="'momentum' of direction 'plain' must be the Option that 'muon' declares"
    ):
        by_name(*DIRECTIONS.values(), Other())


@pytest.mark.parametrize("name", ["y", "z", "x", "gradient", "step", "beta", "average_of_squares"])
def test_names_of_the_optimizer_s_own_state_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    direction = Plain()
    monkeypatch.setattr(Plain, "tensor", name)
    register(direction, monkeypatch)
    with pytest.raises(ValueError, match=f"must not name {name}: "):
        AMUSE([nn.Parameter(torch.ones(2))], direction="plain", warmup_steps=2)


def test_updates_are_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a direction that may raise, whose updates are computed before the others'."""
    asked = []

    class Careful(Plain):
        def may_raise(self, group: Any) -> bool:  # noqa: ARG002
            return True

        def updates(self, bucket: Bucket) -> Iterator[Update]:
            asked.append(bucket)
            return super().updates(bucket)

    register(Careful(), monkeypatch)
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    AMUSE([weight], direction="plain", warmup_steps=2).step()
    assert len(asked) == 1


def register(direction: Direction, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a direction and its options into the tables during a test, as an entry in `DIRECTIONS` does."""
    monkeypatch.setitem(DIRECTIONS, direction.name, direction)
    monkeypatch.setitem(OPTIONS, "direction", Option(None, choice(*DIRECTIONS)))
    for name, option in direction.options.items():
        monkeypatch.setitem(OPTIONS, name, option)


@pytest.fixture
def heavy_ball(monkeypatch: pytest.MonkeyPatch) -> None:
    """The documentation's example, as it stands there."""
    (source,) = (
        block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "HeavyBall" in block
    )
    found: dict[str, Any] = {}
    exec(compile(source, str(PAGE), "exec"), found)
    by_name(*DIRECTIONS.values(), found["HeavyBall"]())
    register(found["HeavyBall"](), monkeypatch)


@pytest.mark.parametrize("options", [{}, {"capturable": True, "nonfinite": "ignore"}, {"foreach": False}])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("heavy_ball")
def test_the_example_of_the_documentation_is_heavy_ball(dtype: torch.dtype, options: dict[str, Any]) -> None:
    if options.get("capturable") and dtype == torch.bfloat16:
        dtype = torch.float32
    start = torch.linspace(-1, 1, 6, dtype=torch.float64).to(dtype)
    parameter = nn.Parameter(start.clone())
    optimizer = AMUSE(
        [parameter], direction="heavy_ball", lr=0.125, warmup_steps=0, rho=0.0, momentum=0.5, **options
    )
    m, z, mean = torch.zeros(6, dtype=torch.float64), start.double(), torch.zeros(6, dtype=torch.float64)
    for step in range(1, 6):
        gradient: Tensor = torch.arange(6.0, dtype=torch.float64) * step
        parameter.grad = gradient.to(dtype)
        optimizer.step()
        m = 0.5 * m + gradient
        z = z - 0.125 * m
        mean = mean + (z - mean) / step
    assert "momentum_buffer" in optimizer.state_dict()["state"][0]
    tolerance = 1e-14 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(optimizer.state[parameter]["z"].double(), z, rtol=tolerance, atol=tolerance)
    optimizer.eval()
    rounding = 2**-8 if dtype == torch.bfloat16 else tolerance
    torch.testing.assert_close(parameter.detach().double(), mean, rtol=rounding, atol=tolerance)


@pytest.mark.usefixtures("heavy_ball")
def test_the_example_keeps_its_momentum_in_lean_state() -> None:
    parameter = nn.Parameter(torch.zeros(4000))
    optimizer = AMUSE([parameter], direction="heavy_ball", warmup_steps=2, state_precision="lean")
    for _ in range(3):
        parameter.grad = torch.ones(4000)
        optimizer.step()
    momentum = optimizer.state[parameter]["momentum_buffer"]
    assert momentum.dtype == torch.bfloat16
    assert float(momentum.float().mean()) == pytest.approx(1 + 0.95 + 0.95**2, rel=1e-3)
