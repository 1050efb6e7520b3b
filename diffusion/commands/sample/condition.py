"""`--condition NAME=VALUE`: what a model is conditioned on, from words, numbers and files.

A value of classes is a name or a number, of a vector its numbers with commas between, of a field an image; of each also
a .npy with one entry, or one a sample. `none` is what stands for none. The name may be left out where the model has one
part, and of images where it has one field.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.class_names import names_of
from ...denoisers.condition import LABEL, MASK, of_parts
from ...errors import UserError, did_you_mean
from ...models import DiffusionModel
from ...models.conditions import function_of, is_function, masked
from ...models.trained_model import TrainedModel
from ...networks.parts import CLASSES, FIELD, Part
from ...numerics.arrays import as_tensor
from .control import alike_to, image_for, known_part, read_image
from .record import ARRAY_ENDING, split_condition

OPTION = "--condition"
NONE = "none"
Values = Mapping[str, Tensor | None]


def read_conditions(model: TrainedModel, texts: Sequence[str], mask: str | None = None) -> Values:
    """The values of `--condition` by part, each with one entry, or one a sample; parts that are not named are left out.

    Args:
        model: The model.
        texts: The values.
        mask: The image of `--mask`, white where a `mask` part is to be filled in.

    Raises:
        UserError: For a model without such parts, and what is no value of them, in a line that names it.
    """
    parts = parts_of(model)
    if not isinstance(model, DiffusionModel) or not parts:
        raise UserError(f"{OPTION}: {model.source} was trained without a condition (denoiser.condition)")
    found: dict[str, Tensor | None] = {}
    for text in texts:
        part, value = named_part(parts, text)
        if part.name in found:
            raise UserError(f"{OPTION}: '{part.name}' is given twice")
        if value == NONE and NONE in part.names:
            number = part.names.index(NONE)
            raise UserError(
                f"{OPTION}: found '{text}'; '{NONE}' is the name of class {number}, and the word for no class; "
                f"accepted: #{number}, or leave the part out"
            )
        found[part.name] = None if value == NONE else _value(model, part, value, mask)
    if mask is not None and not any(name == MASK for name in found):
        raise UserError("--mask: needs --inpaint, or the --condition of a model with a part 'mask'")
    return found


def parts_of(model: TrainedModel) -> tuple[Part, ...]:
    """The parts that a model is conditioned on; of one that is conditioned on the class alone that one."""
    if not isinstance(model, DiffusionModel):
        return ()
    classes = model.denoiser.num_classes
    names = tuple(names_of(model.facts.provenance, classes))
    return (Part(LABEL, CLASSES, classes, names=names),) if classes else model.denoiser.parts


def rows_of_conditions(values: Values, first: int, stop: int) -> dict[str, Tensor | None]:
    """The values of samples `first` to `stop`."""
    return {name: v if v is None or len(v) == 1 else v[first:stop] for name, v in values.items()}


def check_count(values: Values, n: int, what: str = "samples") -> None:
    """Refuse values for another number of samples."""
    for name, value in values.items():
        if value is not None and len(value) not in (1, n):
            raise UserError(f"{OPTION}: '{name}' has {len(value)} entries, for {n} {what}; accepted: one each, or one")


def named_part(parts: Sequence[Part], text: str) -> tuple[Part, str]:
    """The part that a text of `--condition` is for, and its value.

    Raises:
        UserError: For a text of no part.
    """
    names = [part.name for part in parts]
    name, value = split_condition(text, names)
    if name is not None:
        return parts[names.index(name)], value
    fields = [part for part in parts if part.kind == FIELD]
    if len(parts) == 1:
        return parts[0], text
    if len(fields) == 1 and Path(text).is_file():
        return fields[0], text
    word = text.partition("=")[0]
    hint = "" if word in names else did_you_mean(word, names)
    raise UserError(f"{OPTION}: found '{text}'; accepted: NAME=VALUE, of {', '.join(map(str, parts))}.{hint}")


def _value(model: DiffusionModel, part: Part, text: str, mask: str | None) -> Tensor:
    """A value with its samples as the first axis."""
    if Path(text).suffix.lower() == ARRAY_ENDING:
        return _checked(part, _made_of(model, part, _array(text, part), text, mask), text)
    if part.kind == FIELD:
        return _image(model, part, text, mask)
    if part.kind == CLASSES:
        return _checked(part, text, text)
    try:
        numbers = torch.tensor([[float(number) for number in text.split(",")]], dtype=torch.float64)
    except ValueError:
        kind = "a file that is not there" if Path(text).suffix else "no numbers"
        raise UserError(f"{OPTION}: {part}: found '{text}', {kind}; accepted: numbers with commas, or x.npy") from None
    return _checked(part, _made_of(model, part, numbers, text, mask), text)


def _checked(part: Part, value: Any, text: str) -> Tensor:
    """A value as `of_parts` takes it, with its first axis; what stands for none is said by its word alone."""
    n = 1
    if isinstance(value, list) or (isinstance(value, torch.Tensor) and value.ndim == part.axes):
        n = max(1, len(value))
    (found,) = of_parts((part,), {part.name: value}, n, f"{OPTION} {text}").parts
    if bool((none := part.is_none(found)).any()):
        number = f"{part.size}; the classes are 0 to {part.size - 1}" if part.kind == CLASSES else "NaN"
        raise UserError(
            f"{OPTION} {text}: {part}: sample {int(none.nonzero()[0])} has {number} ({part.name}=none leaves it out)"
        )
    return found


def _made_of(model: DiffusionModel, part: Part, array: Any, text: str, mask: str | None) -> Any:
    """The function of the data that a part is, of whole data; any other array as it is."""
    shape = tuple(model.facts.shape)
    if not is_function(part.name):
        return array
    whole = array if array.ndim > len(shape) else array[None]
    if part.name == MASK:
        return _masked(model, part, array, whole, text, mask)
    if tuple(whole.shape[1:]) != shape or not whole.is_floating_point() or model.facts.levels is not None:
        return array
    function = function_of(part.name)
    assert function is not None
    print(f"{OPTION}: {text}: is whole, and '{part.name}' of it is taken", file=sys.stderr)
    return function(whole)


def _masked(model: DiffusionModel, part: Part, array: Any, whole: Any, text: str, mask: str | None) -> Any:
    """The part `mask` of whole data and --mask; what is such a part already as it is.

    Raises:
        UserError: For arrays of other shapes, and whole data without --mask.
    """
    shape, found = tuple(model.facts.shape), tuple(whole.shape[1:])
    own = (part.size, *shape[1:])  # with where it is known
    if found == shape and mask is None:
        raise UserError(f"{OPTION}: {part} needs --mask, x.npy that is not 0 where {text} is to be filled in")
    if found != (own if mask is None else shape):
        flags = part.size - shape[0]
        known = "last is 1 where the others are" if flags == 1 else f"last {flags} are 1 where the first are"
        other = f", or {_by(own)}, of which the {known} known, else 0" if mask is None else ""
        raise UserError(f"{OPTION}: {text} is {_by(found)}; '{MASK}' takes {_by(shape)} numbers next to --mask{other}")
    if mask is None:
        return array
    if model.facts.levels is not None and whole.dtype == torch.uint8:
        whole = whole.float() * (2.0 / 255.0) - 1.0
    elif model.facts.levels is None:
        whole = whole.double()
    return masked(whole, _known_part(mask, shape, part), part.mean[: shape[0]])


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def _known_part(mask: str, shape: tuple[int, ...], part: Part) -> Tensor:
    """Where data of this shape are known, (1, 1, *sides) or (1, D): by an array of these sides, or a picture."""
    if Path(mask).suffix.lower() != ARRAY_ENDING and len(shape) == 3:
        return known_part(mask, shape).float()[None]
    filled, sides = _array(mask, part, "--mask"), shape[1:] or shape
    if math.prod(filled.shape[: -len(sides)]) == 1:
        filled = filled.reshape(filled.shape[-len(sides) :])
    if tuple(filled.shape) != sides or not bool(filled.any()):
        found = " x ".join(map(str, filled.shape))
        raise UserError(f"--mask: {mask} is {found}; needs {' x '.join(map(str, sides))}, not 0 somewhere")
    return (filled == 0).float().reshape(*(1,) * (len(shape) + 1 - len(sides)), *sides)


def _array(text: str, part: Part, option: str = OPTION) -> Any:
    """What a .npy holds: numbers, or words for classes."""
    path = Path(text)
    if not path.is_file():
        found = "is no file" if path.exists() else "does not exist"
        raise UserError(f"{option}: {text} {found}; accepted: an array of numbers, x.npy")
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
        return array.reshape(-1).tolist() if part.kind == CLASSES and array.dtype.kind == "U" else as_tensor(array)
    except Exception as error:  # of the header, of the pickle, of the type: each has its own class
        reason = str(error).partition("\n")[0]
        raise UserError(f"{option}: {text} is not a readable .npy file of plain numbers ({reason})") from error


def _image(model: DiffusionModel, part: Part, path: str, mask: str | None) -> Tensor:
    """A field from an image: as it is, or, of a function of the image, also made of a whole one."""
    shape = model.facts.shape
    if not is_function(part.name) or model.facts.levels is None:
        if len(shape) != 3 or model.facts.levels is None or not part.is_image:
            raise UserError(f"{OPTION}: {part} has numbers of its own units; found '{path}', accepted: an array, x.npy")
        return read_image(OPTION, path, (part.size, *part.sides), alike_to(model, part.size))
    if part.name == MASK:
        if mask is None:
            raise UserError(f"{OPTION}: {part} needs --mask, an image that is white where it is to be filled in")
        return masked(image_for(model, OPTION, path), known_part(mask, shape).float()[None], part.mean[:-1])
    function = function_of(part.name)
    assert function is not None
    wanted = function(torch.zeros(1, *shape)).shape[1:]
    x = read_image(OPTION, path, (shape[0] if part.size == shape[0] else part.size, None, None), alike_to(model))
    if x.shape[1:] == wanted:
        return x
    if x.shape[1:] == torch.Size(shape):
        print(f"{OPTION}: {path}: is a whole image, of which '{part.name}' is taken", file=sys.stderr)
        return function(x)
    sides = [f"{width} x {height}" for height, width in (x.shape[2:], wanted[1:], shape[1:])]
    raise UserError(
        f"{OPTION}: {path} is {sides[0]} pixels; '{part.name}' takes {sides[1]}, or a whole image, {sides[2]}"
    )
