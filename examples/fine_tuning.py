"""Fine-tuning with the Trainer of transformers: x is evaluated and saved, and a checkpoint is gone on from.

The model is built from a config, so that nothing is downloaded; `from_pretrained` would stand in its place.
"""

import tempfile
from pathlib import Path

import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from amuse_optim.integrations.transformers import AMUSECallback, AMUSEFactory

set_seed(0)
folder = Path(tempfile.mkdtemp())


def rows(number: int) -> list[dict[str, torch.Tensor]]:
    """Sequences of 16 tokens; the label says whether token 7 is among them."""
    tokens, labels = torch.randint(8, 64, (number, 16)), torch.arange(number) % 2
    tokens[labels == 1, torch.randint(0, 16, (int(labels.sum()),))] = 7
    return [{"input_ids": row, "labels": label} for row, label in zip(tokens, labels, strict=True)]


def trainer(epochs: int) -> Trainer:
    """A Trainer of a new model; the two last arguments are what AMUSE needs."""
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        eval_strategy="epoch",
        save_strategy="epoch",
        lr_scheduler_type="constant",
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to=[],
    )
    return Trainer(
        BertForSequenceClassification(config),
        arguments,
        train_dataset=training,
        eval_dataset=held_out,
        compute_metrics=lambda answers: {"accuracy": (answers[0].argmax(1) == answers[1]).mean()},
        optimizer_cls_and_kwargs=(AMUSEFactory, {"lr": 0.01, "warmup_steps": 10, "weight_decay": 0.1}),
        callbacks=[AMUSECallback()],
    )


training, held_out = rows(1024), rows(256)
trainer(epochs=4).train()
longer = trainer(epochs=8)  # in another process, say
longer.train(resume_from_checkpoint=True)
accuracy = longer.evaluate()["eval_accuracy"]  # at x
longer.save_model(str(folder / "final"))

shipped = AutoModelForSequenceClassification.from_pretrained(folder / "final").eval()
with torch.no_grad():
    answers = shipped(torch.stack([row["input_ids"] for row in held_out])).logits.argmax(1)
right = (answers == torch.stack([row["labels"] for row in held_out])).float().mean().item()
print(f"accuracy at x {accuracy:.4f}, of the saved model {right:.4f}")
assert right == accuracy > 0.9
