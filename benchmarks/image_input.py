"""What the input of image training costs: WRN-16-8 with AMUSE on generated images, as many as CIFAR-10 has.

    python benchmarks/image_input.py --fraction 0.02 --threads 1

Takes the steps of a fraction of an epoch with the settings of the recipe, in the learner of the laboratory,
and prints images per second, the share of the input in the time of a step and the largest memory as one JSON
object. The first step, which warms up, does not count. What the images show plays no part in the time.
"""

import argparse
import json
from dataclasses import replace

import numpy as np
import torch

from amuse_lab.environment import describe, peak_memory_bytes
from amuse_lab.learner import Learner
from amuse_lab.parallel import ALONE
from amuse_lab.recipes.image import RECIPES
from amuse_lab.tasks.image.data.labelled import Labelled
from amuse_lab.tasks.image.data.sets import DATASETS
from amuse_lab.tasks.image.source import InMemory
from amuse_lab.tasks.image.task import ImageConfig, ImageTask

IMAGES = 50_000
RECIPE = "cifar10-wrn16x8-amuse"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fraction", type=float, default=0.02, help="of an epoch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)

    config = replace(RECIPES[RECIPE](), device=arguments.device)
    assert isinstance(config.task, ImageConfig)
    random = np.random.default_rng(0)
    held = Labelled(
        random.integers(256, size=(IMAGES, 32, 32, 3), dtype=np.uint8), random.integers(10, size=IMAGES)
    )
    source = InMemory(held, padding=4, flip=True, device=device)
    task = ImageTask(config.task, DATASETS["cifar10"], source, None, seed=0, device=device)
    torch.manual_seed(0)
    model = config.task.build_model().to(device)
    optimizer = config.optimizer.build(model, steps=config.steps)
    learner = Learner(config, task, model, model, optimizer, ALONE, device)

    learner.advance(look=True)
    before = learner.clock.read()
    steps = max(1, round(arguments.fraction * IMAGES / task.batch_size))
    for _ in range(steps):
        learner.advance(look=False)
    seconds = {part: now - before[part] for part, now in learner.clock.read().items()}
    total = sum(seconds.values())
    environment = describe(device=device, seed=0)
    report = {
        "recipe": RECIPE,
        "threads": arguments.threads,
        "steps": steps,
        "images per second": round(steps * task.batch_size / total, 1),
        "seconds per step": {part: round(spent / steps, 4) for part, spent in seconds.items()},
        "share of the input": round(seconds["data"] / total, 5),
        "input alone, images per second": round(steps * task.batch_size / seconds["data"]),
        "peak memory, MiB": round(peak_memory_bytes(device) / 2**20),
        "machine": environment["machine"],
        "versions": environment["versions"],
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
