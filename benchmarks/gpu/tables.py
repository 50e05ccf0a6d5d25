"""Tables of the records of GPUs: printed after a run, and quoted by docs/performance.md.

python -m benchmarks.gpu.tables       # writes them into docs/performance.md
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import PARTS, RECORDS, ROOT, SUMMARY
from benchmarks.gpu.runner import read

PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- python -m benchmarks.gpu.tables writes from here -->", "<!-- to here -->"
NOTHING = "Nothing has been run on a GPU: there is no record yet."

Result = Mapping[str, Any]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a table in Markdown, numbers to the right."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None, form: str = ".3g") -> str:
    return "" if value is None else format(value, form)


def _gibibytes(count: int | None) -> str:
    return "" if count is None else format(count / 2**30, ".1f")


def _checks(content: Result, results: Sequence[Result]) -> str:  # noqa: ARG001
    rows = [
        [
            each["what"],
            *(str(each[name]) for name in ("passed", "failed", "skipped")),
            "" if each["ended"] else "cut",
        ]
        for each in results
    ]
    failed = [
        f"- `{test}`: {reason}"
        for each in results
        for test, reason in each["not_passed"].items()
        if not reason.startswith("Skipped")
    ]
    lists = ["\n".join(["Failed:", "", *failed])] if failed else []
    return "\n\n".join([table(["tests", "passed", "failed", "skipped", ""], rows), *lists])


def _steps(content: Result, results: Sequence[Result]) -> str:
    ceilings = content["ceilings"]
    first = (
        f"Ceilings measured on the spot: copy {ceilings['copy_bytes_per_second'] / 1e9:,.0f} GB/s, bfloat16 "
        f"product {ceilings['flops_per_second'] / 1e12:,.0f} TFLOP/s. The share is that of the time these "
        "leave a step at best.\n\n"
    )
    rows = [
        [
            f"{each['size']}: {each['optimizer']}",
            _number(each["milliseconds"]),
            _number(each["ratio_to_amuse"], ".2f"),
            _number(each["launches"], ",d"),
            _number(each["share_of_floor"], ".0%"),
            _number(each["state_bytes_per_parameter"], ".1f"),
            _number(each["extra_bytes_per_parameter"], ".2f"),
        ]
        for each in results
        if "size" in each
    ]
    header = ("step", "ms", "time / AMUSE", "launches", "share", "state B/parameter", "extra B/parameter")
    return first + table(header, rows)


def _pretraining(content: Result, results: Sequence[Result]) -> str:
    first = (
        f"{content['parameters'] / 1e6:,.0f} M parameters, {content['tokens_per_step']:,} tokens a step, "
        f"{content['precision']}{', compiled' if content['compiled'] else ''}:\n\n"
    )
    rows = [
        [
            each["what"],
            _number(each["tokens_per_second"], ",.0f"),
            _number(each["model_flops_utilization"], ".1%"),
            _number(each["optimizer_share"], ".1%"),
            _number(sum(each["milliseconds_per_step"].values()), ".1f"),
            _number(each["milliseconds_per_step"]["optimizer"], ".2f"),
            _gibibytes(each["peak_memory_bytes"]),
        ]
        for each in results
    ]
    header = ["pretraining", "tokens/s", "MFU", "optimizer", "ms a step", "ms optimizer", "peak GiB"]
    return first + table(header, rows)


def _images(content: Result, results: Sequence[Result]) -> str:  # noqa: ARG001
    rows = [
        [
            each["what"],
            _number(each["images_per_second"], ",.0f"),
            _number(each["optimizer_share"], ".1%"),
            _gibibytes(each["peak_memory_bytes"]),
        ]
        for each in results
    ]
    return table(["images, amp-bf16, channels_last", "images/s", "optimizer", "peak GiB"], rows)


def _anytime(content: Result, results: Sequence[Result]) -> str:
    state = [
        f" {each['runs']} runs are done, at least {each['missing_at_least']} are missing."
        for each in results
        if each["what"] == "all sittings"
    ]
    first = (
        f"Validation loss in nats (seeds) after so many steps, {content['parameters'] / 1e6:,.0f} M "
        f"parameters on generated tokens, {content['tokens_per_step']:,} a step; the best of the optimizers "
        "that are told where to end, in bold, is the envelope. Then the differences to it over paired seeds: "
        f"below 0 is better. [records/gpu/anytime](../records/gpu/anytime) has all runs.{''.join(state)}"
    )
    return "\n\n".join([first, *content["tables"]])


LAYOUTS: Mapping[str, Callable[[Result, Sequence[Result]], str]] = {
    "checks": _checks,
    "steps": _steps,
    "pretraining": _pretraining,
    "images": _images,
    "anytime": _anytime,
}


def tables(folder: Path) -> str:
    """Return the tables of one record, and what is missing of it."""
    summary = read(folder / SUMMARY)
    name = f"{summary.get('card')}, torch {summary.get('torch')}, CUDA {summary.get('cuda')}"
    blocks = [f"### {name}, Python {summary.get('python')}, {summary.get('date')}"]
    absent = []
    for part in PARTS:
        content = read(folder / f"{part.name}.json")
        results = [each for each in content.get("results", []) if "failure" not in each]
        if results:
            blocks.append(LAYOUTS[part.name](content, results))
        outcome = summary.get("parts", {}).get(part.name, {"status": "not run", "reason": ""})
        if outcome["status"] != "finished":
            absent.append(f"- {part.name}: {outcome['status']} {outcome.get('reason', '')}".rstrip())
        absent += [f"- {part.name}: {failure}" for failure in outcome.get("failures", [])]
    if absent:
        blocks.append("\n".join(["Not measured:", "", *absent]))
    return "\n\n".join(blocks)


def quoted(records: Path) -> str:
    """Return what the page quotes: the tables of all records of GPUs, the newest first."""
    folders = sorted((path.parent for path in records.glob(f"*/{SUMMARY}")), reverse=True)
    real = [folder for folder in folders if _is_real(read(folder / SUMMARY))]
    return "\n\n".join(tables(folder) for folder in real) or NOTHING


def _is_real(summary: Result) -> bool:
    return summary.get("device") == "cuda" and not summary.get("tiny")


def with_quotes(page: str, records: Path) -> str:
    """Return the page with the tables in their place."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{quoted(records)}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_quotes(PAGE.read_text(), RECORDS))
    sys.exit(0)
