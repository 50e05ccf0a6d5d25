"""The tables of docs/scaling.md, from records/scaling.json."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.gpu.tables import table

Row = dict[str, Any]


def tables(record: dict[str, list[Row]]) -> str:
    """All of them, each under the question that it answers."""
    rows = record["planned"]
    sharded = [row for row in rows if row["way"] == "fsdp"]
    replicated = [row for row in rows if row["way"] == "ddp"]
    return "\n\n".join(
        [
            "### Counted",
            counted_table(record["counted"]),
            "### How near is the rank with the most multiply-adds to the limit?",
            by_ranks("FSDP2", sharded, lambda row: f"{row['most'] / row['limit']:.3f}, {row['limited_by']}"),
            "### How much is sent?",
            "FSDP2: bytes sent by all ranks together, as a multiple of the matrices in bfloat16.",
            by_ranks("FSDP2", sharded, lambda row: _share(row["bytes_sent_all"], row["bytes_of_matrices"])),
            "DDP: bytes sent by the rank that sends most, as a multiple of the matrices in bfloat16.",
            by_ranks("DDP", replicated, lambda row: _share(row["bytes_sent_most"], row["bytes_of_matrices"])),
            "### How does that compare, under FSDP2?",
            "Multiply-adds of the rank with the most (T: 10^12), and bytes sent by the rank that sends most.",
            *(
                compared([row for row in sharded if row["model"] == model])
                for model in dict.fromkeys(row["model"] for row in sharded)
            ),
        ]
    )


def counted_table(rows: Sequence[Row]) -> str:
    """What processes here did in a step."""
    header = [
        "ranks, way",
        "multiply-adds, most of a rank",
        "share of one rank's",
        "MB sent, most of a rank",
        "all-to-alls and all-gathers",
        "all-reduces",
        "ms, fastest of 12",
    ]
    alone = max(each["multiply_adds"] for each in rows[0]["each"])
    lines = []
    for row in rows:
        most = max(each["multiply_adds"] for each in row["each"])
        calls = row["each"][0]["collectives"]
        lines.append(
            [
                f"{row['ranks']}, {row['way']}",
                f"{most / 1e9:.2f} G",
                f"{most / alone:.3f}",
                f"{max(each['bytes_sent'] for each in row['each']) / 1e6:.2f}",
                str(calls.get("all_to_all_single", 0) + calls.get("all_gather", 0)),
                str(calls.get("all_reduce", 0)),
                f"{row['milliseconds']:.0f}",
            ]
        )
    return table(header, lines)


def by_ranks(title: str, rows: Iterable[Row], cell: Callable[[Row], str]) -> str:
    """A table with a line for each model and a column for each number of ranks."""
    lines: dict[str, list[str]] = {}
    columns = []
    for row in rows:
        lines.setdefault(row["model"], [row["model"]]).append(cell(row))
        columns.append(f"{row['ranks']:,} ranks")
    return table([title, *dict.fromkeys(columns)], lines.values())


def compared(rows: Sequence[Row]) -> str:
    """A table of one model, with a line for each way to divide it and a column for each number of ranks."""
    lines = [["owners, here"], ["Dion's rule"], ["torchtitan's rule"], ["gathered everywhere"]]
    for row in rows:
        each_gets = {
            "most": row["multiply_adds"],  # every rank does everything, and sends its shard to all others
            "bytes_sent_most": row["bytes_of_matrices"] * (row["ranks"] - 1) / row["ranks"],
        }
        for line, rule in zip(lines, (row, *row["rules"].values(), each_gets), strict=True):
            line.append(f"{_number(rule['most'] / 1e12)} T, {_number(rule['bytes_sent_most'] / 1e9)} GB")
    return table([rows[0]["model"], *(f"{row['ranks']:,} ranks" for row in rows)], lines)


def _share(sent: int, matrices: int) -> str:
    return f"{sent / matrices:.2f}"


def _number(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"
