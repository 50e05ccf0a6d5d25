"""The optimizer: its options and the step. The equations live in the modules it calls."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Self, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable that imports nothing before it is called
from torch.optim.optimizer import ParamsT

from . import clock, options
from .matrices import Scale
from .measurement import Measurement
from .options import ANYTIME
from .orthogonalize import Method
from .plan import buckets_of, updates_of
from .precision import StatePrecision
from .ranks import check_process_group
from .schedule import BetaClock, DecayAt, Parity
from .sharing import SharingOptimizer


class AMUSE(SharingOptimizer):
    r"""AMUSE: Muon with Schedule-Free averaging; the averaged weights can be evaluated at any step.

    One step of a group, with t counting the group's steps:

    .. code-block:: text

        d    = direction(g)                                   # orthogonalized momentum, AdamW's, or g
        z   <- z - lr_t d - lr_t weight_decay z               # the fast sequence
        x   <- (1 - c_t) x + c_t z                            # the average: the model
        y   <- (1 - beta_t) z + beta_t x                      # where the next gradient is taken

    In train mode the parameters hold y; `averaged(optimizer)` or `eval()` puts x into them. Of the three
    sequences the state holds only z for float32 and float64 parameters, z and x for lower precisions.

    Args:
        params: `param_groups(model)`; or an ordered iterable of parameters, (name, parameter) pairs or group
            dicts, with a `direction` given here or in each group.
        lr: Learning rate; `group["lr"]` is read at every step, so torch's schedulers work.
        lr_rest: Learning rate of the "adamw" and "sgd" groups that have no `lr` of their own; None means
            `lr`. It is stored as `group["lr"]` of these groups, so schedulers act on them too.
        warmup_steps: Steps of linear learning-rate warm-up, as an integer. This and the other lengths below
            may also be a fraction of `total_steps`, a float in (0, 1).
        lr_decay: Exponent a >= 0 of the factor min(1, (lr_decay_from / t)^a) on the learning rate, a decay
            that needs no final step; 0 keeps the learning rate constant after the warm-up.
        lr_decay_from: Step after which the learning rate decays; None means 6 `warmup_steps`.
        t0_steps: T0, the number of steps for which beta_t stays at `beta1`; None means `warmup_steps`. At
            least 2 and greater than `c_warmup_steps` + 1, unless `rho` is 0.
        c_warmup_steps: Number of first steps with c_t = 1, so that x = z; the averaging begins after them.
        total_steps: Planned number of steps; only needed if one of these lengths is a fraction of it.
        beta1: Value of beta_t up to T0, in (0, 1). With `rho=0` it may be 0: gradients are then taken at z,
            and for float32 and float64 parameters x is kept in the state instead of z.
        rho: Exponent in beta_t = 1 - S_t^rho (1 - beta1) after T0: the larger, the faster beta_t rises
            to 1. 0 keeps beta_t at `beta1` (plain Schedule-Free).
        beta_clock: "window" for S_t = min(1, n_T0 / n_t) with the averaging window n_t = (1 - c_t) / c_t, as
            in the released code; "steps" for S_t = (T0 - 1) / (t - 1), the paper's equation 5.
        r: Exponent of t in the averaging weights w_t = t^r lr_max^weight_lr_power, where c_t is w_t divided
            by the sum of the weights so far; 0 does not weight by t.
        weight_lr_power: Exponent of lr_max, the largest learning rate so far, in the same weights.
        momentum: Muon's momentum, in [0, 1). torch's CyclicLR and OneCycleLR cycle it unless they are told
            `cycle_momentum=False`.
        nesterov: Whether Muon uses Nesterov momentum.
        beta2: Decay of the second moment of the "adamw" direction, in [0, 1).
        eps: Added to the square root of the second moment, at least 1.18e-38.
        auxiliary_momentum: Decay of the first moment of the "adamw" direction, in [0, 1); 0 uses the
            gradient itself and stores no first moment.
        weight_decay: Decoupled weight decay per step, multiplied by the learning rate; 0 means none.
        weight_decay_at: The sequence that the decay is proportional to, "z" or "y".
        direction: "muon", "normuon", "adamw" or "sgd", for groups without a `direction` of their own; None
            requires one in every group.
        scale: Factor on the orthogonalized matrix: "match_rms" for 0.2 sqrt(max(rows, cols)), "spectral" for
            sqrt(max(1, rows / cols)).
        orthogonalize: "quintic", "polar_express", "exact" (by singular value decomposition), or a function
            from a stack of matrices (n, rows, cols) to one of the same shape.
        orthogonalize_steps: Iterations of "quintic" or "polar_express".
        orthogonalize_dtype: dtype of the orthogonalization; None chooses it by device and parameter dtype.
        split_rows: For parameters that hold several projections, such as query, key and value: the number of
            rows of each. Each is orthogonalized separately; None means one matrix.
        num_heads: Number of heads; the rows of each are orthogonalized separately. None means no heads.
        conv_groups: Groups of the convolution; the kernel of each group is one matrix.
        stacked: Whether all but the last two dimensions count matrices, as in experts (n, rows, cols).
        transposed: The weights are stored as (in, out, *k), as GPT-2's: they are scaled as their transpose,
            and `split_rows` and `num_heads` cut their columns.
        nonfinite: What an infinite or NaN gradient does: "raise" (FloatingPointError, nothing changed),
            "skip" (the whole step is skipped and counted in `group["skipped_steps"]`) or "ignore".
        averages: Values of kappa >= 1. For each the state keeps an average of z for reading, apart from x,
            with c_t = kappa / (t + kappa - 1), which no gradient sees: `averaged(optimizer, kappa=10)` reads
            it. 4 bytes for each entry of a parameter, 8 for float64. For large t, kappa = 1 + `r`.
        parity: "exact" for the equations above, or "published" for the released code's averaging, which
            decodes x with the new beta (see `docs/algorithm.md`).
        foreach: Whether parameters of equal device, dtype and step count are updated together by
            `torch._foreach_*` operations; None means True. False: one at a time, slower, the same arithmetic.
        capturable: Whether the schedule is computed on the device, so that steps can be captured in a CUDA
            graph; a scalar tensor as `lr` can be changed between replays. Requires float32 or float64
            parameters, `nonfinite="ignore"`, full state precision, and an iteration as `orthogonalize`.
        state_precision: "full" keeps the state in float32 (float64 for float64 parameters): with one momentum
            8 bytes for each entry of a float32 parameter, 12 for lower precisions, which keep x as well.
            "lean" keeps it in bfloat16 with stochastic rounding: 4 and 6 bytes; with `beta1=0` x stays in
            float32. Set it before a group's first step.
        process_group: The ranks that hold the same parameters and get the same gradients, as under DDP:
            `torch.distributed.group.WORLD`, for instance. Each then orthogonalizes its share of the matrices
            and sends the results to the others, which every rank must do at every step. None: every rank
            computes all of it. Sharded parameters (DTensor) know their ranks and need no group. It is not
            an option of groups, and neither saved nor copied.
        shard_state: With `process_group`: whether the momentum of a matrix, and all else that its direction
            keeps, is kept by the one rank that orthogonalizes it. All matrices of a parameter then have one
            owner. `state_dict()` gathers it on the CPU, so every rank calls it, and `load_state_dict()`, not
            one alone; any number of ranks can load it. Such an optimizer cannot be copied or pickled.
        more: Options of single directions, such as `row_beta2` of "normuon".

    Raises:
        ValueError: For a value out of range, an unknown key in a group dict, a missing direction, a parameter
            given twice, or one whose shape the direction cannot take.
        TypeError: For an unknown argument, a value of the wrong type, a set of parameters, or a parameter
            that is not a real floating-point tensor.

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
        averages: Sequence[float] = (),
        foreach: bool | None = None,
        capturable: bool = False,
        state_precision: StatePrecision = "full",
        process_group: "torch.distributed.ProcessGroup | None" = None,
        shard_state: bool = False,
        **more: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in options.OPTIONS} | more
        if isinstance(params, (set, frozenset)):
            raise TypeError(options.UNORDERED)
        if process_group is not None:
            check_process_group(process_group)
            self.process_group = process_group
        elif shard_state:
            raise ValueError(
                "shard_state=True needs process_group, the ranks that hold the same parameters, such as "
                "torch.distributed.group.WORLD; the state of sharded parameters (DTensor) is sharded anyway"
            )
        self.shard_state = shard_state
        super().__init__(params, options.complete_defaults(given))
        if process_group is not None:
            self._plan()

    @classmethod
    def anytime(
        cls, params: ParamsT, lr: float | Tensor = 0.01, *, warmup_steps: int | float, **options: Any
    ) -> Self:
        r"""Return the form of AMUSE whose only length is the warm-up: no T0, no rho, no planned end.

        Gradients are taken at z, and its learning rate falls with a power of the step instead of beta rising:

        .. code-block:: text

            lr_t = lr min(1, t / warmup_steps) min(1, sqrt(6 warmup_steps / t))
            z   <- z - lr_t d - lr_t weight_decay z
            x   <- (1 - c_t) x + c_t z,    c_t near 14 / t: the mean of the last steps, a tenth of all or so

        Args:
            params: As for `AMUSE`. What was measured is `param_groups(model, matrices="normuon",
                decaying="matrices")`, with a weight decay; with the defaults of `param_groups` the matrices
                move by Muon and everything decays.
            lr: Peak learning rate, which the warm-up leads to; `group["lr"]` is read at every step.
            warmup_steps: Steps of linear learning-rate warm-up. The learning rate decays from
                `lr_decay_from` on, 6 warm-ups unless it is given: four times the warm-up alone doubles the
                learning rate of all later steps.
            options: Any option of `AMUSE`; `rho` above 0 needs a `beta1` above 0. Those that differ from its
                defaults: `beta1=0`, `rho=0`, `r=13`, `lr_decay=0.5`, `momentum=0.9`,
                `auxiliary_momentum=0.9`.

        Raises:
            ValueError: As `AMUSE`.
            TypeError: As `AMUSE`.

        Example:
            >>> import torch
            >>> from amuse_optim import AMUSE, param_groups
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
            >>> groups = param_groups(model, matrices="normuon", decaying="matrices")
            >>> optimizer = AMUSE.anytime(groups, lr=0.008, warmup_steps=10, weight_decay=0.1)
        """
        return cls(params, lr=lr, warmup_steps=warmup_steps, **{**ANYTIME, **options})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @_disable_dynamo  # tracing would set capturable=True in the groups
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step with the gradients in `p.grad`, which are read and not written.

        Parameters without a gradient and their state are unchanged; a group's step count t grows by 1 when
        at least one of its parameters has a gradient. Of a sharded parameter, a gradient that is there on
        some ranks counts as zeros on the others. If this method raises, parameters and state are
        unchanged; only running out of memory within the step, or a rank that ends, can leave it partly
        applied.

        Args:
            closure: Function that evaluates the model again and returns the loss; None if the gradients are
                there already.

        Returns:
            The closure's loss, or None.

        Raises:
            OptimizerModeError: In eval mode, when the parameters hold the average x.
            FloatingPointError: For an infinite or NaN gradient with `nonfinite="raise"`, or such a value from
                an `orthogonalize` function.
            TypeError: For a sparse gradient, or an option changed to a value of the wrong type.
            ValueError: For an option changed to a value out of range, such as a negative learning rate, or a
                parameter that no longer fits its state; for ranks that share parameters, also if they differ
                in parameters, options, or in which replicated parameters have a gradient.
            RuntimeError: If the step was refused on another rank that shares parameters.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        active, gradients, usable, measuring = self._looked_at()
        if not usable:
            for group in active.values():
                group["skipped_steps"] += 1
            return loss
        measurements = {number: Measurement() for number in active} if measuring else {}
        buckets = buckets_of(active, self.state, gradients, measurements, self.division)
        schedules = {number: clock.advanced(group) for number, group in active.items()}
        for bucket, updates in updates_of(buckets):
            _, now = schedules[bucket.number]
            numbers = bucket.numbers(now)
            for chunk, update, scale in updates:
                if bucket.measurement is not None:
                    bucket.measurement.add_update(bucket.slots[0].param, update, scale)
                chunk.advance_(update, scale, numbers)
        for bucket in buckets:  # which may share a step and a beta on the device
            bucket.finish(schedules[bucket.number][1])
        self._keep(measurements)
        for number, group in active.items():
            clock.record(group, *schedules[number])
        self.versions = self.versions.recorded(self.param_groups)
        return loss


def unwrapped(optimizer: torch.optim.Optimizer) -> AMUSE:
    """The `AMUSE` inside a framework's wrapper (Accelerate, Lightning, DeepSpeed), or the optimizer itself.

    Raises:
        TypeError: If there is none.
    """
    inner: Any = optimizer
    while hasattr(inner, "optimizer"):  # Lightning's wrapper passes for an AMUSE and has a state of its own
        inner = inner.optimizer
    if not isinstance(inner, AMUSE):
        raise TypeError(f"optimizer must be an AMUSE or hold one, got {type(optimizer).__name__}")
    return inner
