"""Settings for every test."""

import torch
from hypothesis import settings

# Small programs slow down badly when two processes share the cores.
torch.set_num_threads(1)

# The same examples on every run, and no time limit for one: machines differ.
settings.register_profile("gate", deadline=None, derandomize=True)
settings.load_profile("gate")
