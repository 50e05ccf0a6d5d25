"""`amuse-lab compare` with the study of seconds among the studies: `python -m tests.programs.compare ...`."""

import sys

from amuse_lab import cli
from amuse_lab.studies import catalogue
from tests.amuse_lab.studies.small import study

if __name__ == "__main__":
    catalogue.STUDIES = {"small": study}
    sys.exit(cli.main(["compare", "small", *sys.argv[1:]]))
