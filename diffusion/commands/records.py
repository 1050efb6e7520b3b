"""Measured likelihoods as files: each part when it is done, the whole when it is complete.

    RUN/evaluations/<method>-<digest>/     parts, one a chunk of images, and the W&B run
    RUN/evaluations/<method>-<digest>.json the whole, with each image's value

The digest is of the protocol: the images' bytes, the weights, the method and its options. The same question has the
same name, so its answer is found, and an unfinished one continued. Whatever is returned was read back from a file, so
that a figure is the same to the bit whether it was measured just now or found.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..likelihood import Estimate
from ..likelihood.estimate import DIAGNOSTICS
from ..storage import atomic
from ..storage.checkpoint_files import read_checkpoint
from ..storage.records import DAMAGED, digest, keep, reading

FOLDER = "evaluations"


@dataclass(frozen=True)
class Protocol:
    """The question that a figure answers.

    Args:
        data: The images: name, split, number, and the SHA-256 of their bytes.
        weights: The SHA-256 of the model file.
        method: The estimator.
        options: The estimator's options, as plain values.
    """

    data: Mapping[str, Any]
    weights: str
    method: str
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """`<method>-<digest>`, a file name."""
        if not re.fullmatch(r"[a-z0-9-]{1,40}", self.method):
            raise UserError(f"--method: found '{self.method}'; the name of an estimator is accepted, e.g. ode")
        return f"{self.method}-{digest(asdict(self))}"

    @property
    def asks(self) -> tuple[str, str, str]:
        """The estimator, its options and the model, whatever the images are."""
        return self.method, self.weights, repr(sorted(self.options.items()))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The answer.

    Args:
        protocol: The question.
        model: What was measured: run, family, parameters, step, data; plain values.
        estimate: Each image's value, in the order of their indices, with the terms that are a number an image.
        terms: The means of the terms over the images, in bits/dim (numbers, or lists for curves).
        spread: The standard errors of those that are lists, over images.
    """

    protocol: Protocol
    model: Mapping[str, Any]
    estimate: Estimate
    terms: Mapping[str, Any]
    spread: Mapping[str, Any] = field(default_factory=dict)

    def in_its_unit(self) -> Evaluation:
        """The same for tables: densities, which are told in nats, times ln 2, so that nats/dim stand in place of
        bits/dim."""
        if (estimate := self.estimate).levels is not None:
            return self

        def nats(values: Any) -> Any:
            if isinstance(values, Mapping):
                return {name: value if name in DIAGNOSTICS else nats(value) for name, value in values.items()}
            if isinstance(values, list):
                return [nats(value) for value in values]
            return None if values is None else values * math.log(2.0)

        names = ("log_prob", "std_error", "error_budget", "terms")
        found = replace(estimate, **{name: nats(getattr(estimate, name)) for name in names})
        return replace(self, estimate=found, terms=nats(self.terms), spread=nats(self.spread))


def write(folder: Path, evaluation_protocol: Protocol, model: Mapping[str, Any], estimate: Estimate) -> Evaluation:
    """Write a complete evaluation to `folder`, and return it as it reads back."""
    assert estimate.indices is not None
    in_order = estimate.at(estimate.indices.argsort())
    path = folder / f"{evaluation_protocol.name}.json"
    values = {name: _plain(term) for name, term in in_order.terms.items() if term.ndim == 1}
    figures = in_order.to_dict() | {"terms": values, "terms_sem": _spread(in_order)}
    keep(path, {"protocol": asdict(evaluation_protocol), "model": dict(model), "estimate": figures})
    return read(path)


def _plain(values: torch.Tensor) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _spread(estimate: Estimate) -> dict[str, list[float | None]]:
    """The standard errors over images of the terms that are lists, in bits/dim."""
    scale = math.sqrt(len(estimate)) * estimate.nats_per_bit_per_dim
    lists = {name: term for name, term in estimate.terms.items() if term.ndim == 2 and len(estimate) > 1}
    return {name: _plain(term.double().std(0) / scale) for name, term in lists.items()}


def read(path: Path) -> Evaluation:
    """Read a file of `write`.

    Raises:
        UserError: For a file that is none, or whose figures do not agree with each other or with its name.
    """
    with reading(f"{path}: not an evaluation, or damaged; evaluate --again replaces it"):
        return _parse(json.loads(path.read_text(encoding="utf-8")), path.stem)


def _parse(plain: Mapping[str, Any], name: str) -> Evaluation:
    protocol = Protocol(**plain["protocol"])
    if protocol.name != name:
        raise ValueError(f"its protocol is that of {protocol.name}.json")
    found = plain["estimate"]

    count = int(protocol.data["images"])
    if len(found["log_prob"]) != count:
        raise ValueError(f"{count} images are announced, {len(found['log_prob'])} values found")
    estimate = Estimate.from_dict(found)
    means, spread = dict(found["terms_bits_per_dim"]), dict(found.get("terms_sem", {}))
    return Evaluation(protocol, dict(plain["model"]), estimate, means, spread)


def read_all(home: Path) -> list[Evaluation]:
    """The complete evaluations of a run, by name; those of no run are none."""
    return [read(path) for path in sorted((home / FOLDER).glob("*.json"))]


def write_part(folder: Path, estimate: Estimate) -> None:
    """Store the estimate for some images."""
    assert estimate.indices is not None
    summary = {
        "dims": estimate.dims,
        "levels": estimate.levels,
        "kind": estimate.kind,
        "protocol": dict(estimate.protocol),
        "nfe": estimate.nfe,
        "seconds": estimate.seconds,
        "error_budget": dict(estimate.error_budget),
    }
    tensors = {"log_prob": estimate.log_prob, "std_error": estimate.std_error, "indices": estimate.indices}
    part = {"summary": json.dumps(summary), "tensors": tensors, "terms": dict(estimate.terms)}
    first, last = int(estimate.indices.min()), int(estimate.indices.max())
    with atomic.writer(folder / f"{first:08d}-{last:08d}.part") as file:
        torch.save(part, file)


def read_parts(folder: Path, known: set[int]) -> list[Estimate]:
    """The parts of an evaluation of images of `known` indices that are whole, no image twice, in a fixed order."""
    parts: list[Estimate] = []
    seen: set[int] = set()
    for path in sorted(folder.glob("*.part")):
        try:
            found = read_checkpoint(path)
            part = Estimate(**json.loads(found["summary"]), **found["tensors"], terms=found["terms"])
            rows = set(() if part.indices is None else part.indices.tolist())
            usable = len(rows) == len(part) and not rows & seen and rows <= known
        except DAMAGED:
            usable, part, rows = False, None, set()
        if not usable or part is None:
            path.unlink(missing_ok=True)  # it is measured again
            continue
        parts.append(part)
        seen |= rows
    return parts


def remove_parts(folder: Path) -> None:
    """Remove the parts of an evaluation; what else is in the folder stays."""
    for path in folder.glob("*.part"):
        path.unlink(missing_ok=True)
    if folder.is_dir():
        atomic.sweep(folder)
        if not any(folder.iterdir()):
            folder.rmdir()
