"""The optimizers of the laboratory: for each a config and a thin builder over the package it comes from."""

from collections.abc import Mapping

from amuse_lab.config import OptimizerConfig
from amuse_lab.optimizers.adaptive import AdamW, AdEMAMix, Adopt, Mars, Prodigy, Soap
from amuse_lab.optimizers.momentum import SGD, Lion, Signum
from amuse_lab.optimizers.muon import DMuon, Muon, MuonSGD, NorMuon
from amuse_lab.optimizers.schedule_free import Amuse, Anytime, ScheduleFreeAdamW, ScheduleFreeSGD
from amuse_lab.optimizers.sophia import Sophia

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "AdEMAMix",
    "AdamW",
    "Adopt",
    "Amuse",
    "Anytime",
    "DMuon",
    "Lion",
    "Mars",
    "Muon",
    "MuonSGD",
    "NorMuon",
    "Prodigy",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "Signum",
    "Soap",
    "Sophia",
]

OPTIMIZERS: Mapping[str, type[OptimizerConfig]] = {
    kind.name: kind
    for kind in (
        *(Amuse, Anytime, ScheduleFreeAdamW, ScheduleFreeSGD),
        *(Muon, DMuon, NorMuon, MuonSGD),
        *(AdamW, SGD),
        *(AdEMAMix, Adopt, Lion, Mars, Prodigy, Signum, Soap, Sophia),
    )
}
"""Every optimizer by its name."""
