"""FSDP2: `torchrun --nproc-per-node 2 examples/fsdp2.py`. Shard the model first, then build the optimizer."""

import os

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from amuse_optim import AMUSE, averaged, averaged_state_dict, param_groups

gpu = torch.cuda.is_available()
if gpu:
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
distributed.init_process_group("nccl" if gpu else "gloo")
rank, size = distributed.get_rank(), distributed.get_world_size()
device = "cuda" if gpu else "cpu"

torch.manual_seed(0)
inputs = torch.randn(512, 8, device=device)
targets = inputs[:, :2] * inputs[:, 2:4]
model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 63), nn.GELU(), nn.Linear(63, 2)).to(device)
mesh = init_device_mesh(device, (size,))
for layer in model[::2]:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = AMUSE(param_groups(model), lr=0.01, warmup_steps=20, t0_steps=80)

own = torch.Generator().manual_seed(rank)
for _ in range(200):
    rows = torch.randint(0, 448, (64 // size,), generator=own).to(device)
    optimizer.zero_grad()
    nn.functional.mse_loss(model(inputs[rows]), targets[rows]).backward()
    optimizer.step()  # each matrix is orthogonalized by one rank; state stays sharded

with averaged(optimizer), torch.no_grad():
    loss = nn.functional.mse_loss(model(inputs[448:]), targets[448:])
assert loss < 0.5 * targets[448:].square().mean()
whole = {name: tensor.full_tensor() for name, tensor in averaged_state_dict(model, optimizer).items()}
if rank == 0:
    print(f"{size} processes, held-out loss at x {loss.item():.4f}, {len(whole)} tensors to ship")
distributed.destroy_process_group()
