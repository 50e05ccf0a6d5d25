"""The iteration against the singular value decomposition, its symmetries, and torch's own."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim._muon import _zeropower_via_newtonschulz

from amuse_optim import orthogonalize
from amuse_optim.orthogonalize import (
    POLAR_EXPRESS,
    QUINTIC,
    Method,
    _cpu_multiplies_bfloat16,
    _entries_near_one,
    coefficients,
    orthogonality_errors,
    working_dtype,
)

METHODS: list[Method] = ["quintic", "polar_express", "exact"]


def with_spectrum(rows: int, cols: int, values: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, rows, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(cols, cols, generator=generator, dtype=torch.float64)).Q
    count = min(rows, cols)
    return (left[:, :count] * values) @ right[:, :count].T


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3), (1, 6), (6, 1), (2, 4, 3), (2, 3, 4, 5)])
@pytest.mark.parametrize("method", ["quintic", "polar_express"])
def test_applies_its_polynomial_to_the_singular_values(shape: tuple[int, ...], method: Method) -> None:
    """U p(S / ||S||) V^T, with the SVD and the polynomial evaluated in NumPy."""
    matrices = random(*shape).numpy()
    u, s, vh = np.linalg.svd(matrices, full_matrices=False)
    s = s / np.sqrt((s**2).sum(-1, keepdims=True))
    for a, b, c in coefficients(method, 5):
        s = a * s + b * s**3 + c * s**5
    expected = np.einsum("...ij,...j,...jk->...ik", u, s, vh)
    result = orthogonalize(torch.tensor(matrices), method=method).numpy()
    np.testing.assert_allclose(result, expected, atol=1e-12)


def test_exact_is_the_polar_factor() -> None:
    u, _, vh = np.linalg.svd(random(4, 7).numpy(), full_matrices=False)
    np.testing.assert_allclose(orthogonalize(random(4, 7), method="exact").numpy(), u @ vh, atol=1e-13)


def test_exact_keeps_the_null_space() -> None:
    """A matrix of rank 2 has a polar factor with two singular values 1 and the others 0."""
    low_rank = random(6, 2) @ random(2, 5, seed=1)
    values = torch.linalg.svdvals(orthogonalize(low_rank, method="exact"))
    torch.testing.assert_close(values, torch.tensor([1.0, 1, 0, 0, 0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("method", "steps", "low", "high"),
    [("quintic", 5, 0.681, 1.135), ("polar_express", 5, 0.87, 1.124), ("polar_express", 8, 0.9999, 1.0001)],
)
def test_interval_of_singular_values(method: Method, steps: int, low: float, high: float) -> None:
    """Shares of the norm from 1e-2 up end in the documented interval."""
    values = torch.logspace(-2, 0, 24, dtype=torch.float64)
    values = values / values.norm()
    values = values[values >= 1e-2]
    rest = (1 - (values**2).sum()).clamp(min=0).sqrt()
    matrix = with_spectrum(len(values) + 1, 40, torch.cat([values, rest.reshape(1)]))
    out = torch.linalg.svdvals(orthogonalize(matrix, method=method, steps=steps))[: len(values)]
    assert low <= float(out.min()) <= float(out.max()) <= high


def test_torch_iterates_the_same_quintic() -> None:
    """torch.optim.Muon's iteration runs in bfloat16; so can ours, and only rounding differs."""
    matrix = random(24, 60).float()
    theirs = _zeropower_via_newtonschulz(matrix, QUINTIC, 5, 1e-7).float()
    ours = orthogonalize(matrix, dtype=torch.bfloat16)
    assert float((ours - theirs).norm() / theirs.norm()) < 0.05
    exact = orthogonalize(matrix, dtype=torch.float64)
    assert float((exact - theirs).norm() / theirs.norm()) < 0.02


def best_odd_quintic(low: float, high: float) -> tuple[np.ndarray, float]:
    """Remez exchange: the (a, b, c) with the smallest max |1 - p| on [low, high], and that maximum."""
    points = low + (high - low) * np.array([0, 0.25, 0.75, 1])
    for _ in range(100):
        signs = np.array([1, -1, 1, -1])
        a, b, c, error = np.linalg.solve(np.stack([points, points**3, points**5, signs], 1), np.ones(4))
        turning = np.sort(np.sqrt(np.roots([5 * c, 3 * b, a]).real))
        points = np.array([low, *turning, high])
    return np.array([a, b, c]), abs(error)


def test_polar_express_table_follows_from_its_definition() -> None:
    """arXiv 2505.16932, algorithm 1: greedy minimax quintics from [1e-3, 1], with the paper's cushion."""
    low, high = 1e-3, 1.0
    for triple in POLAR_EXPRESS[:7]:
        cushioned = max(low, 0.02407327424182761 * high)
        best, error = best_odd_quintic(cushioned, high)
        if cushioned > low:  # centre on 1 over the whole interval
            best *= 2 / (best @ [low, low**3, low**5] + 1 + error)
        np.testing.assert_allclose(triple, best, rtol=1e-9)
        low = float(best @ [low, low**3, low**5])
        high = 2 - low
    assert POLAR_EXPRESS[7] == (15 / 8, -10 / 8, 3 / 8)  # the limit: p(1) = 1, p'(1) = p''(1) = 0


@pytest.mark.parametrize("method", METHODS)
def test_commutes_with_transposition(method: Method) -> None:
    matrix = random(7, 4)
    torch.testing.assert_close(
        orthogonalize(matrix.T, method=method), orthogonalize(matrix, method=method).T, atol=1e-12, rtol=0
    )


@given(exponent=st.integers(-30, 30), dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
@pytest.mark.requirement("A11")
def test_does_not_depend_on_the_scale(exponent: int, dtype: torch.dtype) -> None:
    matrix = random(6, 9).to(dtype).double()
    scaled = (matrix * 10.0**exponent).to(dtype)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
    for method in METHODS:
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        result = orthogonalize(scaled, method=method, dtype=compute)
        expected = orthogonalize(matrix.to(dtype), method=method, dtype=compute)
        assert float((result - expected).double().abs().max()) < tolerance


@given(seed=st.integers(0, 1000), method=st.sampled_from(METHODS), tall=st.booleans())
def test_commutes_with_orthogonal_changes_of_basis(seed: int, method: Method, tall: bool) -> None:
    shape = (7, 4) if tall else (4, 7)
    matrix = random(*shape, seed=seed)
    left = torch.linalg.qr(random(shape[0], shape[0], seed=seed + 1)).Q
    right = torch.linalg.qr(random(shape[1], shape[1], seed=seed + 2)).Q
    torch.testing.assert_close(
        orthogonalize(left @ matrix @ right, method=method),
        left @ orthogonalize(matrix, method=method) @ right,
        atol=1e-7,  # small singular values are magnified 485-fold and more
        rtol=0,
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.requirement("A11")
def test_zero_maps_to_zero_also_inside_a_stack(method: Method, dtype: torch.dtype) -> None:
    stack = torch.stack([torch.zeros(3, 4), torch.ones(3, 4)]).to(dtype)
    result = orthogonalize(stack, method=method)
    assert result.dtype == dtype
    assert bool((result[0] == 0).all())
    assert bool(result[1].isfinite().all())
    assert float(result[1].abs().max()) > 0


@pytest.mark.parametrize(("method", "steps"), [("quintic", 5), ("quintic", 6), ("polar_express", 5)])
@pytest.mark.parametrize("shape", [(16, 40), (128, 64)])
def test_no_spectrum_overshoots_in_bfloat16(method: Method, steps: int, shape: tuple[int, int]) -> None:
    """Two-level spectra, k singular values 1 and all others t, are what broke every unsafe Gram form."""
    short = min(shape)
    stack = []
    for seed, (k, t) in enumerate((k, t) for k in (1, 2, 4, 8) for t in np.logspace(-3, -0.3, 20)):
        values = torch.full((short,), float(t), dtype=torch.float64)
        values[:k] = 1.0
        stack.append(with_spectrum(*shape, values, seed))
    result = orthogonalize(torch.stack(stack).float(), method=method, steps=steps, dtype=torch.bfloat16)
    assert float(torch.linalg.svdvals(result.double()).max()) <= 1.25


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
def test_the_gram_form_is_as_orthogonal_as_plain_steps_in_bfloat16(condition: float) -> None:
    values = torch.logspace(0, -np.log10(condition), 128, dtype=torch.float64)
    stack = torch.stack([with_spectrum(128, 384, values, seed) for seed in range(4)]).float()
    plain = torch.stack([_zeropower_via_newtonschulz(matrix, QUINTIC, 5, 1e-7) for matrix in stack])
    ours = orthogonalize(stack, dtype=torch.bfloat16)
    found, expected = orthogonality_errors(ours), orthogonality_errors(plain)
    assert float((found / expected).max()) < 1.02


def test_input_is_not_changed_and_empty_input_is_empty() -> None:
    matrix = random(4, 3)
    copy = matrix.clone()
    orthogonalize(matrix)
    assert torch.equal(matrix, copy)
    assert orthogonalize(torch.zeros(0, 3)).shape == (0, 3)


def test_stacks_equal_matrices_one_by_one() -> None:
    stack = random(5, 3, 4)
    singles = torch.stack([orthogonalize(matrix) for matrix in stack])
    torch.testing.assert_close(orthogonalize(stack), singles, atol=1e-13, rtol=0)


@pytest.mark.requirement("A10")
def test_working_dtype() -> None:
    assert working_dtype(torch.zeros(300, 300, dtype=torch.float64)) == torch.float64
    assert working_dtype(torch.zeros(16, 300)) == torch.float32  # bfloat16 does not pay for small ones
    assert working_dtype(torch.zeros(16, 300, dtype=torch.float16)) == torch.float32
    assert working_dtype(torch.zeros(300, 300)) in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("torch_tells_all_at_once", [True, False])
def test_fast_bfloat16_is_what_the_system_says(
    monkeypatch: pytest.MonkeyPatch, torch_tells_all_at_once: bool
) -> None:
    """Releases of torch before `get_capabilities` answer for one instruction set at a time."""
    if not torch_tells_all_at_once:
        names = "_is_avx512_bf16_supported", "_is_amx_tile_supported"
        monkeypatch.setattr(
            torch, "cpu", SimpleNamespace(**{name: getattr(torch.cpu, name) for name in names})
        )
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert _cpu_multiplies_bfloat16() == bool(flags & {"avx512_bf16", "amx_bf16"})


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two dimensions"):
        orthogonalize(torch.zeros(3))
    with pytest.raises(TypeError, match="real floating point"):
        orthogonalize(torch.zeros(3, 3, dtype=torch.complex64))
    with pytest.raises(ValueError, match="steps must be"):
        orthogonalize(torch.zeros(3, 3), steps=0)
    with pytest.raises(ValueError, match="float16"):
        orthogonalize(torch.zeros(3, 3), dtype=torch.float16)
    for shape in ((3, 3), (0, 3)):
        with pytest.raises(ValueError, match=r"method must be one of .*'exact', or a"):
            orthogonalize(torch.zeros(shape), method="cubic")
    with pytest.raises(ValueError, match=r"dtype must be a floating-point type, got torch.int32"):
        orthogonalize(torch.zeros(3, 3), dtype=torch.int32)
    with pytest.raises(ValueError, match="must keep the shape"):
        orthogonalize(torch.zeros(3, 3), method=lambda stack: stack[:, :1])


@pytest.mark.parametrize("scale", [1e-200, 1e200])
@pytest.mark.parametrize("method", ["quintic", "polar_express", "exact"])
def test_matrices_beyond_the_range_of_single_precision(method: str, scale: float) -> None:
    matrix = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    near, far = (orthogonalize(m, method=method, dtype=torch.float64) for m in (matrix, matrix * scale))
    torch.testing.assert_close(far, near, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_entries_come_near_one_from_everywhere(dtype: torch.dtype) -> None:
    """Whole stacks, by powers of two: squares of what comes out are far within the range of float32."""
    largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    subnormal = smallest * torch.finfo(dtype).eps
    scales = torch.tensor([subnormal, smallest, 1e-20, 1.0, 3.0, 1e20, largest, 0.0], dtype=dtype)
    stack = torch.tensor([[1.0, -0.5, 0.0]], dtype=dtype).mul(scales[:, None, None])
    near = _entries_near_one(stack)
    assert bool((near[:-1, 0, 0] > 2.0**-60).all() and (near <= 4.0).all())
    assert not bool(near[-1].any())
    mantissa, _ = torch.frexp(stack.double())
    expected, _ = torch.frexp(near.double())
    assert torch.equal(mantissa, expected)
