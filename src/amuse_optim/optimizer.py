"""The optimizer: its options and the step. The equations live in the modules it calls."""

from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from . import clock, options
from .buckets import Bucket, Group
from .matrices import Scale
from .measurement import Measurement
from .modes import AveragedOptimizer
from .orthogonalize import Method
from .plan import buckets_of, updates_of
from .precision import StatePrecision
from .readiness import check_ready, gradients_usable
from .schedule import BetaClock, DecayAt, Parity
from .state import complete_states, follow_parameter
from .state_dict import portable, taking_over
from .versions import Versions


class AMUSE(AveragedOptimizer):
    r"""Anytime Muon with stable gradient evaluation: no schedule, no horizon, a finished model at any step.

    One step of a group, with t counting the group's steps:

    .. code-block:: text

        d    = direction(g)                                   # orthogonalized momentum, AdamW's, or g
        z   <- z - lr_t d - lr_t weight_decay z               # the fast sequence
        x   <- (1 - c_t) x + c_t z                            # the average: the model
        y   <- (1 - beta_t) z + beta_t x                      # where the next gradient is taken

    While training the parameters hold y; `averaged(optimizer)` (or `eval()`) puts x there. Only z is
    stored beside a float32 or float64 parameter; one in lower precision has z and x beside it.

    Args:
        params: `param_groups(model)`, or any iterable of parameters, named parameters or group dicts with
            a `direction`.
        lr: Learning rate; `group["lr"]` is read at every step, so torch's schedulers work.
        lr_rest: Learning rate of the groups that are not for matrices and do not say their own `lr`; None
            means `lr`. Their key is `lr` all the same, so schedulers act on both.
        warmup_steps: Steps of linear learning-rate warm-up.
        lr_decay: Power a of a decay of the learning rate by min(1, (lr_decay_from / t)^a), which needs no
            end; 0 keeps it constant after the warm-up.
        lr_decay_from: The step from which on it decays; three warm-ups by default.
        t0_steps: Steps for which beta stays at `beta1`; `warmup_steps` by default. At least 2 and
            greater than `c_warmup_steps` + 1, unless `rho` is 0.
        c_warmup_steps: Steps for which x follows z before the averaging begins.
        total_steps: Only needed where these lengths are given as fractions of it.
        beta1: The interpolation coefficient at the start, in (0, 1); or 0 with `rho=0`: gradients are then
            taken at z, and x is kept in the state instead of z.
        rho: How fast it rises towards 1; 0 keeps it (plain Schedule-Free).
        beta_clock: "window" (the averaging window drives beta, as in the released code) or "steps"
            (the paper's equation 5).
        r: Power of t in the averaging weights.
        weight_lr_power: Power of the largest learning rate so far in the averaging weights.
        momentum: Muon's momentum, in [0, 1). torch's CyclicLR and OneCycleLR cycle it unless they are told
            `cycle_momentum=False`.
        nesterov: Whether Muon's momentum looks one step ahead.
        beta2: Decay of the second moment of the "adamw" direction, in [0, 1).
        eps: Added to the root of the second moment.
        auxiliary_momentum: First moment of the "adamw" direction; 0 keeps none.
        weight_decay: Decoupled decay, multiplied by the learning rate.
        weight_decay_at: "z" or "y".
        direction: "muon", "normuon", "adamw" or "sgd" for groups that do not say their own.
        scale: "match_rms" or "spectral", see `matrices.update_scale`.
        orthogonalize: "quintic", "polar_express", "exact", or a function on stacks (n, rows, cols).
        orthogonalize_steps: Iterations of the polynomial.
        orthogonalize_dtype: What it computes in; chosen by device and parameter dtype if None.
        split_rows: Row counts of fused projections in this group, orthogonalized apart.
        num_heads: Orthogonalizes every head's rows apart.
        conv_groups: Groups of grouped convolutions, one matrix each.
        stacked: Leading dimensions count matrices (experts).
        transposed: The weights are stored as (in, out, *k), as GPT-2's: they are scaled as their transpose,
            and `split_rows` and `num_heads` cut their columns.
        nonfinite: What an infinite or NaN gradient does: "raise" (FloatingPointError, nothing changed),
            "skip" (the whole step is skipped and counted in `group["skipped_steps"]`) or "ignore".
        parity: "exact", or "published" for the released code's averaging (algorithmic detail in
            `docs/algorithm.md`).
        foreach: Whether parameters that are alike move together, in operations on lists; by default they do.
            False moves one parameter at a time: slower, the same arithmetic.
        capturable: Keeps the numbers of the schedule on the device, so that whole steps can be captured in a
            CUDA graph; `lr` may be a scalar tensor there, to change it between replays. For float32 and
            float64 parameters, with `nonfinite="ignore"` and an iteration as `orthogonalize`.
        state_precision: "full" keeps state in float32 (float64 for float64 parameters), 8 bytes for each
            float32 parameter; "lean" in bfloat16 with stochastic rounding, 4 bytes. Parameters below
            float32 keep x as well: 12 and 6 bytes. Read when a group is added. With
            `beta1=0` x stays in float32.
        more: Options that directions declare beside these, such as NorMuon's `row_beta2`.

    Raises:
        ValueError: For a value out of range, an unknown group key, a missing direction, or a parameter
            the direction cannot take.
        TypeError: For an unknown option or a value of the wrong kind.

    Example:
        >>> import torch
        >>> from amuse_optim import AMUSE, averaged, param_groups
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> optimizer = AMUSE(param_groups(model), lr=0.01, warmup_steps=10)
        >>> for _ in range(3):
        ...     loss = model(torch.ones(2, 4)).square().mean()
        ...     loss.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> with averaged(optimizer):
        ...     value = model(torch.ones(2, 4))

    References:
        arXiv 2605.22432; Schedule-Free: arXiv 2405.15682; Muon: https://kellerjordan.github.io/posts/muon/.
    """

    # What `telemetry` asked to be measured at every step, by the index of the group; None: nothing.
    measurements: dict[int, Measurement] | None = None

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        *,
        lr_rest: float | None = None,
        warmup_steps: int | float,
        lr_decay: float = 0.0,
        lr_decay_from: int | float | None = None,
        t0_steps: int | float | None = None,
        c_warmup_steps: int | float = 0,
        total_steps: int | None = None,
        beta1: float = 0.6,
        rho: float = 0.8,
        beta_clock: BetaClock = "window",
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        beta2: float = 0.999,
        eps: float = 1e-10,
        auxiliary_momentum: float = 0.0,
        weight_decay: float = 0.0,
        weight_decay_at: DecayAt = "z",
        direction: str | None = None,
        scale: Scale = "match_rms",
        orthogonalize: Method | Callable[[Tensor], Tensor] = "quintic",
        orthogonalize_steps: int = 5,
        orthogonalize_dtype: torch.dtype | None = None,
        split_rows: tuple[int, ...] | None = None,
        num_heads: int | None = None,
        conv_groups: int = 1,
        stacked: bool = False,
        transposed: bool = False,
        nonfinite: Literal["raise", "skip", "ignore"] = "raise",
        parity: Parity = "exact",
        foreach: bool | None = None,
        capturable: bool = False,
        state_precision: StatePrecision = "full",
        **more: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in options.OPTIONS} | more
        if isinstance(params, (set, frozenset)):
            raise TypeError(options.UNORDERED)
        super().__init__(params, options.complete_defaults(given))

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step with the gradients in `p.grad`, which are read and not written.

        Parameters without a gradient keep everything they have; a group's clock advances when at least
        one of its parameters has a gradient. If it raises, nothing has changed; only running out of memory
        within the step can leave it half done.

        Args:
            closure: Evaluates the model again and returns the loss; optional.

        Returns:
            The closure's loss, or None.

        Raises:
            OptimizerModeError: If the parameters hold the average.
            FloatingPointError: For a gradient that is not finite, unless `nonfinite` says otherwise.
            TypeError: For a sparse gradient.
            ValueError: For a learning rate that is negative or not finite.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._require_train_mode()

        complete_states(self.param_groups, self.state)
        self.notice_edits()
        active = [group for group in self.param_groups if any(p.grad is not None for p in group["params"])]
        for group in active:
            check_ready(group, self.state)
        if not gradients_usable(active):
            for group in active:
                group["skipped_steps"] += 1
            return loss
        buckets = [bucket for group in active for bucket in self._buckets(group)]
        schedules = {id(group): clock.advanced(group) for group in active}
        for bucket, updates in updates_of(buckets):
            _, now = schedules[id(bucket.group)]
            numbers = bucket.numbers(now)
            for chunk, update, scale in updates:
                if bucket.measurement is not None:
                    bucket.measurement.add_update(update, scale)
                chunk.advance_(update, scale, numbers)
            bucket.finish(now)
        for group in active:
            clock.record(group, *schedules[id(group)])
        self.versions = self.versions.recorded(self.param_groups)
        return loss

    def _buckets(self, group: Group) -> list[Bucket]:
        """The parameters of a group that have a gradient, those together that are alike."""
        number = next(i for i, other in enumerate(self.param_groups) if other is group)
        measurement = None
        if self.measurements is not None:
            measurement = self.measurements[number] = Measurement()
        return buckets_of(group, number, self.state, measurement)

    def state_dict(self) -> dict[str, Any]:
        """Everything a run needs to continue: z, momenta, clocks, modes and options of every group.

        A function given as `orthogonalize` is named, not stored: `torch.load(weights_only=True)` reads it.
        """
        for group, parameter, state in self.members():
            follow_parameter(parameter, state, group)
        return portable(super().state_dict())

    @torch.inference_mode(False)
    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`, in the mode it was taken in: load the model saved beside it too.

        Loaded options win over the present ones, as in torch; differences are warned of once. Options that
        an older version did not know keep their present values. Tensors are copied, and keep their own
        precision.

        Raises:
            ValueError: If it does not fit these parameter groups, or was not made by AMUSE. Nothing
                has changed then.
            TypeError: If an option in it is of the wrong kind; likewise.
        """
        with taking_over(self):
            super().load_state_dict(state_dict)
        self.versions = Versions()


def unwrapped(optimizer: torch.optim.Optimizer) -> AMUSE:
    """The `AMUSE` inside what a framework made of it (Accelerate, Lightning, DeepSpeed), or itself.

    Raises:
        TypeError: If there is none.
    """
    inner: Any = optimizer
    while not hasattr(inner, "mode"):
        if not hasattr(inner, "optimizer"):
            raise TypeError(f"optimizer must be an AMUSE or hold one, got {type(optimizer).__name__}")
        inner = inner.optimizer
    found: AMUSE = inner
    return found
