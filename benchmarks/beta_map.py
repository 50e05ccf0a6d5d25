"""Where gradients are taken: beta1 and rho of AMUSE, with everything else as in the preset, on a heat map.

python -m benchmarks.beta_map           # makes the runs that are missing, and draws docs/figures/beta-map.png
python -m benchmarks.beta_map 0 2       # makes every second of them, beside another process with 1 2

Question: with the directions, learning rates and decays of `AMUSE.anytime` as `shakespeare-anytime` chose
them, what does AMUSE's own rule give: a constant learning rate, the plain average, and gradients between z
and x? Trials: beta1 0, 0.2, ..., 0.8 by rho 0, 0.4, 0.8, 1.6 (0 alone with beta1 = 0), T0 = 240 as the
study chose for `amuse`, 800 steps, with seed 0, a tuning seed; beside them the preset. Rule: the loss at x
at 200, 400 and 800 steps; no verdict.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amuse_lab.files import replacing
from amuse_lab.studies import drawing
from amuse_lab.studies.catalogue import find
from benchmarks import share
from benchmarks.robustness import PRESET
from benchmarks.single_changes import losses

ROOT = Path(__file__).parents[1]
RECORD, FIGURE = ROOT / "records" / "beta_map.jsonl", ROOT / "docs" / "figures" / "beta-map.png"
STEPS, BETAS, RHOS = 800, (0.0, 0.2, 0.4, 0.6, 0.8), (0.0, 0.4, 0.8, 1.6)
AVERAGED = replace(PRESET, beta1=0.6, rho=0.8, t0_steps=240, r=0.0, lr_decay=0.0, lr_decay_from=None)
CHANGES: tuple[dict[str, float], ...] = (
    {},
    *({"beta1": b, "rho": rho} for b in BETAS for rho in RHOS if b > 0 or rho == 0),
)
"""The preset, and the changes of `AVERAGED`."""


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RECORD.read_text().splitlines()] if RECORD.exists() else []


def draw(lines: list[dict[str, Any]]) -> None:
    """Draw one panel for each horizon: the loss behind the preset's, in thousandths."""
    found = {tuple(line["changes"].values()): line["loss"] for line in lines}
    horizons = list(found[()])
    with drawing.defaults():
        figure, panels = drawing.panels(len(horizons), 2.6)
        for panel, horizon in zip(panels, horizons, strict=True):
            behind = [
                [found.get((b, rho), {}).get(horizon, np.nan) - found[()][horizon] for b in BETAS]
                for rho in RHOS
            ]
            panel.imshow(np.array(behind), cmap="Greys", vmin=0.0, vmax=0.2, aspect="auto", origin="lower")
            for (row, column), value in np.ndenumerate(np.array(behind)):
                if np.isfinite(value):
                    color = "white" if value > 0.1 else "black"
                    text = f"{1000 * value:+.0f}"
                    panel.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
            panel.set_xticks(range(len(BETAS)), [f"{b:g}" for b in BETAS])
            panel.set_yticks(range(len(RHOS)), [f"{rho:g}" for rho in RHOS])
            panel.set_xlabel("beta1")
            panel.set_ylabel("rho")
            panel.grid(False)
            panel.set_title(f"{horizon} steps", loc="left", fontsize=10)
        figure.suptitle("loss minus the preset's, in thousandths", fontsize=10)
        with replacing(FIGURE) as partial:
            figure.savefig(partial, dpi=drawing.DPI, format="png", metadata={"Software": None})


def main() -> None:
    torch.set_num_threads(1)
    mine = share.read(str(__doc__))
    done = [line["changes"] for line in read()]
    for changes in [changes for changes in CHANGES[mine] if changes not in done]:
        study = find("shakespeare-anytime")
        optimizer = replace(AVERAGED, **changes) if changes else PRESET
        config = replace(study.run, optimizer=optimizer, seed=study.tuning_seeds[0], steps=STEPS)
        loss = losses(config, [horizon for horizon in study.horizons if horizon <= STEPS])
        with RECORD.open("a") as file:
            file.write(json.dumps({"changes": changes, "loss": loss}) + "\n")
    draw(read())


if __name__ == "__main__":
    main()
