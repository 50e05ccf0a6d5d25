"""Scalars that describe the optimizer's state, to log at any step without waiting for the device."""

from typing import Any

import torch
from torch import Tensor

from .directions import DIRECTIONS
from .optimizer import unwrapped
from .schedule import averaging_window
from .sharding import copies, local, mesh_of, summed
from .state import sequences


@torch.no_grad()
def telemetry(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Scalars of every group after its last step, under "<index>_<direction>/<name>".

    Distances are Euclidean norms over all parameters of the group. The last two rows need the directions d,
    so they are measured inside the step once this function has been called, and are nan until the next step.
    This reads every d once more, and adds about one matrix product to fifteen of the orthogonalization.
    Values are those of all ranks that share parameters. Where these are sharded, every one of the ranks calls
    this function, after the same step; where they are replicated, the one that logs may do it alone.

    ===================== ===========================================================================
    lr                    lr_t, warm-up included
    beta                  beta_t
    c                     c_t
    window                n_t = (1 - c_t) / c_t, in steps
    distance_xz           ||x - z||
    distance_yx           ||y - x||
    update_rms            root mean square of the entries of the directions d
    orthogonality_error   ||O O^T - I||_F / sqrt(rows) on the short side, root mean square over the
                          matrices ("muon" groups)
    ===================== ===========================================================================

    Args:
        optimizer: An `AMUSE` in train or eval mode, or a framework's wrapper around one. Parameters and state
            do not change; from now on `step` measures the last two rows.

    Returns:
        Scalar tensors by name. Those computed from parameters are on the parameters' device, and calling this
        function does not synchronize with it.

    Example:
        >>> import torch
        >>> from amuse_optim import AMUSE, telemetry
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = AMUSE([weight], direction="sgd", warmup_steps=2)
        >>> float(telemetry(optimizer)["0_sgd/distance_xz"])
        0.0
    """
    amuse = unwrapped(optimizer)
    if amuse.measurements is None:
        amuse.measurements = {}
    report: dict[str, Tensor] = {}
    states = {parameter: state for _, parameter, state in amuse.members()}
    for index, group in enumerate(amuse.param_groups):
        squares = []
        for parameter in group["params"]:
            z, x, y = sequences(parameter, states[parameter], amuse.mode)
            norms = [torch.linalg.vector_norm(local(difference)) for difference in (x - z, y - x)]
            squares.append((mesh_of(parameter), torch.stack(norms).square() / copies(parameter)))
        found = summed(squares, group["params"], 2) if squares else torch.zeros(2, device="cpu")
        distance_xz, distance_yx = found.sqrt()
        measured: dict[str, Any] = {
            "lr": group["lr_t"],
            "beta": group["beta_t"],
            "c": group["c_t"],
            "window": averaging_window(group["c_t"], float("inf")),
            "distance_xz": distance_xz,
            "distance_yx": distance_yx,
            "update_rms": float("nan"),
        }
        if DIRECTIONS[group["direction"]].for_matrices:
            measured["orthogonality_error"] = float("nan")
        if index in amuse.measurements:
            measured |= amuse.measurements[index].values(group["params"])
        for name, value in measured.items():
            if not isinstance(value, Tensor):
                value = torch.tensor(value, device="cpu")
            report[f"{index}_{group['direction']}/{name}"] = value.clone()
    return report
