"""The forms that the record examines are what they say, and so is what is measured of them."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from amuse_optim import orthogonalize

EXACT = torch.float64


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("quality_forms")


@pytest.fixture
def measures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("quality_measures")


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=EXACT)


@pytest.mark.parametrize("restarts", [None, (), (3,), (2, 4), (1, 2, 4)])
@pytest.mark.parametrize("shape", [(2, 7, 12), (2, 12, 7)])
@pytest.mark.parametrize("method", ["quintic", "polar_express"])
def test_every_form_is_the_same_polynomial(
    forms: ModuleType, method: str, shape: tuple[int, ...], restarts: tuple[int, ...] | None
) -> None:
    matrices = random(*shape)
    expected = orthogonalize(matrices, method=method, dtype=EXACT)
    for folded in (False, True):
        form = forms.Form(method, 5, restarts, dtype=EXACT, folded=folded, symmetrized=folded)
        torch.testing.assert_close(form(matrices), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("restarts", [None, (), (3,), (2, 4)])
def test_operations_are_those_that_torch_counts(forms: ModuleType, restarts: tuple[int, ...] | None) -> None:
    rows, cols = 8, 24
    form = forms.Form("quintic", 5, restarts, dtype=EXACT)
    with FlopCounterMode(display=False) as counter:
        form(random(1, rows, cols))
    times_a, constant = form.operations.split("a + ")
    assert counter.get_total_flops() == (int(times_a) * cols // rows + int(constant)) * rows**3


def test_multiples_of_the_polar_factor_measure_what_they_are(measures: ModuleType) -> None:
    reference = measures.Reference(random(7, 5).float())
    measured = reference.measure(lambda stack: 2 * orthogonalize(stack.double(), method="exact"))
    assert measured["error"] == pytest.approx((2**2 - 1) ** 2)
    for name in ("largest", "norm", "low_2", "high_2", "low_3", "high_3"):
        assert measured[name] == pytest.approx(2)
    assert measured["cosine"] == pytest.approx(1)


def test_the_search_finds_what_few_random_matrices_show(forms: ModuleType, measures: ModuleType) -> None:
    """Three steps on one X X^T: harmless on a Gaussian matrix in bfloat16, not at its worst."""
    form = forms.Form("quintic", 5, (3,))
    gaussian = measures.Reference(random(16, 40).float()).measure(form)
    assert gaussian["largest"] < 1.25
    assert measures.search(form, form, 16, 40, count=48, moves=40) > 2
    plain = forms.Form("quintic", 5)
    assert measures.search(plain, plain, 16, 40, count=48, moves=40) < 1.25
