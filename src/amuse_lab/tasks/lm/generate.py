"""Text from a trained model."""

import torch
from torch import Tensor

from amuse_lab.tasks.lm.model import Llama


@torch.no_grad()
def generate(
    model: Llama, prompt: Tensor, *, length: int, temperature: float, generator: torch.Generator
) -> Tensor:
    """Continue a prompt, one sampled token at a time, each seeing at most `context` before it.

    Args:
        model: Language model in eval mode.
        prompt: Tokens, shape (time,), time at least 1.
        length: Number of tokens to add.
        temperature: Divides the logits; positive. Below 1 prefers likely tokens.
        generator: On the CPU, where the sampling happens on every device.

    Returns:
        Prompt and continuation, shape (time + length,).
    """
    tokens = prompt
    for _ in range(length):
        logits = model(tokens[None, -model.config.context :])[0, -1]
        probabilities = torch.softmax(logits.float().cpu() / temperature, dim=-1)
        following = torch.multinomial(probabilities, 1, generator=generator)
        tokens = torch.cat((tokens, following.to(tokens.device)))
    return tokens
