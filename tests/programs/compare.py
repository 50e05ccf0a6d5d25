"""`amuse-lab compare` with the studies of seconds: `python -m tests.programs.compare small|endless ...`."""

import sys

from amuse_lab import cli
from amuse_lab.studies import catalogue
from tests.amuse_lab.studies import small

if __name__ == "__main__":
    catalogue.STUDIES = {"small": small.study, "endless": small.endless}
    sys.exit(cli.main(["compare", *sys.argv[1:]]))
