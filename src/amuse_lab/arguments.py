"""Command lines whose errors are one line each."""

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import Never

from amuse_lab.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Errors are exceptions of one line, and unknown options come with the nearest one."""

    def error(self, message: str) -> Never:
        """Raise what argparse would print before it ends the process.

        Raises:
            ConfigError: Always.
        """
        found = re.fullmatch(r"argument (--[a-z-]+): (.*)", message)
        raise ConfigError(f"{found[1]}: {found[2]}" if found else message)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Read a command line.

        Raises:
            ConfigError: For an unknown option, a missing one or a value of the wrong kind.
            SystemExit: With status 0, after printing the help.
        """
        parsed, unused = self.parse_known_args(arguments)
        if unused:
            named = unused[0].partition("=")[0]
            if not named.startswith("-"):
                raise ConfigError(f"unexpected argument {named!r}")
            nearest = difflib.get_close_matches(named, self._option_string_actions, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "--help lists the options"
            raise ConfigError(f"unknown option {named}; {hint}")
        return parsed
