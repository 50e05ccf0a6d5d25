"""A trained language model as a folder that the package `transformers` loads as its own Llama."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from amuse_lab.errors import DataError, RecordError, require
from amuse_lab.files import check_is_file, new_folder
from amuse_lab.tasks.lm.bundled import BUNDLED, parse_bundled
from amuse_lab.tasks.lm.index import Index
from amuse_lab.tasks.lm.model import INIT_STD, NORM_EPS, Llama, ModelConfig
from amuse_lab.tasks.lm.text import text_folder
from amuse_lab.tasks.lm.tokenizer import END_OF_TEXT, BytePairTokenizer, read_tokenizer

MODEL = "model.safetensors"


def export_run(run: Path, out: Path, data: Path | None) -> str:
    """Write the model of a run for transformers.

    Args:
        run: Path of the run folder.
        out: The folder to create; it must not exist yet.
        data: The folder of prepared text whose tokenizer goes with the model; None looks for the run's.

    Returns:
        What the folder holds, in words.

    Raises:
        DataError: If the run folder holds no finished language model, or the tokenizer is not its own.
        RecordError: If the folder is there already or cannot be written.
    """
    model, name = read_config(run)
    tokenizer, note = _tokenizer(name, data)
    export(run / MODEL, model, out, tokenizer)
    return f"{MODEL}, config.json, {note}"


def read_config(folder: Path) -> tuple[ModelConfig, str]:
    """Read the model's shape and the name of the data from a run folder.

    Raises:
        DataError: If it is not the folder of a language model's run.
    """
    path = folder / "config.json"
    try:
        check_is_file(path)
        task = json.loads(path.read_text(encoding="utf-8"))["task"]
        return ModelConfig(**task["model"]), str(task["data"])
    except OSError as error:
        raise DataError(f"{folder} is not a run folder: {error.strerror}: config.json") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"cannot use {path}: {error}") from error


def _tokenizer(data: str, folder: Path | None) -> tuple[BytePairTokenizer | None, str]:
    """The tokenizer of prepared text, if there is one, and what to say about it."""
    if folder is None and parse_bundled(data) in [(name, "bytes") for name in BUNDLED]:
        return None, "no tokenizer: tokens are bytes"
    wanted = folder or text_folder(data)
    index = Index.read(wanted)
    if index is None and folder is None:
        return None, f"no tokenizer: {wanted} is not here, name its place with --data"
    if index is None:
        raise DataError(f"{wanted} holds no prepared text")
    tokenizer = read_tokenizer(index.request.tokenizer, index.sha256, wanted)
    if isinstance(tokenizer, BytePairTokenizer):
        return tokenizer, f"tokenizer {tokenizer.name}"
    return None, "no tokenizer: tokens are bytes"


def export(weights: Path, config: ModelConfig, out: Path, tokenizer: BytePairTokenizer | None = None) -> None:
    """Write config.json, model.safetensors and the tokenizer's files; all of them or nothing.

    Args:
        weights: The file of a `Llama`'s parameters.
        config: Size and shape of that `Llama`.
        out: The folder to create; it must not exist yet.
        tokenizer: Whose files go with it; the model may have more tokens, never fewer.

    Raises:
        ConfigError: If the tokenizer has more tokens than the model.
        DataError: If the weights are not those of this config.
        RecordError: If `out` exists or cannot be written.
    """
    if tokenizer is not None:
        constraint = f"at most {config.vocabulary} tokens, as the model has"
        require(tokenizer.vocabulary <= config.vocabulary, tokenizer.name, constraint, tokenizer.vocabulary)
    if out.exists():
        raise RecordError(f"{out} exists already: choose another place with --out, or remove it")
    state = _read(weights, config)
    dtype = str(state["norm.weight"].dtype).removeprefix("torch.")
    try:
        with new_folder(out) as partial:
            _write_json(partial / "config.json", llama_config(config, tokenizer) | {"dtype": dtype})
            save_file(to_transformers(state, config), partial / MODEL, metadata={"format": "pt"})
            shutil.copymode(partial / "config.json", partial / MODEL)  # safetensors lets only the owner read
            if tokenizer is not None:
                for name, content in tokenizer.files.items():
                    (partial / name).write_bytes(content)
                _write_json(partial / "tokenizer_config.json", _tokenizer_config(config))
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        raise RecordError(f"cannot write {out}: {getattr(error, 'strerror', None) or error}") from error


def _read(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    """The parameters, checked for their names and shapes."""
    try:
        check_is_file(path)
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    with torch.device("meta"):
        wanted = Llama(config).state_dict()
    for name in sorted(wanted.keys() | state.keys()):
        shapes = [tuple(each[name].shape) if name in each else None for each in (wanted, state)]
        if shapes[0] != shapes[1]:
            raise DataError(f"{path}: the shape of {name} must be {shapes[0]}, got {shapes[1]}")
    return state


def to_transformers(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Rename and rearrange parameters to those of `LlamaForCausalLM`.

    Our rotary embedding rotates components 2j and 2j + 1 of a head together, that of transformers j and
    j + width / 2. So the rows of query and key projections are permuted, which keeps their dot products.

    Args:
        state: State dict of a `Llama`.
        config: Size and shape of that `Llama`.

    Returns:
        The same numbers under the names of transformers, without a tied head.
    """
    converted = {
        "model.embed_tokens.weight": state["embedding.weight"],
        "model.norm.weight": state["norm.weight"],
    }
    if not config.tied:
        converted["lm_head.weight"] = state["lm_head.weight"]
    for number in range(config.n_layer):
        ours, theirs = f"blocks.{number}.", f"model.layers.{number}."
        query, key, value = state[ours + "attention.qkv.weight"].unflatten(0, (3, config.n_head, -1, 2))
        block = {
            "input_layernorm": state[ours + "attention_norm.weight"],
            "self_attn.q_proj": query.transpose(1, 2).flatten(0, 2),
            "self_attn.k_proj": key.transpose(1, 2).flatten(0, 2),
            "self_attn.v_proj": value.flatten(0, 2).clone(),
            "self_attn.o_proj": state[ours + "attention.projection.weight"],
            "post_attention_layernorm": state[ours + "mlp_norm.weight"],
            "mlp.gate_proj": state[ours + "mlp.gate.weight"],
            "mlp.up_proj": state[ours + "mlp.up.weight"],
            "mlp.down_proj": state[ours + "mlp.projection.weight"],
        }
        converted |= {f"{theirs}{name}.weight": tensor for name, tensor in block.items()}
    return converted


def llama_config(config: ModelConfig, tokenizer: BytePairTokenizer | None) -> dict[str, Any]:
    """Return the config.json of the same model in transformers.

    Args:
        config: Size and shape of the model.
        tokenizer: Tokenizer whose end-of-text token begins and ends documents; None names no such token.
    """
    end = None if tokenizer is None else tokenizer.end_of_text
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocabulary,
        "hidden_size": config.n_embd,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_head,
        "max_position_embeddings": config.context,
        "rope_theta": config.rope_base,
        "rms_norm_eps": NORM_EPS,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": config.tied,
        "initializer_range": INIT_STD,
        "bos_token_id": end,
        "eos_token_id": end,
    }


def _tokenizer_config(config: ModelConfig) -> dict[str, Any]:
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    named = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": config.context}
    return named | special | {"add_prefix_space": False}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
