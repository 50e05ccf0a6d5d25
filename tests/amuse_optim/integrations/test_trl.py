"""TRL's trainers inherit the Trainer of transformers, and AMUSE with it."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import tokenizers
import torch
import transformers
import trl

from amuse_optim import averaged_state_dict
from amuse_optim.integrations.transformers import AMUSECallback, AMUSEFactory
from tests.amuse_optim.integrations import tiny_trainer as tiny

WORDS = 50


def fine_tuning(folder: Path) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
    )
    words = tokenizers.models.WordLevel({"pad": 0} | {f"w{i}": i for i in range(1, WORDS)}, unk_token="pad")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), pad_token="pad", eos_token="pad"
    )
    data = datasets.Dataset.from_list([{"input_ids": list(range(i + 1, i + 9))} for i in range(24)])
    return trl.SFTTrainer(
        transformers.LlamaForCausalLM(config),
        trl.SFTConfig(
            str(folder),
            max_steps=8,
            save_steps=3,
            eval_strategy="steps",
            eval_steps=2,
            per_device_train_batch_size=4,
            per_device_eval_batch_size=24,
            warmup_steps=0.25,
            lr_scheduler_type="constant",
            bf16=False,
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
            report_to=[],
        ),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
        optimizer_cls_and_kwargs=(AMUSEFactory, {"lr": 0.02}),
        callbacks=[AMUSECallback()],
    )


@pytest.mark.requirement("B9")
@pytest.mark.filterwarnings("ignore")  # of trl and what it imports
def test_fine_tuning_saves_x_and_resumes_with_the_same_bits(tmp_path: Path) -> None:
    whole = fine_tuning(tmp_path)
    whole.train()
    last = tiny.saved(tmp_path / "checkpoint-8")
    evaluated = whole.state.log_history[-2]["eval_loss"]
    with torch.no_grad():
        rows = torch.tensor([list(range(i + 1, i + 9)) for i in range(24)])
        assert whole.model.eval()(input_ids=rows, labels=rows).loss.item() == pytest.approx(
            evaluated, rel=1e-5
        )

    resumed = fine_tuning(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert tiny.same(tiny.saved(tmp_path / "checkpoint-8"), last)
    for trainer in (whole, resumed):
        trainer.optimizer.train()
        assert tiny.same(averaged_state_dict(trainer.model, trainer.optimizer), last)
        assert not tiny.same(tiny.weights(trainer.model), last)
    assert tiny.same(tiny.weights(resumed.model), tiny.weights(whole.model))
