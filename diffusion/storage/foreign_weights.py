"""Weights of files that others wrote: found in them, with plain names, and no code of the file run.

A safetensors file holds tensors alone. What `torch.save` wrote is a pickle, which is read by torch's own reader of
weights; where that refuses, because a whole module was pickled, it is read with every class of somebody else's as an
empty shell that keeps what it is given and does nothing, and the tensors are taken out of the shells.
"""

from __future__ import annotations

import codecs
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import UserError, did_you_mean, in_one_line, shown
from .paths import named_path
from .records import reading
from .shells import Sealed, Shell, check_copies, read_module

# Where weights are in a checkpoint: averages first (`ema`, `model_ema`, `ema_state_dict`, `params_ema`, ...).
# But not `model_no_ema`.
AVERAGES = re.compile(r"(^|(?<!no)(?<!non)(?<!without)_)ema(_|$)|^averages$", re.IGNORECASE)
WEIGHTS = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights", "module")
LIST = "shadow_params"  # averages in the order of the parameters, without names; also a list of one of those names
# What an average counts, next to its weights.
COUNTERS = ("n_averaged", "initted", "step", "optimization_step", "decay", "num_updates")
# What wrappers put in front of every name.
WRAPPERS = (
    "module", "_orig_mod", "model", "net", "network", "denoiser", "unet", "diffusion_model", "online_model", "average",
)  # fmt: skip
_BUFFERS = re.compile(r"(^|\.)(running_mean|running_var|num_batches_tracked)$")
_DEEPEST, _MOST_ENTRIES, _LONGEST_NAME = 16, 2**20, 1000
_HEAD = 512  # bytes that tell what else a file is


def read_weights(path: str | Path, prefix: Any = None) -> dict[str, Tensor]:
    """Read the weights in a file of safetensors or of `torch.save`: a state dict, a checkpoint around one, or a module.

    Averaged weights are preferred where the file has them, also as a list in the order of the parameters. What all
    names have in front (`module.`, `model.`, `network.`, ...) is taken off.

    Args:
        path: The file.
        prefix: What the full names of those wanted begin with, `ema.` or `model.diffusion_model.`; it is taken off.
            A name is full with the keys on the way to it.

    Returns:
        Tensors by name, on the CPU. Those that share their numbers in the file share them here.

    Raises:
        UserError: For a file that is missing, damaged, none of weights, or one that would run code.
    """
    path = named_path(path)
    if not isinstance(prefix, str | None):
        raise UserError(f"prefix: found {shown(prefix)}; must be what names begin with, 'ema.'")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of weights.")
    found = _open(path)
    with reading(f"{path}: holds weights in no known way"):
        every = dict(tensors_of(found))
        groups = {name: group for name, group in _groups(found, _Steps()) if group}
    if prefix is not None:
        return plainly_stored(path, _with_prefix(path, every, prefix))
    if not groups:
        raise UserError(f"{path}: holds no weights: no dictionary of tensors is in it.")
    return plainly_stored(path, dict(_plain(_chosen(path, groups))))


def _open(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: is a pointer of Git LFS, not the weights; `git lfs pull` fetches them.")
    if head.lstrip(codecs.BOM_UTF8 + b" \t\r\n").lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise UserError(f"{path}: is a web page, not weights; the download was refused, or needs another address.")
    if (begins := _text(head)) is not None:
        raise UserError(f"{path}: is a text file, which begins '{begins}', not weights.")
    header = int.from_bytes(head[:8], "little") if head[8:9] == b"{" else path.stat().st_size
    if header < path.stat().st_size or path.suffix == ".safetensors":
        with reading(f"{path}: not a safetensors file, or cut short or corrupt"):
            try:
                with safe_open(path, framework="pt") as file:
                    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
            except Exception as error:  # safetensors has errors of its own
                raise ValueError(error) from error
    return _of_torch(path)


def _text(head: bytes) -> str | None:
    """How a text begins; None of what is none."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # whose last letter may be cut
    except UnicodeDecodeError:
        return None
    line = text.strip().partition("\n")[0].strip()
    return line[:40] if line and all(letter.isprintable() or letter.isspace() for letter in text) else None


def _of_torch(path: Path) -> Any:
    damaged = f"{path}: not a file of torch.save, or cut short or corrupt ({{}})."
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        # A flipped bit in the archive's own headers can surface as almost any exception of the parsers.
        try:
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
                stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
                apart = sum(entry.file_size for entry in entries) <= path.stat().st_size
                bad = archive.testzip() if stored and apart else None
        except Exception as error:
            raise UserError(damaged.format(in_one_line(error))) from error
        if not stored:  # its content could be of any size
            raise UserError(damaged.format("compressed, as torch.save writes nothing"))
        if not apart:
            raise UserError(damaged.format("its entries are larger than the file"))
        if bad is not None:
            raise UserError(damaged.format(f"wrong checksum of {bad}"))
    try:
        check_copies(path, is_zip)
    except Exception as error:
        raise UserError(damaged.format(in_one_line(error))) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not is_zip:
            raise UserError(
                f"{path}: refused, it is a pickle that holds more than tensors, and could run code; save the state "
                "dict of the model alone, where it is trusted."
            ) from error
    except Exception as error:
        raise UserError(damaged.format(in_one_line(error))) from error
    try:
        return read_module(path)
    except Exception as error:  # of a pickle from anybody
        raise UserError(damaged.format(in_one_line(error))) from error


class _Steps:
    """Counts what is looked at: dictionaries that hold each other have no end."""

    def __init__(self) -> None:
        self.left = _MOST_ENTRIES

    def of(self, value: Any, name: str) -> Iterator[tuple[str, str, Any]]:
        """The keys, full names and entries of a dictionary or a shell of this name; a long name is many steps."""
        for key, entry in _entries(value):
            full = f"{name}.{key}" if name else key
            if len(full) > _LONGEST_NAME:
                raise ValueError(f"a name of {len(full)} characters")
            self.left -= 1 + len(full) // 64
            if self.left < 0:
                raise ValueError(f"more than {_MOST_ENTRIES} entries")
            yield key, full, entry.tensor if isinstance(entry, Sealed) else entry


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """What is in a dictionary, or in the shell of a module: parameters, buffers, modules, and other attributes."""
    if isinstance(value, dict):  # whose own `items` a pickle may have replaced
        yield from ((str(key), entry) for key, entry in dict.items(value) if isinstance(key, str | int))
    elif isinstance(value, Shell):
        own = vars(value)
        for part in map(own.get, ("_parameters", "_buffers", "_modules")):
            yield from _entries(part) if isinstance(part, dict) else ()
        yield from ((key, entry) for key, entry in own.items() if key not in _OF_MODULES)


_OF_MODULES = ("_parameters", "_buffers", "_modules", "items")


def tensors_of(value: Any) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a dictionary or a shell by their full names; a `ValueError` for more entries than any file has."""
    return _tensors(value, _Steps())


def _tensors(value: Any, steps: _Steps, name: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """All tensors by their full names."""
    for _, full, entry in steps.of(value, name) if depth < _DEEPEST else ():
        if isinstance(entry, Tensor):
            yield full, entry
        elif isinstance(entry, dict | Shell):
            yield from _tensors(entry, steps, full, depth + 1)


def plainly_stored(path: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same, where every number of every tensor is in the file: a few bytes can name a tensor of any size."""
    size = path.stat().st_size
    for name, tensor in weights.items():
        if tensor.layout != torch.strided or tensor.is_nested or tensor.device.type != "cpu":
            raise UserError(f"{path}: '{name}' is no dense tensor with numbers ({tensor.layout}, {tensor.device}).")
        stored = tensor.untyped_storage().nbytes()
        if tensor.numel() * tensor.itemsize > stored or stored > size:
            raise UserError(
                f"{path}: '{name}' of shape {tuple(tensor.shape)} has more numbers than the file stores; "
                "an expanded tensor is saved as tensor.contiguous()."
            )
    return weights


def _with_prefix(path: Path, every: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    chosen = {name.removeprefix(prefix): tensor for name, tensor in every.items() if name.startswith(prefix)}
    if not chosen:
        heads = sorted({name.rpartition(".")[0] + "." for name in every} - {"."})
        near = did_you_mean(prefix, heads)
        raise UserError(f"{path}: no name begins with prefix '{prefix}'; the first is '{next(iter(every), '')}'.{near}")
    return chosen


def _groups(value: Any, steps: _Steps, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """State dicts, modules and lists of averages, by the keys on the way to them."""
    if isinstance(value, Shell) and "_modules" in vars(value):
        yield name, dict(_tensors(value, steps))
        return
    entries = list(steps.of(value, name)) if depth < 4 else []
    own = {key: entry for key, _, entry in entries if isinstance(entry, Tensor)}
    if own and 2 * len(own) >= len(entries):
        yield name, own
    for key, inner, entry in entries:
        is_list = (key == LIST or AVERAGES.search(key)) and isinstance(entry, list | tuple)
        averages = [item.tensor if isinstance(item, Sealed) else item for item in entry] if is_list else []
        if averages and all(isinstance(average, Tensor) for average in averages):
            yield inner, averages
        elif isinstance(entry, dict | Shell) and "optim" not in key:
            yield from _groups(entry, steps, inner, depth + 1)
        elif key == "averages" and isinstance(entry, list | tuple) and entry:
            yield from _groups(entry[0], steps, inner, depth + 1)


def _chosen(path: Path, groups: dict[str, Any]) -> dict[str, Tensor]:
    """The weights that are meant: averages, else those under a known name, else the only ones."""

    lists = [name for name, found in groups.items() if isinstance(found, list)]
    named = {name: found for name, found in groups.items() if name not in lists}
    for name, found in named.items():
        if any(map(AVERAGES.search, name.split("."))) and found.keys() - {*COUNTERS}:
            return _average_in(found)
    known = (found for name, found in named.items() if any(part in WEIGHTS for part in name.split(".")))
    plain = next(known, next(iter(named.values()), None))
    if lists:
        return _with_names(path, groups[lists[0]], plain)
    assert plain is not None
    return _average_in(plain)


def _average_in(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The average next to the model, in one dictionary, if it is there; without what an average counts.

    A network may have a part of such a name: that is one of the average only if all others are known, or next to
    `model` if it is `model_ema`.
    """
    left = {name: tensor for name, tensor in weights.items() if name not in COUNTERS}
    heads = list(dict.fromkeys(name.partition(".")[0] for name in left if "." in name))
    are_known = all("." in name for name in left) and all(head in WRAPPERS or AVERAGES.search(head) for head in heads)
    if are_known:
        weights = left
    for head in heads if len(heads) > 1 else ():
        is_beside = head.endswith("_ema") and head.removesuffix("_ema") in heads
        if AVERAGES.search(head) and (are_known or is_beside):
            under = {other: _under(other, weights) for other in heads}
            return _with_dots(under.pop(head), list(under.values()))
    return weights


def _under(head: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    start = f"{head}."
    return {name.removeprefix(start): tensor for name, tensor in weights.items() if name.startswith(start)}


def _with_dots(average: dict[str, Tensor], others: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """An average of names without dots (of latent-diffusion) by those of the weights that it is of, whose buffers are
    not averaged.
    """
    left = {name: tensor for name, tensor in average.items() if name not in COUNTERS}
    for weights in others if not any("." in name for name in left) else ():
        dotted = {name.replace(".", ""): name for name in weights}
        if left.keys() <= dotted.keys() and len(dotted) == len(weights):
            return {**weights, **{dotted[name]: tensor for name, tensor in left.items()}}
    return average


def _with_names(path: Path, averages: list[Tensor], weights: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """Averages in the order of the parameters by the names of the weights; the rest of these as they are.

    Which of the weights are buffers is not said. They are matched by shape, in order, from the front and from the back:
    where both agree no other matching exists.
    """
    if weights is None:
        raise UserError(f"{path}: holds averages without names ({LIST}), and no weights that have them.")
    names = [name for name in weights if not _BUFFERS.search(name)]
    shapes = [average.shape for average in averages]
    forward = _matched(names, shapes, weights)
    backward = _matched(names[::-1], shapes[::-1], weights)
    if forward is None or backward is None or forward != backward[::-1]:
        raise UserError(
            f"{path}: its {len(averages)} averages ({LIST}) do not go with its {len(names)} weights in one way alone; "
            "prefix= reads the weights that are not averaged."
        )
    return {**weights, **dict(zip(forward, averages, strict=True))}


def _matched(names: list[str], shapes: list[torch.Size], weights: dict[str, Tensor]) -> list[str] | None:
    found: list[str] = []
    for name in names:
        if len(found) < len(shapes) and weights[name].shape == shapes[len(found)]:
            found.append(name)
    return found if len(found) == len(shapes) else None


def _plain(weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Without what wrappers put in front of every name."""
    names = list(weights)
    while True:
        heads = {name.partition(".")[0] for name in names if "." in name}
        known = all(head in WRAPPERS or AVERAGES.search(head) for head in heads)
        if len(heads) != 1 or not all("." in name for name in names) or not known:
            break
        names = [name.partition(".")[2] for name in names]
    yield from zip(names, (tensor.detach() for tensor in weights.values()), strict=True)
