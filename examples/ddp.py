"""DistributedDataParallel: `torchrun --nproc-per-node 2 examples/ddp.py`."""

import os

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from amuse_optim import AMUSE, averaged, averaged_state_dict, param_groups

gpu = torch.cuda.is_available()
distributed.init_process_group("nccl" if gpu else "gloo")
rank, size = distributed.get_rank(), distributed.get_world_size()
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")

torch.manual_seed(0)
inputs = torch.randn(512, 8, device=device)
targets = inputs[:, :2] * inputs[:, 2:4]
network = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 2))
model = DistributedDataParallel(network.to(device))
# With the process group each rank orthogonalizes its share of the matrices and sends the others the results.
world = distributed.group.WORLD
optimizer = AMUSE(param_groups(model), lr=0.01, warmup_steps=20, t0_steps=80, process_group=world)

own = torch.Generator().manual_seed(rank)  # every process has rows of its own
for _ in range(200):
    rows = torch.randint(0, 448, (64 // size,), generator=own).to(device)
    optimizer.zero_grad()
    nn.functional.mse_loss(model(inputs[rows]), targets[rows]).backward()  # gradients are averaged
    optimizer.step()

with averaged(optimizer), torch.no_grad():  # on every rank: no communication, the same bits
    loss = nn.functional.mse_loss(model(inputs[448:]), targets[448:])
losses = [torch.empty_like(loss) for _ in range(size)]
distributed.all_gather(losses, loss)
assert all(other == loss for other in losses)
assert loss < 0.5 * targets[448:].square().mean()
if rank == 0:
    to_ship = averaged_state_dict(network, optimizer)  # without DDP's prefix
    print(f"{size} processes, held-out loss at x {loss.item():.4f}, {len(to_ship)} tensors to ship")
distributed.destroy_process_group()
