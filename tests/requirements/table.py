"""What goes wrong in software of this kind, and which tests hold ours to doing better.

A test says `@pytest.mark.requirement("A1")`, with as many rows as it covers. `python -m tests.requirements`
writes docs/requirements.md; `pytest -m requirement` runs these tests and prints the table with results.
"""

import ast
from pathlib import Path

SECTIONS = {
    "A": "Numerical truth",
    "B": "State, checkpoints, lifecycle",
    "C": "Which parameter gets Muon",
    "D": "Speed, memory, scale",
    "E": "Insight",
}

ROWS = {
    "A1": "x is decoded with the very beta that y was built with; the released averaging on request",
    "A2": "a parameter without a gradient keeps its own beta, and its x with it",
    "A3": "bias correction counts each parameter's own steps",
    "A4": "a learning rate raised after the warm-up leaves beta in [beta1, 1)",
    "A5": "warm-ups of 0 and 1 step work with a T0, and without one the error says so",
    "A6": "gradients are read only",
    "A7": "the scale comes from the matrix that was orthogonalized, whatever the layout",
    "A8": "a gradient that is not finite raises by name, skips the whole step, or is ignored",
    "A9": "bfloat16 and float16 parameters train as well as float32 ones; a lean state rounds stochastically",
    "A10": "the dtype of the orthogonalization follows device and parameter; never float16",
    "A11": "orthogonalization does not depend on scale from 1e-30 to 1e30, and zero maps to zero",
    "A12": "evaluating does not change the training, bit for bit",
    "A13": "the learning rate is read at every step: every scheduler of torch works",
    "A14": "learning-rate warm-up, T0 and averaging warm-up are separate; steps or fractions",
    "A15": "schedules may change under way: beta stays below 1, T0 counts from the first weight",
    "A16": "a gradient in the parameter's own memory gives the result of a copy",
    "B1": "checkpoints of either mode load in either mode and continue bit for bit",
    "B2": "loaded options win, with one warning that names the differences",
    "B3": "deepcopy, pickle and weights_only loading work",
    "B4": "torch.distributed.checkpoint keeps everything; nothing moves when it makes state",
    "B5": "float32 state of low-precision parameters survives loading",
    "B6": "the caller's order and names of parameters are kept",
    "B7": "groups can be added at any time and in any mode, with a clock of their own",
    "B8": "forgotten mode calls are impossible or caught: averaged(), mode, attach()",
    "B9": "a real torch optimizer: scaler, closures, hooks, compile, Accelerate, Lightning, Trainer",
    "B10": "BatchNorm statistics are computed anew, exactly; frozen layers and all else stay as they are",
    "B11": "ranks that switch modes stay equal to the bit",
    "B12": "unknown options and values out of range are refused with the nearest valid name",
    "B13": "state dicts load whatever wraps the model; only parameters that changed places are refused",
    "B14": "groups with and without names side by side, numbers of any kind, errors of torch's kinds",
    "B15": "state that was emptied, exchanged or under other keys is found, made anew or refused in words",
    "B16": "evaluations that overlap all see x, and y comes back after the last",
    "B17": "weights edited between steps are noticed, and taken over or projected on request",
    "C1": "parameters without a direction are refused with the fix",
    "C2": "routing by type, identity, the model's own accessors, then name; every parameter once",
    "C3": "convolution kernels of any dimension, memory format and grouping",
    "C4": "fused projections split by rows and by heads",
    "C5": "parameters that a direction cannot take are refused before anything moves",
    "C6": "LoRA adapters are routed by override",
    "C7": "sparse gradients and complex parameters are refused clearly",
    "C8": "weights stored as (in, out), as GPT-2's: recognized, scaled as their transpose, split by columns",
    "C9": "the same groups whatever wraps the model or its parts; FSDP1's flat parameters are refused",
    "C10": "heads of backbones, detectors, pre-training and plain networks; a guess is said in the report",
    "C11": "tables, biases, decay rates, latents and adapters of embeddings are no matrices",
    "D1": "matrices of one shape are orthogonalized together, in batches of a bounded size",
    "D2": "the averaging is one pass of five transfers",
    "D3": "sharded and replicated parameters take the steps of one process, uneven and empty shards included",
    "D4": "with capturable=True nothing waits for the device, and every number keeps its place",
    "D5": "8 bytes of state for each float32 parameter, or 4; less than 1 beside it in a step of 30 million "
    "on a CPU",
    "D6": "importing the library imports torch alone",
    "E1": "telemetry without synchronisation, equal to the stored sequences",
}


def rows_to_tests(root: Path) -> dict[str, list[tuple[str, str]]]:
    """Row to (file, test function), found in the source of the tests."""
    found: dict[str, list[tuple[str, str]]] = {row: [] for row in ROWS}
    for path in sorted(root.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.requirement":
                    for argument in mark.args:
                        row = ast.literal_eval(argument)
                        found[row].append((path.relative_to(root.parent).as_posix(), node.name))
    return found


def markdown(root: Path) -> str:
    """The table as docs/requirements.md holds it."""
    lines = [
        "# Requirements and their tests",
        "",
        "What people run into with optimizers of this kind, what this one does instead, and its tests.",
        "Written by `python -m tests.requirements`; `pytest -m requirement` runs them and prints the rows.",
    ]
    found = rows_to_tests(root)
    for section, title in SECTIONS.items():
        lines += ["", f"## {section}. {title}", "", "| row | what it does | tests |", "|---|---|---|"]
        for row, promise in ROWS.items():
            if row.startswith(section):
                tests = "<br>".join(f"`{name}` ({Path(file).name})" for file, name in found[row])
                lines.append(f"| {row} | {promise} | {tests} |")
    return "\n".join(lines) + "\n"
