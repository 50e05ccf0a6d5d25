"""Packages that only some data needs, imported when it does."""

import importlib
from typing import Any

from amuse_lab.errors import DataError

INSTALL = "pip install 'amuse-optim[data]'"


def load(module: str, purpose: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: Full name of the module, with dots.
        purpose: What needs it; begins the message.

    Raises:
        DataError: If the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise DataError(
            f"{purpose} needs the package {package}, which is not installed: {INSTALL}"
        ) from error
