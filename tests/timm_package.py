"""timm for a test: from a folder of its own, and out of sight again afterwards.

timm imports torchvision, whose compiled operators do not load on a CPU build of torch. Nothing that is
tested calls them, but torchvision looks two of them up while it is imported: they are declared here, without
an implementation. Packages that would use torchvision where they find it (transformers) must not find it, so
`make setup` puts both into `timm` in the environment's folder, off the path.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

FOLDER = Path(sys.prefix) / "timm"
_OPERATORS = ("nms", "qnms")


@contextmanager
def timm_in_sight() -> Iterator[ModuleType]:
    """Context manager: timm and torchvision can be imported inside."""
    if not FOLDER.is_dir():
        raise FileNotFoundError(f"timm is not in {FOLDER}: run `make setup`")
    declared = torch.library.Library("torchvision", "DEF")
    for name in _OPERATORS:
        declared.define(f"{name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    try:
        import timm

        yield timm
    finally:
        sys.path.remove(str(FOLDER))
        for name in set(sys.modules) - before:
            if name.split(".")[0] in ("timm", "torchvision"):
                del sys.modules[name]
        declared._destroy()
