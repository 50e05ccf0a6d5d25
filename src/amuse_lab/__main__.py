"""`python -m amuse_lab`."""

import sys

from amuse_lab.cli import main

sys.exit(main())
