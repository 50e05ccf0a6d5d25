"""Which runs a process makes, where several processes make those of one benchmark."""

import argparse
from collections.abc import Sequence


def read(description: str, words: Sequence[str] | None = None) -> slice:
    """Read FIRST and EVERY from the command line, as the slice of the list of all runs.

    Args:
        description: What the benchmark does, for `--help`.
        words: The command line; None takes the one of this process.

    Raises:
        SystemExit: After `--help`, and for other words.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", nargs="?", type=int, default=0, help="number of this process, from 0")
    parser.add_argument("every", nargs="?", type=int, default=1, help="how many processes share the runs")
    given = parser.parse_args(words)
    if not 0 <= given.first < given.every:
        parser.error(f"FIRST must be from 0 to EVERY - 1, got {given.first} of {given.every}")
    return slice(given.first, None, given.every)
