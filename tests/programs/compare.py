"""`amuse-lab compare` with the studies of seconds: `python -m tests.programs.compare small|endless ...`.

With STEP_SECONDS in the environment every training step takes so much longer, and is printed.
"""

import os
import sys
import time

from amuse_lab import cli
from amuse_lab.studies import catalogue
from amuse_lab.trainer import Trainer
from tests.amuse_lab.studies import small

if "STEP_SECONDS" in os.environ:  # in the workers too, which read this module
    advance = Trainer.advance

    def advance_slowly(self: Trainer, *, look: bool) -> None:
        advance(self, look=look)
        print("step", flush=True)
        time.sleep(float(os.environ["STEP_SECONDS"]))

    Trainer.advance = advance_slowly  # type: ignore[method-assign]

if __name__ == "__main__":
    catalogue.STUDIES = {"small": small.study, "endless": small.endless}
    sys.exit(cli.main(["compare", *sys.argv[1:]]))
