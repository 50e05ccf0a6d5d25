"""The table of the routing sweep: a line for every family of models, or for families that are alike."""

import re
from collections import defaultdict
from typing import Any

Records = list[dict[str, Any]]

HEAD = """# Which parameter gets Muon, in three packages

`param_groups(model)` on every model that timm, torchvision and transformers build from a config without a
download, on the meta device, with {labels} labels where a number can be asked for. Models that are not built
need other packages or settings that their default configs leave open. Written by
`benchmarks/routing_sweep.py`; the verdicts are ours, from names and shapes and, where these leave a doubt,
from the models' code.

{versions}.

{totals}

Heads are the layers that make the output and therefore get the auxiliary direction. "Tables and the like"
are parameters of two and more dimensions that lie in no layer and get it as well; embeddings, norms and
depthwise kernels always do and are left out. To be judged are hidden matrices that lie in no layer of
torch's, have fewer than five rows, or as many rows or columns as there are labels, or rows in a large
embedding. Names are the last parts of full names, a star stands for numbers. Families that are alike share
a line. Models without a head are trunks, but for those whose outputs are vectors or products with an
embedding.
"""

# What was found when the code of the models was read: a pattern of what is to be judged, and the verdict.
VERDICTS = [
    (r"experts?\..* stacked|linear stacked", "experts, each a matrix: right"),
    (r"(router|gate) free", "a router is a matrix: right"),
    (r"atom_decoder\.output_linear", "it makes coordinates: use overrides"),
    (r"hc_fn|_hc\.fn|block_inject|altup", "mixes residual streams: a matrix, with few rows"),
    (r"rel_attn\.|r_kernel", "one matrix (in, heads, width): right"),
    (r"(gate|proj)_weight stacked", "a matrix for each head: right"),
    (r"projection|projection_weight free|input_matrix", "a projection: right"),
    (r"(dense|key|query|value) free", "a linear layer of its own kind: right"),
    (r"predictions\.dense as many", "a part of the output matrix: use overrides"),
    (r"as many", "a width that is equal by chance: right"),
    (r" 0x", "an empty layer"),
    (r"\dx", "a small hidden layer: right"),
]
# Families where a head is none, or one is missing, and nothing above shows it.
NOTES = {
    ("transformers", "xcodec"): "`fc` is a hidden layer: use overrides",
    ("transformers", "superpoint"): "its last convolutions are not known as heads: use overrides",
    ("transformers", "clipseg"): "`fc2` is hidden, the output is a transposed convolution: use overrides",
    ("transformers", "timesfm"): "`output_layer` beside it makes the output too: use overrides",
    ("transformers", "timesfm2_5"): "`output_layer` beside it makes the output too: use overrides",
}


def table(records: Records, versions: str, labels: int) -> str:
    """The page, from the facts of every model."""
    families: dict[tuple[str, str], Records] = defaultdict(list)
    for record in records:
        families[record["package"], record["family"]].append(record)
    alike: dict[tuple[str, ...], list[tuple[str, int, int]]] = defaultdict(list)
    for (package, family), models in sorted(families.items()):
        built = [model for model in models if "error" not in model]
        columns = _columns(built, NOTES.get((package, family)))
        alike[(package, *columns)].append((family, len(built), len(models) - len(built)))
    lines = [HEAD.format(versions=versions, labels=labels, totals=_totals(records, families))]
    package = ""
    for (of, *columns), members in sorted(alike.items(), key=lambda item: (item[0][0], item[1][0][0])):
        if of != package:
            package = of
            lines += [
                f"\n## {of}\n",
                "| families | models | heads | tables and the like | to be judged | verdict |",
                "|---|---|---|---|---|---|",
            ]
        names = ", ".join(name for name, _, _ in members)
        built, failed = sum(n for _, n, _ in members), sum(n for _, _, n in members)
        count = f"{built}" + (f" ({failed} not built)" if failed else "")
        lines.append(f"| {names} | {count} | {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def _totals(records: Records, families: dict[tuple[str, str], Records]) -> str:
    lines = [
        "| package | families | models | built | with a head | of these guessed |",
        "|---|---|---|---|---|---|",
    ]
    for package in sorted({record["package"] for record in records}):
        mine = [record for record in records if record["package"] == package]
        built = [record for record in mine if "error" not in record]
        number = sum(of == package for of, _ in families)
        heads = sum(bool(record["heads"]) for record in built)
        guessed = sum(record["guessed"] for record in built)
        lines.append(f"| {package} | {number} | {len(mine)} | {len(built)} | {heads} | {guessed} |")
    return "\n".join(lines)


def _columns(built: Records, note: str | None) -> tuple[str, str, str, str]:
    """Heads, tables, what is to be judged, verdict."""
    heads = {head for model in built for head in model["heads"]}
    tables = {_last(name) for model in built for name in model["auxiliary"]}
    doubts = {doubt for model in built for doubt in model["doubts"]}
    verdicts = {_verdict(doubt) for doubt in doubts} or {"right" if built else "not built"}
    if note:
        verdicts = verdicts - {"right"} | {note}
    return (
        _listed({_last(head) for head in heads}),
        _listed(tables),
        _listed({_unsized(doubt) for doubt in doubts}),
        "; ".join(sorted(verdicts)),
    )


def _unsized(doubt: str) -> str:
    """Only the number of rows of a shape, as a model has many."""
    return re.sub(r" (\d+)x[\dx]+", r" \1 rows", doubt)


def _last(name: str) -> str:
    """The last part of a name that is no number and says more than "weight"."""
    parts = [part for part in name.split(".") if part not in ("*", "weight")]
    return parts[-1] if parts else name


def _verdict(doubt: str) -> str:
    return next((verdict for pattern, verdict in VERDICTS if re.search(pattern, doubt)), "not judged")


def _listed(names: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "none"
