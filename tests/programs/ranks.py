"""What the processes of test_parallel.py do: `torchrun ... -m tests.programs.ranks FOLDER CASE ...`."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from amuse_lab import cli
from amuse_lab.config import RunConfig
from amuse_lab.launch import exit_rank
from amuse_lab.progress import Silence
from amuse_lab.recipes.lm import shakespeare
from amuse_lab.tasks.lm.bundled import BUNDLED
from amuse_lab.tasks.lm.model import ModelConfig
from amuse_lab.tasks.lm.task import LanguageModelConfig
from amuse_lab.train import train
from amuse_lab.trainer import Trainer
from tests.amuse_lab.tiny_text import tiny_text

# A vocabulary and a width that four processes cannot divide into equal shards.
MODEL = ModelConfig(n_embd=12, n_head=2, n_layer=1, context=16, mlp_multiple=2, vocabulary=257, tied=False)
SMALL = [
    *("--task.data", "tiny", "--task.batch", "2", "--task.eval-windows", "3", "--task.sample-length", "2"),
    *("--task.model.n-embd", "8", "--task.model.n-head", "1", "--task.model.context", "16", "--steps", "2"),
]


def config(case: str, folder: Path) -> RunConfig:
    """A case is an optimizer, how processes share the work, and what is special: `adamw/fsdp/stopped`.

    "stopped" is told to end after step 2, "resumed" goes on with it.
    """
    optimizer, parallel, *_ = case.split("/")
    recipe = shakespeare(optimizer)
    return replace(
        recipe,
        task=LanguageModelConfig(model=MODEL, data="tiny", batch=8, eval_windows=7, sample_length=5),
        optimizer=replace(recipe.optimizer, warmup_steps=2),
        parallel=parallel,
        steps=4,
        eval_every=2,
        log_every=1,
        clip=0.5,
        micro_batch=1,
        threads=1,
        runs=folder / case.replace("/", "-"),
    )


def stop_one_process(at: int) -> None:
    """From now on the last process is told to end in the middle of a step."""
    usual = Trainer.advance

    def advance(self: Trainer, *, look: bool) -> None:
        usual(self, look=look)
        if self.step == at and os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
            signal.raise_signal(signal.SIGTERM)

    Trainer.advance = advance


def main() -> None:
    BUNDLED["tiny"] = tiny_text()
    folder = Path(sys.argv[1])
    os.environ["AMUSE_LAB_DATA"] = str(folder / "data")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for case in sys.argv[2:]:
        result = folder / f"{case.replace('/', '-')}-{os.environ['RANK']}"
        if case == "command":
            status = cli.main(["train", "shakespeare", "--runs", str(folder / case), *SMALL])
            result.write_text(f"status {status}")
            continue
        wanted = config(case, folder)
        resume = None
        if case.endswith("/stopped"):
            stop_one_process(at=2)
        if case.endswith("/resumed"):
            wanted = config(case.replace("resumed", "stopped"), folder)
            (resume,) = (wanted.runs / "shakespeare").iterdir()
        outcome = train(wanted, Silence(), resume=resume)
        result.write_text(f"step {outcome.summary['steps']}, signal {outcome.signal}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    exit_rank(0)
