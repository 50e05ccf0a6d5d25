"""An image classifier as files that torch alone loads, or any reader of safetensors."""

import json
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from amuse_lab.errors import DataError, RecordError
from amuse_lab.files import new_folder
from amuse_lab.tasks.image.data.dataset import Dataset
from amuse_lab.tasks.image.models.loading import load_weights
from amuse_lab.tasks.image.task import ImageConfig

MODEL, PROGRAM = "model.safetensors", "model.pt2"


def export_run(run: Path, out: Path, config: ImageConfig) -> str:
    """Write the model of a run: model.safetensors, model.pt2 and config.json; all of them or nothing.

    Args:
        run: Path of the run folder.
        out: The folder to create; it does not exist, or is empty.
        config: Config of the run's task: its model and data set.

    Returns:
        What the folder holds, in words.

    Raises:
        RequestError: If the run folder holds no such model, its data set is not there, or `out` cannot be
            written.
    """
    model = config.untrained().eval()
    try:
        state = load_file(run / MODEL)
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read {run / MODEL}: {error}") from error
    load_weights(model, run / MODEL, new_head=False)
    try:
        with new_folder(out) as partial:
            (partial / "config.json").write_text(_described(config, config.dataset()), encoding="utf-8")
            save_file(state, partial / MODEL, metadata={"format": "pt"})
            shutil.copymode(partial / "config.json", partial / MODEL)  # safetensors lets only the owner read
            _save_program(model, config.dataset().shape, partial / PROGRAM)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        raise RecordError(f"cannot write {out}: {getattr(error, 'strerror', None) or error}") from error
    return f"{MODEL}, {PROGRAM}, config.json"


def _described(config: ImageConfig, dataset: Dataset) -> str:
    """What somebody needs to know to feed the model, as JSON."""
    content = {
        "architecture": type(config.model).__name__.removesuffix("Config"),
        "model": asdict(config.model),
        "data": config.data,
        "input_size": list(dataset.shape),
        "input": "float32, each channel divided by 255, less its mean, divided by its std",
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "num_classes": dataset.classes,
        "label_names": None if dataset.label_names is None else list(dataset.label_names),
    }
    return json.dumps(content, indent=2) + "\n"


def _save_program(model: nn.Module, shape: tuple[int, int, int], path: Path) -> None:
    """Write what the model computes, with its weights, for batches of any size."""
    example = torch.zeros(2, *shape, dtype=next(model.parameters()).dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        torch.export.save(program, path)
