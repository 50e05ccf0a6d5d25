"""The loss around a point: curvature along few directions, and what a vector has to do with them.

Takes losses as functions and parameters as named tensors, and knows no optimizer. See docs/landscape.md.
"""

from .coordinates import Coordinates
from .objective import CompositeLoss, Objective, module_loss
from .operators import Operator, gauss_newton, hessian
from .probes import cosines, effective_rank, loss_in_plane, loss_on_segment, shares
from .spectrum import Density, Eigenpairs, eigenpairs, spectral_density
from .subspaces import ClusterError, Parts, Subspace, dominant_subspace, error_bound

__all__ = [
    "ClusterError",
    "CompositeLoss",
    "Coordinates",
    "Density",
    "Eigenpairs",
    "Objective",
    "Operator",
    "Parts",
    "Subspace",
    "cosines",
    "dominant_subspace",
    "effective_rank",
    "eigenpairs",
    "error_bound",
    "gauss_newton",
    "hessian",
    "loss_in_plane",
    "loss_on_segment",
    "module_loss",
    "shares",
    "spectral_density",
]
