"""Base update directions in float64 NumPy, written from sections 3 and 4 of the specification."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Array = np.ndarray
State = dict[str, Array | int]  # one parameter's memory; empty before its first gradient
Orthogonalize = Callable[[Array], Array]
Direction = Callable[[State, Array], Array]

QUINTIC = (3.4445, -4.7750, 2.0315)


def quintic(u: Array, steps: int = 5) -> Array:
    """Section 4: `X <- a X + (b A + c A^2) X`, `A = X X^T`, from `X = u / ||u||_F`, on the short side."""
    largest = np.abs(u).max(initial=0.0)
    if largest == 0.0:
        return np.zeros_like(u)
    x = u / largest  # so that no square under- or overflows
    x = x / np.sqrt(np.sum(x * x))
    if u.shape[0] > u.shape[1]:
        x = x.T
    a, b, c = QUINTIC
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if u.shape[0] > u.shape[1] else x


def polar_exact(u: Array) -> Array:
    """Section 4: the polar factor `U V^T` of `u = U S V^T`; directions with no singular value stay zero."""
    largest = np.abs(u).max(initial=0.0)
    if largest == 0.0:
        return np.zeros_like(u)
    left, s, right = np.linalg.svd(u / largest, full_matrices=False)
    present = s > max(u.shape) * np.finfo(np.float64).eps * s[0]
    return left[:, present] @ right[present]


def match_rms(rows: int, cols: int) -> float:
    """Section 3: entries of `d` get an RMS near 0.2, as AdamW's."""
    return 0.2 * math.sqrt(max(rows, cols))


def spectral(rows: int, cols: int) -> float:
    """Section 3: the scale that goes with SGD for the rest."""
    return math.sqrt(max(1.0, rows / cols))


def muon(
    state: State,
    g: Array,
    *,
    momentum: float,
    nesterov: bool,
    scale: Callable[[int, int], float],
    orthogonalize: Orthogonalize,
) -> Array:
    """Section 3: `m <- mu m + (1-mu) g`; `d = scale * orthogonalize(u)`; kernels are `(out, in*prod(k))`."""
    if g.ndim < 2:
        raise ValueError("the Muon direction needs a matrix")
    mu = momentum
    m = mu * state.get("momentum_buffer", np.zeros_like(g)) + (1 - mu) * g
    u = (1 - mu) * g + mu * m if nesterov else m
    state["momentum_buffer"] = m
    state["step"] = state.get("step", 0) + 1
    matrix = u.reshape(u.shape[0], math.prod(u.shape[1:]))
    return (scale(*matrix.shape) * orthogonalize(matrix)).reshape(g.shape)


def normuon(
    state: State,
    g: Array,
    *,
    momentum: float,
    nesterov: bool,
    scale: str,
    orthogonalize: Orthogonalize,
    eps: float,
    row_beta2: float = 0.95,
) -> Array:
    """NorMuon: `v <- b v + (1-b) mean_columns(O^2)`; `O / (sqrt(v) + eps)`, as large as Muon's d."""
    polar = muon(
        state, g, momentum=momentum, nesterov=nesterov, scale=lambda *_: 1.0, orthogonalize=orthogonalize
    ).reshape(g.shape[0], math.prod(g.shape[1:]))
    rows, cols = polar.shape
    v = state.get("row_exp_avg_sq", np.zeros(rows))
    v = np.array([row_beta2 * v[i] + (1 - row_beta2) * np.mean(polar[i] ** 2) for i in range(rows)])
    state["row_exp_avg_sq"] = v
    normalized = polar / (np.sqrt(v) + eps)[:, None]
    size = np.sqrt(np.sum(normalized**2))
    if size == 0.0:
        return np.zeros_like(g)
    wanted = 0.2 * math.sqrt(rows * cols)
    if scale == "spectral":
        wanted = spectral(rows, cols) * np.sqrt(np.sum(polar**2))
    return (normalized * (wanted / size)).reshape(g.shape)


def adamw(state: State, g: Array, *, beta2: float, eps: float, auxiliary_momentum: float) -> Array:
    """Section 3: `d = g / (sqrt(v / (1 - b2^s)) + eps)`, or `e / (1 - b^s)` for `g` where `b > 0`."""
    s = state.get("step", 0) + 1
    v = beta2 * state.get("exp_avg_sq", np.zeros_like(g)) + (1 - beta2) * g**2
    state["step"], state["exp_avg_sq"] = s, v
    top = g
    if auxiliary_momentum > 0:
        b = auxiliary_momentum
        e = b * state.get("exp_avg", np.zeros_like(g)) + (1 - b) * g
        state["exp_avg"] = e
        top = e / (1 - b**s)
    return top / (np.sqrt(v / (1 - beta2**s)) + eps)


def sgd(state: State, g: Array) -> Array:
    """Section 3: `d = g`."""
    state["step"] = state.get("step", 0) + 1
    return g


def make_direction(
    name: str,
    *,
    momentum: float,
    beta2: float,
    eps: float,
    nesterov: bool,
    auxiliary_momentum: float,
    scale: str,
    orthogonalize: str | Orthogonalize,
    orthogonalize_steps: int,
) -> Direction:
    """Section 3: one parameter's `(state, gradient) -> d`, with the hyper-parameters filled in."""
    methods = {
        "quintic": lambda u: quintic(u, orthogonalize_steps),
        "polar_exact": polar_exact,
        "exact": polar_exact,
    }
    factor = orthogonalize if callable(orthogonalize) else methods[orthogonalize]
    scales = {"match_rms": match_rms, "spectral": spectral}
    directions: dict[str, Direction] = {
        "muon": lambda state, g: muon(
            state, g, momentum=momentum, nesterov=nesterov, scale=scales[scale], orthogonalize=factor
        ),
        "normuon": lambda state, g: normuon(
            state, g, momentum=momentum, nesterov=nesterov, scale=scale, orthogonalize=factor, eps=eps
        ),
        "adamw": lambda state, g: adamw(
            state, g, beta2=beta2, eps=eps, auxiliary_momentum=auxiliary_momentum
        ),
        "sgd": sgd,
    }
    return directions[name]
