"""Which parameter gets Muon in the architectures of timm, torchvision and transformers: a sweep by hand.

Builds every model that a package makes from a config without a download, on the meta device, and asks
`param_groups`. Two steps, the first some minutes long for each package:

    python -m benchmarks.routing_sweep collect transformers transformers.jsonl
    python -m benchmarks.routing_sweep table docs/routing.md transformers.jsonl timm.jsonl torchvision.jsonl

timm and torchvision are no dependencies: `pip install --no-deps --target`, and that folder in PYTHONPATH.
"""

import copy
import importlib
import inspect
import json
import pkgutil
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amuse_optim import param_groups
from amuse_optim.heads import output_heads
from amuse_optim.module_tree import is_layer, located_modules, owned_parameters
from benchmarks.routing_table import table

LABELS = 13  # outputs asked for, which is no width of any model's
SECONDS = 60
Build = Callable[[], nn.Module]
_DEPTHS = re.compile(
    r"(num_)?(hidden_|encoder_|decoder_)?(layers?|n_layers?|num_layers|depth)|n_layers?|num_\w+_layers"
)
# What some configs leave open that their models need.
_OPEN = {
    "prediction_length": 8,
    "context_length": 8,
    "num_key_value_heads": 1,
    "vocab_size": 96,
    "pad_token_id": 0,
    "head_dim": 64,
    "is_decoder": True,
}


def main(arguments: list[str]) -> None:
    """Collect facts of one package into JSON lines, or write the table from such files."""
    command, *rest = arguments
    if command == "collect":
        collect(rest[0], Path(rest[1]))
    elif command == "table":
        lines = [line for file in rest[1:] for line in Path(file).read_text().splitlines()]
        records = [json.loads(line) for line in lines]
        names = ("torch", "timm", "torchvision", "transformers")
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
        Path(rest[0]).write_text(table(records, versions, LABELS))
    else:
        raise SystemExit(f"collect or table, not {command!r}")


def collect(package: str, out: Path) -> None:
    """One JSON line for every model of a package, with what `facts` says or why it could not be built."""
    _without_compiled_operators()
    warnings.simplefilter("ignore")
    models = {"timm": timm_models, "torchvision": torchvision_models, "transformers": transformers_models}
    signal.signal(signal.SIGALRM, _too_long)
    with out.open("w") as file:
        for family, name, build in models[package]():
            record: dict[str, Any] = {"package": package, "family": family, "model": name}
            signal.alarm(SECONDS)
            try:
                record |= facts(_built(build))
            except Exception as error:  # whatever a model's constructor raises is a fact about it
                record["error"] = f"{type(error).__name__}: {error}"[:200]
            finally:
                signal.alarm(0)
            print(json.dumps(record), file=file, flush=True)


def _built(build: Build) -> nn.Module:
    """A model on the meta device, or, where its constructor looks at values, on the CPU."""
    try:
        with torch.device("meta"):
            return build()
    except NotImplementedError:
        return build()


def _too_long(*_: object) -> None:
    raise TimeoutError(f"took longer than {SECONDS} s")


def _without_compiled_operators() -> None:
    """Define the operators that torchvision's Python code asks for; its own need another build of torch."""
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor a, Tensor b, float c) -> Tensor")
    library.define("qnms(Tensor a, Tensor b, float c) -> Tensor")
    globals()["_library"] = library  # its operators live as long as it does


def facts(model: nn.Module) -> dict[str, Any]:
    """What was decided for parameters of two and more dimensions, and what of it might be wrong.

    Returns:
        "heads": patterns of the names of output heads; "guessed": whether for want of any sign;
            "auxiliary": parameters outside of layers, embeddings and heads that get the auxiliary direction;
            "doubts": hidden matrices with as many rows as there are labels or rows in an
            embedding, with fewer than five, and those that belong to no layer of torch's.
    """
    groups = param_groups(model)
    matrices = {id(p): "stacked" in g for g in groups if g["direction"] == "muon" for _, p in g["params"]}
    heads, guessed = output_heads(model)
    tables = {m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)}
    found: dict[str, set[str]] = {"heads": set(), "auxiliary": set(), "doubts": set()}
    for located in located_modules(model):
        if located.module in heads:
            found["heads"].add(_pattern(".".join(located.path)))
    for one in owned_parameters(model):
        shape, module = tuple(one.parameter.shape), one.module
        if len(shape) < 2 or module in heads or isinstance(module, nn.Embedding):
            continue
        name = _pattern(one.name.removesuffix(".weight"))
        if id(one.parameter) not in matrices:
            if not is_layer(module):
                found["auxiliary"].add(name)
        elif LABELS in (shape[0], shape[-1]):
            found["doubts"].add(f"{name} as many as labels")
        elif max(shape[0], shape[-1]) > 8192 and tables & {shape[0], shape[-1]}:
            found["doubts"].add(f"{name} as many as an embedding")
        elif shape[0] < 5 and not matrices[id(one.parameter)]:
            found["doubts"].add(f"{name} {'x'.join(map(str, shape))}")
        elif not is_layer(module) and not isinstance(
            module, (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
        ):
            found["doubts"].add(f"{name} {'stacked' if matrices[id(one.parameter)] else 'free'}")
    return {"guessed": guessed is not None} | {key: sorted(names) for key, names in found.items()}


def _pattern(name: str) -> str:
    """The last two parts of a name, with a star for numbers."""
    return ".".join(re.sub(r"(?<![A-Za-z])\d+", "*", name).split(".")[-2:])


def timm_models() -> Iterator[tuple[str, str, Build]]:
    """Every registered model, by the module that defines it."""
    timm = importlib.import_module("timm")
    families = importlib.import_module("timm.models._registry")._model_to_module
    for name in timm.list_models():
        yield families[name], name, lambda name=name: timm.create_model(name, num_classes=LABELS)


def torchvision_models() -> Iterator[tuple[str, str, Build]]:
    """Every registered model, by the module that defines it."""
    models = importlib.import_module("torchvision.models")
    for name in models.list_models():
        builder = models.get_model_builder(name)
        options = {} if "raft" in name else {"num_classes": LABELS}
        if re.search("rcnn|fcos|retinanet|ssd|raspp|fcn|deeplab", name):
            options["weights_backbone"] = None
        family = builder.__module__.split("models.")[-1]
        yield family, name, lambda builder=builder, options=options: builder(**options)


def transformers_models() -> Iterator[tuple[str, str, Build]]:
    """Every model class that a modeling file exports, by its folder."""
    transformers = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    package = importlib.import_module("transformers.models")
    for folder in sorted(info.name for info in pkgutil.iter_modules(package.__path__) if info.ispkg):
        for file in sorted(Path(package.__path__[0], folder).glob("modeling_*.py")):
            try:
                module = importlib.import_module(f"transformers.models.{folder}.{file.stem}")
            except Exception as error:
                yield folder, file.stem, lambda error=error: _raise(error)
                continue
            for name in getattr(module, "__all__", ()):
                kind = getattr(module, name, None)
                if not inspect.isclass(kind) or not issubclass(kind, transformers.PreTrainedModel):
                    continue
                if kind.__module__ == module.__name__ and not re.search("PreTrained|Pretrained", name):
                    yield folder, name, lambda kind=kind: _from_config(kind)


def _raise(error: Exception) -> nn.Module:
    raise error


def _from_config(kind: Any) -> nn.Module:
    """A model with its default config: shallow if that works, else whole, else with open settings filled."""
    attempts: list[Callable[[Any], None]] = [_make_shallow, lambda _: None, _fill]
    for change in attempts:
        config = copy.deepcopy(kind.config_class())
        config.num_labels = 2 if kind.__name__ == "DistilBertForQuestionAnswering" else LABELS
        change(config)
        try:
            model: nn.Module = kind(config)
        except TimeoutError:
            raise
        except Exception:
            if change is attempts[-1]:
                raise
        else:
            return model
    raise AssertionError("the last attempt returns or raises")


def _make_shallow(config: Any) -> None:
    """Two layers where a config says how many, in configs inside as well."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            _make_shallow(value)
        elif _DEPTHS.fullmatch(name) and isinstance(value, int) and value > 2:
            setattr(config, name, 2)


def _fill(config: Any) -> None:
    for value in list(vars(config).values()):
        if hasattr(value, "to_dict"):
            _fill(value)
    for name, value in _OPEN.items():
        if getattr(config, name, None) in (None, False):
            setattr(config, name, value)


if __name__ == "__main__":
    main(sys.argv[1:])
