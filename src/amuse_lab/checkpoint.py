"""Checkpoints: one folder for each, written whole or not at all, verified before it is read.

    checkpoints/step-00000500/
        manifest.json                 size and SHA-256 of every other file
        outline.pt                    structure and numbers of the state, with a placeholder for every tensor
        whole.safetensors             tensors that are not sharded
        sharded/*.safetensors         tensors that FSDP2 has sharded, a file for each process
        random-00000.pt               random states, a file for each process

Nothing in here is executed when it is read: `.pt` files are read with `weights_only=True`, and
`torch.distributed.checkpoint` keeps its shards in safetensors files, without metadata of its own.
"""

import hashlib
import io
import json
import pickle
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from amuse_lab.errors import DataError, RecordError
from amuse_lab.files import check_is_file, replacing, sync
from amuse_lab.parallel import Processes

Tree = Any
"""Nested dictionaries, lists and tuples of tensors, numbers, strings, booleans and None."""

FOLDER = "checkpoints"
_MANIFEST = "manifest.json"
_OUTLINE = "outline.pt"
_WHOLE = "whole.safetensors"
_SHARDED = "sharded"
_NAME = re.compile("step-[0-9]{8,}")
_NOTE = "tensor in"  # the key that tells a note from a dictionary of the state


def save(root: Path, step: int, state: Mapping[str, Tree], processes: Processes) -> Path:
    """Write a checkpoint; every process must call it, with its part of the state.

    Args:
        root: The folder of all checkpoints, reached by every process.
        step: Training steps done; names the folder.
        state: What to keep. Tensors may be sharded by FSDP2; all else is the leading process's.
        processes: Processes of the run, all of which write.

    Returns:
        The checkpoint's folder.
    """
    path = root / f"step-{step:08d}"
    partial = root / f".{path.name}.partial"
    if processes.is_main:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    processes.barrier()

    outline, tensors = _taken_apart(state)
    sharded = {name: tensor for name, tensor in tensors.items() if _placement(tensor) is not None}
    if sharded:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save as save_shards

        save_shards(
            sharded, storage_writer=HuggingFaceStorageWriter(str(partial / _SHARDED), save_distributed=True)
        )
    _write(_random_state(), partial / f"random-{processes.rank:05d}.pt")
    if processes.is_main:
        save_file(_separate({n: t for n, t in tensors.items() if n not in sharded}), partial / _WHOLE)
        _write(outline, partial / _OUTLINE)
        shutil.copymode(partial / _OUTLINE, partial / _WHOLE)  # safetensors lets only the owner read
    processes.barrier()

    if processes.is_main:
        _seal(partial, step=step, processes=processes)
        shutil.rmtree(path, ignore_errors=True)  # a damaged one of the same step
        partial.rename(path)
        sync(root)
    return path


def load(path: Path, processes: Processes, *, device: torch.device) -> dict[str, Tree]:
    """Read a checkpoint, and restore this process's random states if it has any; every process must call it.

    Args:
        path: Folder of one checkpoint, from `intact`.
        processes: Processes that read; their number may differ from that of the processes that wrote.
        device: Device of the sharded tensors, which are sharded over these processes.

    Returns:
        The state, with tensors that are not sharded on the CPU.
    """
    outline = torch.load(path / _OUTLINE, weights_only=True, map_location="cpu")
    tensors: dict[str, Tensor] = dict(load_file(path / _WHOLE))
    notes = {note[_NOTE]: note for note in _notes(outline) if note["dim"] is not None}
    if notes:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load as load_shards
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, zeros

        mesh = init_device_mesh(device.type, (processes.world_size,))
        for name, note in notes.items():
            tensors[name] = zeros(
                *note["shape"], dtype=note["dtype"], device_mesh=mesh, placements=[Shard(note["dim"])]
            )
        wanted = {name: tensors[name] for name in notes}
        load_shards(wanted, storage_reader=HuggingFaceStorageReader(str(path / _SHARDED)))
    own = path / f"random-{processes.rank:05d}.pt"
    if own.exists():
        _set_random_state(torch.load(own, weights_only=True, map_location="cpu"))
    state: dict[str, Tree] = _put_together(outline, tensors)
    return state


def intact(root: Path, report: Callable[[str], None]) -> Iterator[Path]:
    """Find the checkpoints whose files match their checksums, the newest first.

    Args:
        root: The folder of all checkpoints.
        report: Called with a one-line message for every damaged checkpoint, which is skipped.

    Yields:
        Their folders; each is checked when the iterator reaches it.

    Raises:
        RecordError: If `root` is not a folder, or cannot be read.
    """
    for path in reversed(finished(root)):
        damage = _damage(path)
        if damage is None:
            yield path
        else:
            report(f"checkpoint {path} is damaged and is not used: {damage}")


def why_not_loaded(error: Exception) -> str:
    """Say in one line why a checkpoint with the right checksums could not be loaded.

    torch's own message advises `weights_only=False`, which could execute a program that the file contains.
    """
    if isinstance(error, pickle.UnpicklingError):
        return "it holds objects that are not read, because reading them could execute a program"
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]!r}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # torch says first that a state does not fit, then how.
    reason = lines[1] if len(lines) > 1 and lines[0].endswith(":") else (lines or [""])[0]
    return f"{type(error).__name__}: {reason}"[:300]


def finished(root: Path) -> list[Path]:
    """Return the folders of all checkpoints, the oldest first.

    Raises:
        RecordError: If their folder is something else, or cannot be read.
    """
    try:
        paths = list(root.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RecordError(f"cannot read {root}: {error.strerror}; remove it to start the run anew") from error
    return sorted((path for path in paths if _NAME.fullmatch(path.name) and path.is_dir()), key=step_of)


def step_of(path: Path) -> int:
    """Return how many steps were done when a checkpoint was written."""
    return int(path.name.removeprefix("step-"))


def prune(root: Path, *, keep_last: int, keep_every: int | None) -> None:
    """Remove old checkpoints, and what interrupted writes have left.

    Args:
        root: The folder of all checkpoints.
        keep_last: How many of the newest stay.
        keep_every: Checkpoints whose step is a multiple of this stay as well.
    """
    remove_unfinished(root)
    for path in finished(root)[:-keep_last]:
        if keep_every is None or step_of(path) % keep_every:
            # Under another name first, so that no half removed one is ever taken for a damaged one.
            shutil.rmtree(path.rename(path.with_name(f".{path.name}.partial")))


def set_aside(root: Path, step: int) -> list[Path]:
    """Give other names to the checkpoints of later steps, so that none of them is taken for the newest.

    Args:
        root: The folder of all checkpoints.
        step: The step that a run goes on from.

    Returns:
        Their folders now.
    """
    moved = []
    for path in finished(root):
        if step_of(path) > step:
            target = path.with_name(f"unused-{path.name}")
            shutil.rmtree(target, ignore_errors=True)
            moved.append(path.rename(target))
    return moved


def remove_unfinished(root: Path) -> None:
    """Remove what interrupted writes have left."""
    for path in root.glob(".step-*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def _placement(tensor: Tensor) -> int | None:
    """The dimension that FSDP2 has divided; None for a tensor that every process holds whole."""
    placements = getattr(tensor, "placements", None)
    return None if placements is None else int(placements[0].dim)


def _taken_apart(tree: Tree) -> tuple[Tree, dict[str, Tensor]]:
    """The tree with notes in place of tensors, and the tensors by name; scalar ones stay in the tree."""
    tensors: dict[str, Tensor] = {}

    def visit(node: Tree, name: str) -> Tree:
        if isinstance(node, Mapping):
            return {key: visit(value, f"{name}/{key}") for key, value in node.items()}
        if isinstance(node, (list, tuple)):
            return type(node)(visit(value, f"{name}/{index}") for index, value in enumerate(node))
        if not isinstance(node, Tensor) or node.dim() == 0:
            return node
        tensors[name[1:]] = node.detach()
        return {
            _NOTE: name[1:],
            "shape": tuple(node.shape),
            "dtype": node.dtype,
            "dim": _placement(node),
        }

    return visit(tree, ""), tensors


def _put_together(outline: Tree, tensors: Mapping[str, Tensor]) -> Tree:
    """The opposite of `_taken_apart`."""
    if isinstance(outline, dict):
        if _NOTE in outline:
            return tensors[outline[_NOTE]]
        return {key: _put_together(value, tensors) for key, value in outline.items()}
    if isinstance(outline, (list, tuple)):
        return type(outline)(_put_together(value, tensors) for value in outline)
    return outline


def _notes(outline: Tree) -> Iterator[dict[str, Any]]:
    if isinstance(outline, dict) and _NOTE in outline:
        yield outline
    elif isinstance(outline, (dict, list, tuple)):
        for value in outline.values() if isinstance(outline, dict) else outline:
            yield from _notes(value)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with storage of their own, contiguous, as safetensors wants them; copies where needed."""
    seen: set[int] = set()
    separate: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        separate[name] = tensor.contiguous() if alone else tensor.clone(memory_format=torch.contiguous_format)
    return separate


def _write(content: Tree, path: Path) -> None:
    """Write a small `.pt` file. Not by torch itself, whose errors do not say that a disk is full."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(buffer.getvalue())


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name != _MANIFEST)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(path: Path, *, step: int, processes: Processes) -> None:
    """Write the manifest, and force everything to the disk."""
    files = {}
    for file in _files(path):
        files[file.relative_to(path).as_posix()] = {"bytes": file.stat().st_size, "sha256": _checksum(file)}
        sync(file)
    manifest = {"step": step, "world_size": processes.world_size, "files": files}
    with replacing(path / _MANIFEST) as partial:
        partial.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for folder in {file.parent for file in _files(path)}:
        sync(folder)


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if nothing is."""
    try:
        check_is_file(path / _MANIFEST)
        files = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))["files"]
        for name in (_OUTLINE, _WHOLE):
            if name not in files:
                return f"{_MANIFEST} does not list {name}"
        for name, expected in files.items():
            check_is_file(path / name)
            if (path / name).stat().st_size != expected["bytes"]:
                return f"{name} has {(path / name).stat().st_size} bytes instead of {expected['bytes']}"
            if _checksum(path / name) != expected["sha256"]:
                return f"the SHA-256 of {name} is not the one in its manifest"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"{Path(error.filename or path).name} cannot be read: {error.strerror}"
    except DataError as error:
        return str(error)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{_MANIFEST} cannot be read"
    return None


def _random_state() -> dict[str, Tree]:
    numpy_state = np.random.get_state(legacy=False)
    keys = torch.from_numpy(numpy_state["state"]["key"].copy())
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": random.getstate(),
        "numpy": numpy_state | {"state": numpy_state["state"] | {"key": keys}},
    }


def _set_random_state(state: Mapping[str, Tree]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    random.setstate(state["python"])
    numpy_state = state["numpy"]
    keys = numpy_state["state"]["key"].numpy()
    np.random.set_state(numpy_state | {"state": numpy_state["state"] | {"key": keys}})
