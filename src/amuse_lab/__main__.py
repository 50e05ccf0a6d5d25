"""`amuse-lab`, and `python -m amuse_lab`."""

from amuse_lab.cli import main
from amuse_lab.launch import exit_rank


def run() -> None:
    """Run the command of this process and end the process with its status."""
    exit_rank(main())


if __name__ == "__main__":
    run()
