"""Routing on architectures as people have them, built small and without a download."""

import re
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

from amuse_optim import AMUSE, param_groups

SMALL: dict[str, Any] = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}


def gpt2(tied: bool) -> nn.Module:
    config = transformers.GPT2Config(
        n_embd=16, n_head=2, n_layer=1, vocab_size=40, n_positions=12, tie_word_embeddings=tied
    )
    return transformers.GPT2LMHeadModel(config)


def llama(tied: bool) -> nn.Module:
    config = transformers.LlamaConfig(
        **SMALL, intermediate_size=24, vocab_size=40, num_key_value_heads=1, tie_word_embeddings=tied
    )
    return transformers.LlamaForCausalLM(config)


def bert(tied: bool) -> nn.Module:
    config = transformers.BertConfig(**SMALL, intermediate_size=24, vocab_size=40, tie_word_embeddings=tied)
    return transformers.BertForMaskedLM(config)


def bert_classifier(tied: bool) -> nn.Module:  # noqa: ARG001 - it has no head to tie
    config = transformers.BertConfig(**SMALL, intermediate_size=24, vocab_size=40)
    return transformers.BertForSequenceClassification(config)


def t5(tied: bool) -> nn.Module:
    config = transformers.T5Config(
        d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, vocab_size=40, tie_word_embeddings=tied
    )
    return transformers.T5ForConditionalGeneration(config)


def vit(tied: bool) -> nn.Module:  # noqa: ARG001 - it has no embeddings to tie
    config = transformers.ViTConfig(**SMALL, intermediate_size=24, image_size=16, patch_size=8, num_labels=3)
    return transformers.ViTForImageClassification(config)


# The parameters that get Muon, as patterns of their full names; everything else gets AdamW's direction.
MUON: dict[Callable[[bool], nn.Module], list[str]] = {
    gpt2: [r"transformer\.h\.0\.attn\.c_(attn|proj)\.weight", r"transformer\.h\.0\.mlp\.c_(fc|proj)\.weight"],
    llama: [
        r"model\.layers\.0\.self_attn\.[qkvo]_proj\.weight",
        r"model\.layers\.0\.mlp\.(gate|up|down)_proj\.weight",
    ],
    bert: [
        r"bert\.encoder\.layer\.0\.attention\.self\.(query|key|value)\.weight",
        r"bert\.encoder\.layer\.0\.(attention\.output|intermediate|output)\.dense\.weight",
        r"cls\.predictions\.transform\.dense\.weight",
    ],
    bert_classifier: [
        r"bert\.encoder\.layer\.0\.attention\.self\.(query|key|value)\.weight",
        r"bert\.encoder\.layer\.0\.(attention\.output|intermediate|output)\.dense\.weight",
        r"bert\.pooler\.dense\.weight",
    ],
    t5: [
        r"(encoder|decoder)\.block\.0\.layer\.\d\.(SelfAttention|EncDecAttention)\.[qkvo]\.weight",
        r"(encoder|decoder)\.block\.0\.layer\.\d\.DenseReluDense\.w[io]\.weight",
    ],
    vit: [],  # written out below: names differ between versions of the package
}
COUNTS = {gpt2: 4, llama: 7, bert: 7, bert_classifier: 7, t5: 4 + 2 + 8 + 2}


def directions(model: nn.Module, **options: Any) -> dict[str, str]:
    return {name: g["direction"] for g in param_groups(model, **options) for name, _ in g["params"]}


@pytest.mark.requirement("C2")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("build", [gpt2, llama, bert, bert_classifier, t5], ids=lambda f: f.__name__)
def test_c02_transformers_models(build: Callable[[bool], nn.Module], tied: bool) -> None:
    model = build(tied)
    found = directions(model)
    expected = {
        name: "muon" if any(re.fullmatch(pattern, name) for pattern in MUON[build]) else "adamw"
        for name, _ in model.named_parameters()
    }
    assert found == expected
    assert list(found.values()).count("muon") == COUNTS[build]


@pytest.mark.requirement("C2")
def test_c02_vision_transformer() -> None:
    found = directions(vit(tied=False))
    for name, parameter in vit(tied=False).named_parameters():
        hidden = parameter.ndim >= 2 and not re.search("cls_token|position_embeddings|classifier", name)
        assert found[name] == ("muon" if hidden else "adamw"), name
    assert list(found.values()).count("muon") == 7  # patches, query, key, value, output, two of the MLP


@pytest.mark.requirement("C6")
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own
def test_c06_lora_adapted_llama() -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(llama(tied=True), config)
    found = directions(model)
    assert len(found) == 4
    assert set(found.values()) == {"muon"}
    chosen = directions(model, overrides=[("*.lora_A.*", "adamw")])
    assert {name: d for name, d in chosen.items() if d == "adamw"}.keys() == {
        n for n in found if "lora_A" in n
    }


@pytest.mark.requirement("C2")
@pytest.mark.parametrize("build", MUON, ids=lambda f: f.__name__)
def test_c02_every_model_takes_a_step(build: Callable[[bool], nn.Module]) -> None:
    model = build(True)
    groups = param_groups(model)
    members = [p for g in groups for _, p in g["params"]]
    assert len(members) == len(set(members)) == len(list(model.parameters()))
    optimizer = AMUSE(groups, warmup_steps=2)
    for parameter in members:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


class BasicBlock(nn.Module):
    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 2 * width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(2 * width)
        self.downsample = nn.Sequential(nn.Conv2d(width, 2 * width, 1, stride), nn.BatchNorm2d(2 * width))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, bias=False)
        self.layer1 = nn.Sequential(BasicBlock(8, 2), BasicBlock(16, 2))
        self.fc = nn.Linear(32, 10)


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.Conv2d(8, 8, 3, groups=8, bias=False),
            nn.Conv2d(8, 16, 1, bias=False),
        )
        self.classifier = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))


@pytest.mark.requirement("C2", "C3")
def test_c02_convolutional_networks() -> None:
    assert {n for n, d in directions(ResNet()).items() if d == "muon"} == {
        "conv1.weight",
        "layer1.0.conv1.weight",
        "layer1.0.downsample.0.weight",
        "layer1.1.conv1.weight",
        "layer1.1.downsample.0.weight",
    }
    assert directions(MobileNet()) == {
        "features.0.weight": "muon",
        "features.1.weight": "adamw",
        "features.2.weight": "muon",
        "classifier.0.weight": "muon",
        "classifier.0.bias": "adamw",
        "classifier.2.weight": "adamw",
        "classifier.2.bias": "adamw",
    }


def gpt_oss() -> nn.Module:
    config = transformers.GptOssConfig(
        **SMALL, intermediate_size=24, vocab_size=40, num_key_value_heads=1, head_dim=8, num_local_experts=4
    )
    return transformers.GptOssForCausalLM(config)


def mamba() -> nn.Module:
    config = transformers.MambaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4, time_step_rank=2
    )
    return transformers.MambaForCausalLM(config)


def yolos() -> nn.Module:
    config = transformers.YolosConfig(
        **SMALL, intermediate_size=24, image_size=[16, 16], num_detection_tokens=4, num_labels=5
    )
    return transformers.YolosForObjectDetection(config)


def bert_pretraining() -> nn.Module:
    config = transformers.BertConfig(**SMALL, intermediate_size=24, vocab_size=40)
    return transformers.BertForPreTraining(config)


def xlnet() -> nn.Module:
    config = transformers.XLNetConfig(
        vocab_size=40, d_model=16, n_layer=1, n_head=2, d_inner=24, num_labels=3
    )
    return transformers.XLNetForSequenceClassification(config)


# What has two and more dimensions, is none of torch's embeddings, and must not get Muon.
NO_MATRICES: dict[Callable[[], nn.Module], str] = {
    gpt_oss: r"lm_head\.weight|.*_proj_bias",
    mamba: r".*\.(A_log|conv1d\.weight)",  # the head is the embedding
    yolos: r".*(position_embeddings|_tokens?)|class_labels_classifier\.layers\.2\.weight"
    r"|bbox_predictor\.layers\.2\.weight",
    bert_pretraining: r"cls\.seq_relationship\.weight",
    xlnet: r"logits_proj\.weight|.*(r_[wrs]_bias|seg_embed|mask_emb)",
}


@pytest.mark.requirement("C10", "C11")
@pytest.mark.parametrize("build", NO_MATRICES, ids=lambda build: build.__name__)
def test_c11_heads_and_tables_of_transformers_models(build: Callable[[], nn.Module]) -> None:
    model = build()
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for group in param_groups(model):
        for name, parameter in group["params"]:
            if parameter.ndim >= 2 and id(parameter) not in tables:
                expected = "adamw" if re.fullmatch(NO_MATRICES[build], name) else "muon"
                assert group["direction"] == expected, name


@pytest.mark.requirement("C11")
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own
def test_c11_adapters_of_embeddings_and_trained_rows() -> None:
    adapted = peft.get_peft_model(llama(tied=False), peft.LoraConfig(r=4, target_modules=["embed_tokens"]))
    assert set(directions(adapted).values()) == {"adamw"}
    rows = peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[1, 2])
    found = directions(peft.get_peft_model(llama(tied=False), rows))
    assert {name for name, d in found.items() if d == "adamw"} == {n for n in found if "tokens_delta" in n}
    assert len(found) == 3
