"""What image training costs and what part of it is the input: a recipe on generated images.

    python benchmarks/image_input.py --threads 2 --out records/images/cpu.json
    python benchmarks/image_input.py --device cuda --precision amp-bf16
    python benchmarks/image_input.py --device cuda --precision amp-bf16 --recipe imagenet-resnet50-amuse \
        --images 4096

Takes the steps of an epoch, or of a fraction of one, with the settings of the recipe, in the trainer of the
laboratory, and prints images per second, the share of the input in the time of a step and the largest memory
as one JSON object. Images are in memory, in the size of the data set; what they show plays no part in the
time. The first step, which warms up, does not count.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from amuse_lab.config import RunConfig
from amuse_lab.environment import describe, peak_memory_bytes
from amuse_lab.parallel import ALONE
from amuse_lab.recipes.image import RECIPES
from amuse_lab.tasks.image.data.labelled import Labelled
from amuse_lab.tasks.image.data.sets import DATASETS
from amuse_lab.tasks.image.source import InMemory
from amuse_lab.tasks.image.task import ImageConfig, ImageTask
from amuse_lab.trainer import Trainer


def generated_task(config: RunConfig, images: int, device: torch.device) -> ImageTask:
    """Return the task of a recipe on random images in memory, of the size of its data set.

    Args:
        config: Of the recipe.
        images: How many.
        device: Where they are kept.
    """
    assert isinstance(config.task, ImageConfig)
    dataset = DATASETS[config.task.data]
    channels, height, width = dataset.shape
    random = np.random.default_rng(0)
    held = Labelled(
        random.integers(256, size=(images, height, width, channels), dtype=np.uint8),
        random.integers(dataset.classes, size=images),
    )
    source = InMemory(held, padding=4, flip=True, device=device)
    dataset = replace(dataset, validation=min(dataset.validation, images // 10))
    return ImageTask(config.task, dataset, source, None, seed=0, device=device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", choices=RECIPES, default="cifar10-wrn16x8-amuse", metavar="RECIPE")
    parser.add_argument("--images", type=int, default=50_000, help="as many as CIFAR-10 has by default")
    parser.add_argument("--fraction", type=float, default=1.0, help="of an epoch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "amp-bf16"), default="fp32")
    parser.add_argument("--out", type=Path, help="where the object is written, too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)

    config = replace(
        RECIPES[arguments.recipe](), device=arguments.device, precision=arguments.precision, micro_batch=None
    )
    task = generated_task(config, arguments.images, device)
    torch.manual_seed(0)
    model = config.task.build_model().to(device)
    optimizer = config.optimizer.build(model, steps=config.steps)
    trainer = Trainer(config, task, model, model, optimizer, ALONE, device)

    trainer.advance(look=True)
    before = trainer.clock.read()
    steps = max(1, round(arguments.fraction * arguments.images / task.batch_size))
    for _ in range(steps):
        trainer.advance(look=False)
    seconds = {part: now - before[part] for part, now in trainer.clock.read().items()}
    total = sum(seconds.values())
    environment = describe(device=device, seed=0)
    report = {
        "recipe": arguments.recipe,
        "precision": arguments.precision,
        "threads": arguments.threads,
        "generated images": arguments.images,
        "steps": steps,
        "images per step": task.batch_size,
        "images per second": round(steps * task.batch_size / total, 1),
        "seconds per step": {part: round(spent / steps, 4) for part, spent in seconds.items()},
        "share of the input": round(seconds["data"] / total, 5),
        "input alone, images per second": round(steps * task.batch_size / seconds["data"]),
        "peak memory, MiB": round(peak_memory_bytes(device) / 2**20),
        "machine": environment["machine"],
        "versions": environment["versions"],
    }
    content = json.dumps(report, indent=1)
    print(content)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(f"{content}\n")


if __name__ == "__main__":
    main()
