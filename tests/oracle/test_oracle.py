"""The oracles against theorems that the specification implies, none of them computed by the oracles."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tests.oracle.directions import match_rms, polar_exact, quintic, spectral
from tests.oracle.exact import ExactOracle
from tests.oracle.published import PublishedOracle

BOTH = pytest.mark.parametrize("oracle_class", [ExactOracle, PublishedOracle])
SHAPES = [(4, 6), (7, 3), (5, 2, 3, 2), (4,), ()]
KINDS = ["muon", "muon", "muon", "adamw", "sgd"]
TIGHT = {"rtol": 1e-11, "atol": 1e-13}


def initial(seed=0, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def gradients(steps, seed=1, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return [[rng.standard_normal(shape) for shape in shapes] for _ in range(steps)]


def run(oracle, grads, lrs=None):
    """History of (x, y, z, betas, beta, c), the start first."""
    history = [(list(oracle.x), list(oracle.y), list(oracle.z), list(oracle.betas), oracle.beta, oracle.c)]
    for k, g in enumerate(grads):
        oracle.step(g, None if lrs is None else lrs[k])
        history.append(
            (list(oracle.x), list(oracle.y), list(oracle.z), list(oracle.betas), oracle.beta, oracle.c)
        )
    return history


def scalar(oracle_class, steps, lrs=None, **settings):
    """History of a single number moved by SGD with unit gradients."""
    oracle = oracle_class([np.ones(())], **{"direction": "sgd", "lr": 0.1, **settings})
    return run(oracle, [[np.ones(())]] * steps, lrs)


def assert_same_history(left, right):
    for (lx, ly, lz, lb, *_), (rx, ry, rz, rb, *_) in zip(left, right, strict=True):
        assert_allclose(lb, rb, **TIGHT)
        for a, b in zip(lx + ly + lz, rx + ry + rz, strict=True):
            assert_allclose(a, b, **TIGHT)


def test_the_oracles_never_load_torch():
    root = Path(__file__).resolve().parents[2]
    code = "import sys, tests.oracle.exact, tests.oracle.published; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


# Section 1: the three sequences


@BOTH
def test_start_copies_the_parameters_and_all_three_agree(oracle_class):
    params = initial()
    oracle = oracle_class(params, direction=KINDS, lr=0.1, warmup_steps=3)
    for p, x, y, z in zip(params, oracle.x, oracle.y, oracle.z, strict=True):
        assert x.dtype == y.dtype == z.dtype == np.float64
        assert_array_equal(x, p)
        assert_array_equal(y, p)
        assert_array_equal(z, p)
        assert not any(np.shares_memory(p, a) for a in (x, y, z))


@BOTH
def test_three_steps_worked_by_hand(oracle_class):
    # f = y^2 / 2 from 1, lr 1/2, beta 1/2: z = 1/2, 1/4, 3/32; x = 1/2, 3/8, 9/32; y = 1/2, 5/16, 3/16.
    oracle = oracle_class(
        [np.ones(1)], direction="sgd", lr=0.5, warmup_steps=0, beta1=0.5, rho=0.0, weight_lr_power=0.0
    )
    for z, x, y in [(1 / 2, 1 / 2, 1 / 2), (1 / 4, 3 / 8, 5 / 16), (3 / 32, 9 / 32, 3 / 16)]:
        oracle.step([oracle.y[0]])
        assert_allclose([oracle.z[0][0], oracle.x[0][0], oracle.y[0][0]], [z, x, y], rtol=1e-15)


@BOTH
def test_equal_weights_make_x_the_plain_mean_of_z(oracle_class):
    oracle = oracle_class(
        initial(), direction=KINDS, lr=0.1, warmup_steps=5, rho=0.0, r=0.0, weight_lr_power=0.0
    )
    history = run(oracle, gradients(20))
    for t in range(1, 21):
        for i in range(len(SHAPES)):
            assert_allclose(history[t][0][i], np.mean([h[2][i] for h in history[1 : t + 1]], axis=0), **TIGHT)


@pytest.mark.parametrize(("r", "power", "skip"), [(0.0, 2.0, 0), (1.5, 2.0, 0), (2.0, 0.0, 4), (0.0, 1.0, 6)])
@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_x_is_the_weighted_mean_of_z(r, power, skip, rho):
    factors = [1.0] * 10 + [0.3] * 5 + [2.0] * 5 + [0.0] * 2
    lrs = [0.1 * f for f in factors]
    oracle = ExactOracle(
        initial(),
        direction=KINDS,
        lr=9.0,
        warmup_steps=8,
        rho=rho,
        r=r,
        weight_lr_power=power,
        c_warmup_steps=skip,
    )
    history = run(oracle, gradients(22), lrs)
    used = [lr * min(1, t / 8) for t, lr in enumerate(lrs, start=1)]
    weights = [t**r * max(used[:t]) ** power for t in range(1, 23)]
    for t in range(1, 23):
        first = skip if t > skip else t - 1
        for i in range(len(SHAPES)):
            zs = [h[2][i] for h in history[first + 1 : t + 1]]
            mean = sum(w * z for w, z in zip(weights[first:t], zs, strict=True)) / sum(weights[first:t])
            assert_allclose(history[t][0][i], mean, **TIGHT)


def test_published_weights_follow_the_current_rate():
    lrs = [0.1] * 6 + [0.02] * 4 + [0.2] * 3
    history = scalar(PublishedOracle, 13, lrs, warmup_steps=4, rho=0.0)
    used = [lr * min(1, t / 4) for t, lr in enumerate(lrs, start=1)]
    for t in range(1, 14):
        weights = [rate**2 for rate in used[:t]]
        mean = sum(w * h[2][0] for w, h in zip(weights, history[1 : t + 1], strict=True)) / sum(weights)
        assert_allclose(history[t][0][0], mean, rtol=1e-12)


@BOTH
def test_y_lies_between_z_and_x_by_its_own_beta(oracle_class):
    oracle = oracle_class(initial(), direction=KINDS, lr=0.1, warmup_steps=4, weight_decay=0.1)
    for x, y, z, betas, beta, _ in run(oracle, gradients(25))[1:]:
        for i, b in enumerate(betas):
            assert b == beta
            assert_allclose((y[i] - (1 - b) * z[i]) / b, x[i], **TIGHT)


@pytest.mark.parametrize("clock", ["window", "steps"])
def test_exact_y_follows_the_fused_form(clock):
    oracle = ExactOracle(initial(), direction=KINDS, lr=0.1, warmup_steps=4, beta_clock=clock, r=1.0)
    history = run(oracle, gradients(25))
    for before, after in pairwise(history):
        for i in range(len(SHAPES)):
            y, z, b = before[1][i], before[2][i], before[3][i]
            new_y, new_z, new_b, c = after[1][i], after[2][i], after[3][i], after[5]
            fused = (1 - new_b * (1 - c)) * new_z + new_b * (1 - c) / b * (y - (1 - b) * z)
            assert_allclose(new_y, fused, **TIGHT)


@pytest.mark.parametrize("clock", ["window", "steps"])
def test_published_y_follows_the_fused_form_that_decodes_with_the_new_beta(clock):
    oracle = PublishedOracle(initial(), direction=KINDS, lr=0.1, warmup_steps=4, beta_clock=clock, r=1.0)
    history = run(oracle, gradients(25))
    for before, after in pairwise(history):
        for i in range(len(SHAPES)):
            new_y, new_z, new_b, c = after[1][i], after[2][i], after[3][i], after[5]
            decoded = (before[1][i] - (1 - new_b) * before[2][i]) / new_b
            assert_allclose(after[0][i], (1 - c) * decoded + c * new_z, **TIGHT)
            assert_allclose(new_y, (1 - new_b) * new_z + new_b * after[0][i], **TIGHT)


@BOTH
def test_warm_up_and_the_rate_of_a_step(oracle_class):
    history = scalar(oracle_class, 6, [1.0, 1.0, 1.0, 1.0, 0.5, 0.25], warmup_steps=4, rho=0.0)
    moves = -np.diff([h[2][0] for h in history])
    assert_allclose(moves, [0.25, 0.5, 0.75, 1.0, 0.5, 0.25], rtol=1e-14)


@BOTH
def test_a_given_rate_holds_for_one_step(oracle_class):
    oracle = oracle_class([np.zeros(1)], direction="sgd", lr=0.5, warmup_steps=0, rho=0.0)
    for lr, z in [(None, -0.5), (2.0, -2.5), (None, -3.0)]:
        oracle.step([np.ones(1)], lr)
        assert_allclose(oracle.z[0], z)


@BOTH
def test_decay_at_z_shrinks_z_by_one_minus_lr_decay(oracle_class):
    oracle = oracle_class([np.ones(3)], direction="adamw", lr=0.1, warmup_steps=3, weight_decay=0.2)
    history = run(oracle, [[np.zeros(3)]] * 10)
    factors = [1 - 0.1 * min(1, t / 3) * 0.2 for t in range(1, 11)]
    assert_allclose(history[-1][2][0], np.prod(factors), **TIGHT)


@BOTH
def test_decay_at_y_is_the_gradient_of_half_the_square(oracle_class):
    common = {"direction": "sgd", "lr": 0.1, "warmup_steps": 3}
    decayed = oracle_class([np.ones(3)], weight_decay=0.2, weight_decay_at="y", **common)
    pulled = oracle_class([np.ones(3)], **common)
    for g in gradients(12, shapes=[(3,)]):
        decayed.step(g)
        pulled.step([g[0] + 0.2 * pulled.y[0]])
        assert_allclose(decayed.y[0], pulled.y[0], **TIGHT)
        assert_allclose(decayed.x[0], pulled.x[0], **TIGHT)


@BOTH
def test_while_the_rate_is_zero_x_follows_z_and_beta_waits(oracle_class):
    lrs = [0.0] * 6 + [0.1] * 10
    history = scalar(oracle_class, 16, lrs, warmup_steps=3, t0_steps=4)
    assert [h[5] for h in history[1:8]] == [1.0] * 7
    betas = [h[4] for h in history[1:]]
    assert_allclose(betas[:10], 0.6, rtol=1e-15)  # T0 = 4 counts from the seventh step: a window of 3
    assert_allclose(betas[10:], [1 - 0.4 * (3 / n) ** 0.8 for n in range(4, 10)], **TIGHT)


# Section 2: the interpolation coefficient


@BOTH
@pytest.mark.parametrize("clock", ["window", "steps"])
@pytest.mark.parametrize(("r", "power"), [(0.0, 0.0), (0.0, 2.0), (2.0, 2.0)])
@pytest.mark.parametrize(("t0", "skip"), [(None, 0), (2, 0), (25, 0), (25, 23)])
def test_beta_holds_until_t0_then_rises_below_one(oracle_class, clock, r, power, t0, skip):
    history = scalar(
        oracle_class,
        80,
        warmup_steps=10,
        t0_steps=t0,
        beta_clock=clock,
        r=r,
        weight_lr_power=power,
        c_warmup_steps=skip,
    )
    betas = np.array([h[4] for h in history[1:]])
    hold = 10 if t0 is None else t0
    assert_allclose(betas[:hold], 0.6, rtol=1e-15)
    assert (np.diff(betas[hold - 1 :]) > 0).all()
    assert betas[-1] < 1


@BOTH
def test_the_clocks_agree_when_all_weights_are_equal(oracle_class):
    runs = [
        scalar(oracle_class, 60, warmup_steps=7, t0_steps=11, weight_lr_power=0.0, beta_clock=clock)
        for clock in ("window", "steps")
    ]
    assert_same_history(*runs)


@BOTH
def test_window_after_a_linear_warm_up(oracle_class):
    # sum_{i<T} i^2 / T^2 = (T - 1)(2T - 1) / (6T), and one more with every later step
    history = scalar(oracle_class, 40, warmup_steps=15)
    at_t0 = 14 * 29 / 90
    for k in range(26):
        c = history[15 + k][5]
        assert_allclose((1 - c) / c, at_t0 + k, rtol=1e-12)
        assert_allclose(history[15 + k][4], 1 - 0.4 * (at_t0 / (at_t0 + k)) ** 0.8, rtol=1e-12)


@BOTH
@pytest.mark.parametrize(("clock", "end"), [("window", 0.905), ("steps", 0.818)])
def test_beta_at_the_end_of_the_published_124m_run(oracle_class, clock, end):
    oracle = oracle_class([np.zeros(())], direction="sgd", lr=0.01, warmup_steps=6000, beta_clock=clock)
    for _ in range(16000):
        oracle.step([None])
    assert round(oracle.beta, 3) == end


@BOTH
@pytest.mark.parametrize("factor", [5.0, 50.0])
@pytest.mark.parametrize("raised_after", [11, 30])
def test_a_raised_rate_returns_beta_to_beta1_and_no_further(oracle_class, factor, raised_after):
    lrs = [0.1] * raised_after + [0.1 * factor] * 10
    betas = np.array([h[4] for h in scalar(oracle_class, len(lrs), lrs, warmup_steps=10)[1:]])
    assert betas.min() >= 0.6 - 1e-15
    assert betas.max() < 1
    assert_allclose(betas[raised_after], 0.6, rtol=1e-15)


def test_without_beta_gradients_are_taken_at_z():
    oracle = ExactOracle(
        initial(), direction=KINDS, lr=0.1, warmup_steps=3, beta1=0.0, rho=0.0, weight_decay=0.1
    )
    mean = [np.zeros(shape) for shape in SHAPES]
    weights = [(0.1 * min(1, t / 3)) ** 2 for t in range(1, 16)]
    for weight, grads in zip(weights, gradients(15), strict=True):
        oracle.step(grads)
        mean = [m + weight * z for m, z in zip(mean, oracle.z, strict=True)]
        for y, z in zip(oracle.y, oracle.z, strict=True):
            assert_array_equal(y, z)
    for x, m in zip(oracle.x, mean, strict=True):
        assert_allclose(x, m / sum(weights), **TIGHT)


@BOTH
def test_rho_zero_keeps_beta1_whatever_the_lengths(oracle_class):
    for warmup, t0 in [(0, None), (0, 0), (1, None), (5, 1), (5, 3)]:
        history = scalar(oracle_class, 8, warmup_steps=warmup, t0_steps=t0, rho=0.0, beta1=0.37)
        assert [h[4] for h in history] == [0.37] * 9


@BOTH
def test_c_warmup_keeps_x_at_z_and_starts_the_sum_afterwards(oracle_class):
    history = scalar(
        oracle_class, 20, warmup_steps=3, t0_steps=9, c_warmup_steps=5, rho=0.0, weight_lr_power=0.0
    )
    for t in range(1, 7):
        assert history[t][5] == 1
        assert_array_equal(history[t][0][0], history[t][2][0])
    assert_allclose([h[5] for h in history[6:]], [1 / k for k in range(1, 16)], **TIGHT)


@BOTH
@pytest.mark.parametrize(
    "settings",
    [
        {"warmup_steps": 0},
        {"warmup_steps": 1},
        {"warmup_steps": 9, "t0_steps": 1},
        {"warmup_steps": 9, "c_warmup_steps": 8},
        {"warmup_steps": 9, "t0_steps": 6, "c_warmup_steps": 5},
        {"warmup_steps": 9, "beta1": 0.0},
        {"warmup_steps": 9, "beta_clock": "seconds"},
        {"warmup_steps": 9, "weight_decay_at": "x"},
    ],
)
def test_rejected_settings(oracle_class, settings):
    with pytest.raises(ValueError, match=r"must be|unknown|is z or y|is window or steps"):
        oracle_class([np.ones(1)], direction="sgd", lr=0.1, **settings)


# Section 2: as published against exact


@pytest.mark.parametrize("clock", ["window", "steps"])
def test_published_is_exact_when_rho_is_zero_and_the_rate_never_falls(clock):
    settings = {"direction": KINDS, "lr": 0.1, "warmup_steps": 6, "rho": 0.0, "beta_clock": clock, "r": 0.5}
    grads = gradients(30)
    grads[9][1] = grads[20][3] = None
    histories = [
        run(c(initial(), weight_decay=0.1, **settings), grads) for c in (ExactOracle, PublishedOracle)
    ]
    assert_same_history(*histories)


def test_published_is_exact_until_t0_and_only_until_then():
    settings = {"direction": KINDS, "lr": 0.1, "warmup_steps": 6, "t0_steps": 9}
    exact, published = (run(c(initial(), **settings), gradients(10)) for c in (ExactOracle, PublishedOracle))
    assert_same_history(exact[:10], published[:10])
    assert_array_equal(exact[10][3], published[10][3])
    for i in range(len(SHAPES)):
        assert_allclose(exact[10][2][i], published[10][2][i], **TIGHT)
        assert np.abs(exact[10][0][i] - published[10][0][i]).max() > 1e-4


@pytest.mark.parametrize(("beta1", "rho", "extra"), [(0.6, 0.8, 0.53), (0.4, 0.8, 1.20)])
def test_published_adds_recency_weight_that_fades(beta1, rho, extra):
    # where z stands still, x closes the share c of its distance to z exactly, (1 + extra) c as published
    t0 = 2000
    settings = {"direction": "sgd", "lr": 1.0, "warmup_steps": t0, "beta1": beta1, "rho": rho}
    oracle = PublishedOracle([np.zeros(())], weight_lr_power=0.0, **settings)
    ratio = {}
    for t in range(1, 10 * t0 + 1):
        before, z = oracle.x[0], oracle.z[0]
        oracle.step([np.full((), float(t == 1 + t0 // 2))])
        if t > t0:
            ratio[t] = (oracle.x[0] - before) / (z - before) / oracle.c - 1
    assert_allclose(ratio[t0 + 1], extra, rtol=0.02)
    assert 0.02 < ratio[10 * t0] < 0.09


# Skipped parameters


@BOTH
def test_a_skipped_parameter_rests_and_the_group_goes_on(oracle_class):
    settings = {"lr": 0.1, "warmup_steps": 5, "weight_decay": 0.1, "auxiliary_momentum": 0.9}
    grads = gradients(20)
    full = run(oracle_class(initial(), direction=KINDS, **settings), grads)
    rests = {7, 8, 15}
    holed = [
        [None if i in (0, 3) and t in rests else g for i, g in enumerate(row)] for t, row in enumerate(grads)
    ]
    oracle = oracle_class(initial(), direction=KINDS, **settings)
    holes = run(oracle, holed)
    for t, (before, after) in enumerate(pairwise(holes)):
        assert (after[4], after[5]) == (full[t + 1][4], full[t + 1][5])
        for i in range(len(SHAPES)):
            if i in (0, 3) and t in rests:
                for k in (0, 1, 2):
                    assert_array_equal(after[k][i], before[k][i])
                assert after[3][i] == before[3][i]
                assert after[3][i] < after[4]
            elif i not in (0, 3):
                for k in (0, 1, 2):
                    assert_array_equal(after[k][i], full[t + 1][k][i])
    assert oracle.t == 20
    assert [state["step"] for state in oracle.state] == [17, 20, 20, 17, 20]


@BOTH
def test_after_a_rest_x_moves_by_the_groups_c_from_where_it_was(oracle_class):
    oracle = oracle_class([np.ones(())], direction="sgd", lr=0.1, warmup_steps=4)
    for t in range(1, 20):
        x, y, z, b = oracle.x[0], oracle.y[0], oracle.z[0], oracle.betas[0]
        oracle.step([None if 8 <= t <= 12 else np.ones(())])
        if t == 13:
            decoding = b if oracle_class is ExactOracle else oracle.beta
            start = (y - (1 - decoding) * z) / decoding
            assert math.isclose(start, x) == (oracle_class is ExactOracle)
            assert_allclose(oracle.x[0], (1 - oracle.c) * start + oracle.c * oracle.z[0], **TIGHT)


# Sections 3 and 4: directions


def matrix(rows, cols, seed=3):
    return np.random.default_rng(seed).standard_normal((rows, cols))


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6), (1, 4), (4, 1), (1, 1)])
@pytest.mark.parametrize("factor", [quintic, polar_exact])
def test_orthogonalization_is_an_odd_scale_free_map_of_singular_values(shape, factor):
    u = matrix(*shape)
    left, s, right = np.linalg.svd(u, full_matrices=False)
    if factor is quintic:
        expected = s / np.sqrt((s**2).sum())
        for _ in range(5):
            expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    else:
        expected = np.ones_like(s)
    assert_allclose(factor(u), left @ np.diag(expected) @ right, rtol=1e-9, atol=1e-10)
    assert_allclose(factor(-u), -factor(u), atol=1e-12)
    assert_allclose(factor(u.T), factor(u).T, atol=1e-10)
    for size in (1e-300, 1e-30, 1e30, 1e300):
        assert_allclose(factor(u * size), factor(u), atol=1e-9)
    assert_array_equal(factor(np.zeros(shape)), np.zeros(shape))


def test_quintic_brings_singular_values_into_the_stated_range():
    for s in np.geomspace(1e-2, math.sqrt(0.5), 2000):
        ends = np.diag(quintic(np.diag([s, math.sqrt(1 - s * s)])))
        assert round(ends.min(), 2) >= 0.68
        assert round(ends.max(), 2) <= 1.13


def test_polar_exact_leaves_missing_directions_at_zero():
    u = np.outer([3.0, 4.0], [1.0, 2.0, 2.0])
    assert_allclose(polar_exact(u), u / 15, atol=1e-15)


@BOTH
@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 2, 3), (2, 4, 3, 2)])
@pytest.mark.parametrize(("scale", "scale_of"), [("match_rms", match_rms), ("spectral", spectral)])
def test_muon_moves_z_by_the_scaled_polar_factor_of_one_matrix(oracle_class, shape, scale, scale_of):
    g = np.random.default_rng(4).standard_normal(shape)
    rows, cols = shape[0], math.prod(shape[1:])
    oracle = oracle_class(
        [np.zeros(shape)],
        direction="muon",
        lr=1.0,
        warmup_steps=0,
        rho=0.0,
        scale=scale,
        orthogonalize="polar_exact",
    )
    oracle.step([g])
    d = -oracle.z[0].reshape(rows, cols)
    left, _, right = np.linalg.svd(g.reshape(rows, cols), full_matrices=False)
    assert_allclose(d, scale_of(rows, cols) * left @ right, atol=1e-12)
    if scale == "match_rms":
        assert_allclose(np.sqrt(np.mean(d**2)), 0.2, rtol=1e-12)
    else:
        assert_allclose(np.linalg.norm(d, 2), math.sqrt(max(1, rows / cols)), rtol=1e-12)


@pytest.mark.parametrize("nesterov", [True, False])
def test_average_and_heavy_ball_momentum_give_the_same_direction(nesterov):
    mu, seen = 0.9, []
    oracle = ExactOracle(
        [np.zeros((3, 5))],
        direction="muon",
        lr=1.0,
        warmup_steps=0,
        rho=0.0,
        momentum=mu,
        nesterov=nesterov,
        orthogonalize=lambda u: seen.append(u) or quintic(u),
    )
    ball = np.zeros((3, 5))
    for (g,) in gradients(6, shapes=[(3, 5)]):
        oracle.step([g])
        ball = mu * ball + g
        heavy = g + mu * ball if nesterov else ball
        assert_allclose(quintic(seen[-1]), quintic(heavy), atol=1e-9)
        assert_allclose(seen[-1], (1 - mu) * heavy, **TIGHT)


@BOTH
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_adamw_turns_a_constant_gradient_into_its_sign(oracle_class, momentum):
    g = np.array([1e-4, -3.0, 0.0])
    oracle = oracle_class(
        [np.zeros(3)], direction="adamw", lr=1.0, warmup_steps=0, rho=0.0, auxiliary_momentum=momentum
    )
    for t in range(1, 8):
        oracle.step([None if t == 3 else g])  # its own count of steps: the bias correction stays right
        done = t - (t >= 3)
        assert_allclose(oracle.z[0], -done * np.sign(g), rtol=1e-5)


def test_adamw_against_explicit_sums():
    b1, b2, grads = 0.8, 0.95, [g for (g,) in gradients(9, shapes=[(4,)])]
    settings = {"lr": 1.0, "warmup_steps": 0, "rho": 0.0, "beta2": b2, "eps": 1e-3}
    oracle = ExactOracle([np.zeros(4)], direction="adamw", auxiliary_momentum=b1, **settings)
    for s in range(1, 10):
        before = oracle.z[0]
        oracle.step([grads[s - 1]])
        ages = np.arange(s)[::-1, None]
        e, v = (
            np.average(np.array(grads[:s]) ** k, axis=0, weights=(b**ages)[:, 0])
            for k, b in ((1, b1), (2, b2))
        )
        assert_allclose(before - oracle.z[0], e / (np.sqrt(v) + 1e-3), rtol=1e-10)


@BOTH
def test_muon_needs_a_matrix_and_gradients_are_not_written(oracle_class):
    with pytest.raises(ValueError, match="matrix"):
        oracle_class([np.ones(3)], direction="muon", lr=1.0, warmup_steps=2).step([np.ones(3)])
    oracle = oracle_class(initial(), direction=KINDS, lr=0.1, warmup_steps=4)
    for row in gradients(3):
        kept = [np.array(g) for g in row]
        oracle.step(row)
        for g, k in zip(row, kept, strict=True):
            assert_array_equal(g, k)
