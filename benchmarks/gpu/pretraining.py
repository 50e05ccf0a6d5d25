"""Pretraining steps of the published 124 M run, compiled, under bfloat16 autocast, on generated tokens.

AMUSE with and without its Triton kernel, AdamW and Muon, each with the settings of its recipe: tokens per
second, model-FLOPs utilization, where the time of a step goes, and the largest memory. The optimizer's time
has the clipping of the gradient in it, which the recipes ask for.
"""

import sys
from dataclasses import fields, replace

from amuse_lab.config import RunConfig
from amuse_lab.environment import peak_flops, peak_memory_bytes
from amuse_lab.recipes import find
from amuse_lab.tasks.lm.model import ModelConfig
from amuse_lab.tasks.lm.task import LanguageModelConfig
from amuse_optim.kernels import available
from benchmarks.gpu.part import Part, main
from benchmarks.gpu.steps import kernel_switched
from benchmarks.gpu.tokens import GeneratedConfig
from benchmarks.gpu.trainers import Bed, parameters, timed_steps

STEPS, WARMUP = 50, 5
TINY = ModelConfig(n_embd=32, n_head=2, n_layer=1, context=16, vocabulary=256)


def on_generated_tokens(config: RunConfig, *, tiny: bool, **streams: int) -> RunConfig:
    """Return a config of a language model with generated tokens for its text; with a tiny model if asked."""
    assert isinstance(config.task, LanguageModelConfig)
    settings = {field.name: getattr(config.task, field.name) for field in fields(config.task)}
    if tiny:
        settings |= {"model": TINY, "batch": 4}
        config = replace(config, micro_batch=2, compile=False)
    return replace(config, task=GeneratedConfig(**settings, **streams))


def measure(part: Part) -> None:
    """Measure the optimizers one after the other on one compiled model."""
    runs = [("amuse", True), ("adamw", True), ("muon", True)]
    if available(part.device):
        runs.append(("amuse", False))
    recipes = {name: find(f"llama-124m-{name}")() for name, _ in runs}
    first = on_generated_tokens(
        replace(recipes["amuse"], compile=True),
        tiny=part.tiny,
        streams=16 if part.tiny else 512,
        length=256 if part.tiny else 8192,
    )
    bed = Bed(first, part.device)
    part.tell(
        parameters=parameters(bed.model),
        tokens_per_step=bed.task.units_per_step,
        precision=first.precision,
        compiled=first.compile,
        micro_batch=first.micro_batch,
    )
    steps, warmup = (2, 1) if part.tiny else (STEPS, WARMUP)
    for name, kernel in runs:
        what = name if kernel else f"{name} without kernel"
        with part.trying(what), kernel_switched(kernel):
            if part.left < 20:
                raise TimeoutError("no time was left")
            trainer = bed.trainer(replace(first, optimizer=recipes[name].optimizer))
            seconds = timed_steps(trainer, warmup=warmup, steps=steps)
            whole = sum(seconds.values())
            rate = bed.task.units_per_step / whole
            trainer.advance(look=True)  # which raises if the loss is not finite
            peak, operations = peak_flops(part.device), bed.task.flops_per_unit
            part.add(
                what,
                optimizer=name,
                kernel=kernel and available(part.device),
                tokens_per_second=rate,
                model_flops_utilization=rate * operations / peak if peak and operations else None,
                milliseconds_per_step={key: 1e3 * value for key, value in seconds.items()},
                optimizer_share=seconds["optimizer"] / whole,
                peak_memory_bytes=peak_memory_bytes(part.device),
                loss=trainer.losses[-1],
                steps=steps,
            )
            del trainer


if __name__ == "__main__":
    sys.exit(main(measure))
