"""LoRA with peft: adapters are low-rank factors; here A and B get AdamW's direction, by one override."""

import peft
import torch
from torch import nn

from amuse_optim import AMUSE, averaged, averaged_state_dict, param_groups, report

torch.manual_seed(0)
inputs = torch.randn(512, 16)
base = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 4))
with torch.no_grad():
    targets = base(inputs).roll(1, dims=1)  # what the frozen model says, in other places
model = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0", "2", "4"]))

groups = param_groups(model, overrides=[("*.lora_*", "adamw")])  # leave the override out for Muon
print(report(groups))
optimizer = AMUSE(groups, lr=0.02, warmup_steps=20, t0_steps=80)


@torch.no_grad()
def held_out_loss() -> float:
    """Mean squared error on the rows that are not trained on."""
    return nn.functional.mse_loss(model(inputs[448:]), targets[448:]).item()


before = held_out_loss()
for _ in range(200):
    rows = torch.randint(0, 448, (64,))
    optimizer.zero_grad()
    nn.functional.mse_loss(model(inputs[rows]), targets[rows]).backward()
    optimizer.step()
with averaged(optimizer):
    after = held_out_loss()
adapters = {name: tensor for name, tensor in averaged_state_dict(model, optimizer).items() if "lora_" in name}
print(f"held-out loss {before:.4f} -> {after:.4f} at x; {len(adapters)} tensors to ship")
assert after < 0.5 * before
assert len(adapters) == 6
