"""AMUSE: anytime Muon with stable gradient evaluation (arXiv 2605.22432).

Optimizer, parameter groups and everything needed to read the averaged model, for PyTorch alone.
"""

from .conversion import from_published, from_schedulefree
from .edits import accept_weights, project
from .evaluation import Attachment, attach, averaged, averaged_state_dict, refresh_batch_norm
from .optimizer import AMUSE
from .options import OptimizerModeError
from .orthogonalize import orthogonalize
from .param_groups import param_groups, report
from .reference import AMUSEReference
from .telemetry import telemetry

__version__ = "0.1.0"

__all__ = [
    "AMUSE",
    "AMUSEReference",
    "Attachment",
    "OptimizerModeError",
    "accept_weights",
    "attach",
    "averaged",
    "averaged_state_dict",
    "from_published",
    "from_schedulefree",
    "orthogonalize",
    "param_groups",
    "project",
    "refresh_batch_norm",
    "report",
    "telemetry",
]
