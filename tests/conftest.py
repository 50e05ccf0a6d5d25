"""One torch thread in every test: small programs slow down badly when two processes share the cores."""

import torch

torch.set_num_threads(1)
