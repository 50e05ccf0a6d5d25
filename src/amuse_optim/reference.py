"""Reference implementation: stores x, y and z, loops over parameters, and has one equation a line.

Read it from top to bottom. It shares only `orthogonalize` and the options with the rest of the package.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .options import OptimizerModeError, complete_defaults, complete_group, names_hidden
from .orthogonalize import orthogonalize


class AMUSEReference(torch.optim.Optimizer):
    """Reference implementation of AMUSE, to read and to compare `AMUSE` with; slow.

    Keeps x, y and z of every parameter in at least float32, and updates one parameter and one matrix at a
    time.

    Args:
        params: As for `AMUSE`.
        lr: Learning rate; `group["lr"]` is read at every step.
        options: The other options of `AMUSE`, of which `warmup_steps` is required; none of those that divide
            the work over ranks. `foreach` and `state_precision` have no effect.

    Raises:
        ValueError: As `AMUSE`, and for `capturable=True` or a direction other than "muon", "adamw" and "sgd".
        TypeError: As `AMUSE`.

    Example:
        >>> import torch
        >>> from amuse_optim import AMUSEReference
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = AMUSEReference([weight], lr=0.1, direction="sgd", warmup_steps=2)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> bool((weight < 1).all())
        True
    """

    def __init__(self, params: Any, lr: float = 0.01, **options: Any) -> None:
        super().__init__(params, complete_defaults({"lr": lr, **options}))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as `AMUSE.add_param_group` does.

        Raises:
            ValueError: As there, and for `capturable=True` or a direction that is not implemented here.
        """
        if {**self.defaults, **param_group}["capturable"]:
            raise ValueError("capturable must be False for AMUSEReference, which CUDA graphs cannot capture")
        group = complete_group(param_group, self.defaults)
        if group["direction"] not in _DIRECTIONS:
            raise ValueError(
                f"direction must be one of {', '.join(_DIRECTIONS)} for AMUSEReference, got "
                f"{group['direction']!r}: use AMUSE for it"
            )
        group |= {"t": 0, "idle_steps": 0, "weight_sum": 0.0, "lr_max": 0.0, "skipped_steps": 0}
        group |= {"window": 0.0, "reference_window": 0.0}
        group["mode"] = self.mode
        with names_hidden(*self.param_groups, group):
            super().add_param_group(group)
        for p in self.param_groups[-1]["params"]:
            self.state[p] |= {"step": 0, "beta": group["beta1"], **_sequences(p)}

    @property
    def mode(self) -> str:
        """What the parameters hold: y in "train", x in "eval"."""
        return str(self.param_groups[0]["mode"]) if self.param_groups else "train"

    def eval(self) -> None:
        """Put x into the parameters."""
        self._show("x", "eval")

    def train(self) -> None:
        """Put y into the parameters."""
        self._show("y", "train")

    @torch.no_grad()
    def _show(self, sequence: str, mode: str) -> None:
        for group in self.param_groups:
            group["mode"] = mode
            for p in group["params"]:
                if self.state[p]["step"] > 0:
                    p.copy_(self.state[p][sequence])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take one step, as `AMUSE.step` does; with its errors for eval mode and non-finite gradients."""
        if self.mode == "eval":
            raise OptimizerModeError("step() in eval mode: call optimizer.train() first")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        active = [group for group in self.param_groups if any(p.grad is not None for p in group["params"])]
        for group in active:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            if group["nonfinite"] != "ignore" and not all(bool(g.isfinite().all()) for g in gradients):
                if group["nonfinite"] == "raise":
                    raise FloatingPointError("a gradient is not finite")
                for skipped in active:
                    skipped["skipped_steps"] += 1
                return loss
        for group in active:
            _advance_schedule(group)
            for p in group["params"]:
                if p.grad is not None:
                    self._step_parameter(group, p, self.state[p])
        return loss

    def _step_parameter(self, group: Mapping[str, Any], p: Tensor, state: dict[str, Any]) -> None:
        lr, c, beta = group["lr_t"], group["c_t"], group["beta_t"]
        if state["step"] == 0:  # weights may have been loaded since
            state |= _sequences(p)
        state["step"] += 1
        x, y, z = state["x"], state["y"], state["z"]
        assert p.grad is not None
        d = _DIRECTIONS[group["direction"]](p.grad.to(z.dtype), state, group)

        if group["parity"] == "published":  # x decoded with the new beta from a y built with the old one
            x = z + (y - z) / beta
        z = z - lr * d - lr * group["weight_decay"] * (z if group["weight_decay_at"] == "z" else y)
        x = (1 - c) * x + c * z
        y = (1 - beta) * z + beta * x
        for kappa in group["averages"]:  # for reading alone
            c_kappa = kappa / (state["step"] + kappa - 1)
            average = state.get(f"average_{kappa:g}", z)
            state[f"average_{kappa:g}"] = (1 - c_kappa) * average + c_kappa * z
        state |= {"x": x, "y": y, "z": z, "beta": beta}
        p.copy_(y)


def _sequences(p: Tensor) -> dict[str, Tensor]:
    """The start: z = x = y = theta_0, in at least float32."""
    wide = torch.promote_types(p.dtype, torch.float32)
    return {name: p.detach().to(wide, copy=True) for name in ("x", "y", "z")}


def _advance_schedule(group: dict[str, Any]) -> None:
    """Move a group's clock to its next step, and set lr_t, c_t and beta_t."""
    t = group["t"] = group["t"] + 1
    lr = float(group["lr"])
    if t < group["warmup_steps"]:
        lr = lr * t / group["warmup_steps"]
    if group["lr_decay"] > 0 and t > group["lr_decay_from"]:
        lr = lr * (group["lr_decay_from"] / t) ** group["lr_decay"]
    group["lr_max"] = max(group["lr_max"], lr)

    c = 1.0
    if t > group["c_warmup_steps"]:
        weighing = lr if group["parity"] == "published" else group["lr_max"]
        w = t ** group["r"] * weighing ** group["weight_lr_power"]
        group["weight_sum"] += w
        c = w / group["weight_sum"] if group["weight_sum"] > 0 else 1.0

    if group["lr_max"] == 0 and group["weight_lr_power"] > 0:
        group["idle_steps"] += 1
    k = t - group["idle_steps"]  # steps since the first weight
    n = group["window"] = (1 - c) / c if c > 0 else group["window"]  # the averaging window
    if k <= group["t0_steps"] or group["reference_window"] < 1e-3:
        group["reference_window"] = n  # at T0, or the first that has grown
    s = 1.0
    if k > group["t0_steps"] and group["beta_clock"] == "steps":
        s = (group["t0_steps"] - 1) / (k - 1)
    elif k > group["t0_steps"] and group["reference_window"] >= 1e-3:
        s = min(1.0, group["reference_window"] / n)
    beta = 1 - s ** group["rho"] * (1 - group["beta1"])
    group |= {"lr_t": lr, "c_t": c, "beta_t": min(beta, max(group["beta1"], 1 - 2**-24))}


def sgd(g: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> Tensor:  # noqa: ARG001
    """The direction d = g."""
    return g


def adamw(g: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> Tensor:
    """The direction d = e_hat / (sqrt(v_hat) + eps); e_hat is g if `auxiliary_momentum` is 0."""
    s, b2, b = state["step"], group["beta2"], group["auxiliary_momentum"]
    v = state["exp_avg_sq"] = b2 * state.get("exp_avg_sq", 0) + (1 - b2) * g**2
    e = state["exp_avg"] = b * state.get("exp_avg", 0) + (1 - b) * g
    d: Tensor = (e / (1 - b**s)) / ((v / (1 - b2**s)).sqrt() + group["eps"])
    return d


def muon(g: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> Tensor:
    """The direction d = scale * orthogonalize(u), matrix by matrix; u is the (Nesterov) momentum."""
    mu = group["momentum"]
    m = state["momentum_buffer"] = mu * state.get("momentum_buffer", 0) + (1 - mu) * g
    u = (1 - mu) * g + mu * m if group["nesterov"] else m
    shape = u.shape
    if group["transposed"]:  # stored as (in, out, *k)
        u = _transposed(u, group)
    if group["stacked"]:  # leading dimensions count matrices
        matrices = list(u.reshape(-1, *u.shape[-2:]))
    else:  # a kernel (out, in, *k) is the matrix (out, in * prod(k))
        projections = u.flatten(1).split(list(group["split_rows"] or [len(u)]))
        parts = group["conv_groups"] * (group["num_heads"] or 1)
        matrices = [matrix for rows in projections for matrix in rows.chunk(parts)]
    names = {"method": "orthogonalize", "steps": "orthogonalize_steps", "dtype": "orthogonalize_dtype"}
    given = {name: group[option] for name, option in names.items()}
    factors = [_scale(matrix, group["scale"]) * orthogonalize(matrix, **given) for matrix in matrices]
    d = torch.cat(factors).reshape(u.shape) if factors else u
    return (_transposed(d, group) if group["transposed"] else d).reshape(shape)


def _transposed(u: Tensor, group: Mapping[str, Any]) -> Tensor:
    """Every matrix of a stack, or of the groups of a convolution, as its transpose."""
    if group["stacked"]:
        return u.mT
    return torch.cat([part.T for part in u.flatten(1).chunk(group["conv_groups"])])


def _scale(matrix: Tensor, kind: str) -> float:
    """The factor from a polar factor to the direction, from the shape of the matrix."""
    rows, cols = matrix.shape
    return 0.2 * math.sqrt(max(rows, cols)) if kind == "match_rms" else math.sqrt(max(1, rows / cols))


_DIRECTIONS = {function.__name__: function for function in (muon, adamw, sgd)}
