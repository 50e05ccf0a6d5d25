"""Training steps of WRN-16-8 and ResNet-50 on images of CIFAR's and ImageNet's size, amp-bf16, channels_last.

Images are random and in memory. Each model with the settings of its published runs of AMUSE and SGD: images
per second, where the time of a step goes, and the largest memory.
"""

import sys
from dataclasses import replace

import torch

from amuse_lab.environment import peak_memory_bytes
from amuse_lab.recipes import find
from benchmarks.gpu.part import Part, main
from benchmarks.gpu.trainers import Bed, parameters, timed_steps
from benchmarks.image_input import generated_task

STEPS, WARMUP = 40, 5
IMAGES = {"cifar10-wrn16x8": 50_000, "imagenet-resnet50": 2_048}
OPTIMIZERS = ("amuse", "sgd")


def measure(part: Part) -> None:
    """Measure the models one after the other; tiny, a ResNet-8 on images of MNIST's size."""
    for experiment, count in {"mnist-resnet8": 200}.items() if part.tiny else IMAGES.items():
        recipes = {
            name: find(experiment)(name) if part.tiny else find(f"{experiment}-{name}")()
            for name in OPTIMIZERS
        }
        with part.trying(experiment):
            if part.left < 20:
                raise TimeoutError("no time was left")
            first = replace(recipes[OPTIMIZERS[0]], precision="amp-bf16", micro_batch=None)
            task = generated_task(first, count, part.device)
            bed = Bed(first, part.device, task, torch.channels_last)
            for name, recipe in recipes.items():
                with part.trying(f"{experiment}: {name}"):
                    trainer = bed.trainer(replace(first, optimizer=recipe.optimizer))
                    steps, warmup = (2, 1) if part.tiny else (STEPS, WARMUP)
                    seconds = timed_steps(trainer, warmup=warmup, steps=steps)
                    trainer.advance(look=True)  # which raises if the loss is not finite
                    whole = sum(seconds.values())
                    part.add(
                        f"{experiment}: {name}",
                        experiment=experiment,
                        optimizer=name,
                        images_per_second=task.batch_size / whole,
                        milliseconds_per_step={key: 1e3 * value for key, value in seconds.items()},
                        optimizer_share=seconds["optimizer"] / whole,
                        peak_memory_bytes=peak_memory_bytes(part.device),
                        parameters=parameters(bed.model),
                        images_per_step=task.batch_size,
                        steps=steps,
                    )


if __name__ == "__main__":
    sys.exit(main(measure))
