"""The loss around a point: curvature along few directions, and what a vector has to do with them.

Takes losses as functions and parameters as named tensors, and knows no optimizer. See docs/landscape.md.
"""

from .coordinates import Coordinates
from .objective import CompositeLoss, Objective, module_loss
from .operators import Operator, gauss_newton, hessian
from .spectrum import Density, Eigenpairs, eigenpairs, spectral_density
from .subspaces import ClusterError, Shares, Subspace, dominant_subspace, error_bound

__all__ = [
    "ClusterError",
    "CompositeLoss",
    "Coordinates",
    "Density",
    "Eigenpairs",
    "Objective",
    "Operator",
    "Shares",
    "Subspace",
    "dominant_subspace",
    "eigenpairs",
    "error_bound",
    "gauss_newton",
    "hessian",
    "module_loss",
    "spectral_density",
]
