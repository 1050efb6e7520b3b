"""The network of a diffusion model as ONNX, or as a program of `torch.export`, and what others must know to call it."""

from __future__ import annotations

import io
import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...data.class_names import names_of
from ...denoisers import NetworkDenoiser
from ...denoisers.network_call import output_tensor, takes_of
from ...denoisers.preconditioning import C_NOISE_LIMIT
from ...errors import UserError, way_to_install
from ...models import DiffusionModel, TrainedModel
from ...storage import atomic, runs

ONNX, TORCH, DESCRIPTION = "network.onnx", "network.pt2", "network.json"
INPUTS = ("x", "c_noise", "labels")
_NEEDED = ("onnx", "onnxscript")
_MOST_BYTES = 2**31 - 2**20  # of one ONNX file, which is one protobuf message


class PlainNetwork(nn.Module):
    """The network of a denoiser with tensors alone for arguments, all of them needed, and one tensor for a result.

    Args:
        denoiser: The denoiser.
    """

    def __init__(self, denoiser: NetworkDenoiser):
        super().__init__()
        self.network = denoiser.network
        self.takes = takes_of(denoiser.network)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """The network's output.

        Args:
            x: c_in x_t, shape (B, *shape).
            c_noise: Noise levels, (B,).
            labels: Classes, int64 (B,), for a network that takes them; their number means none.
        """
        more, named = self.takes.arguments(labels)
        return output_tensor(self.network(x, c_noise, *more, **named))


def denoiser_of_network(model: TrainedModel) -> NetworkDenoiser:
    """The denoiser of a model, if it is one with a network of x and c_noise."""
    if not isinstance(model, DiffusionModel):
        raise UserError(
            f"{model.source}: is of family '{model.config.family}'; a diffusion model has a network to export"
        )
    if not isinstance(model.denoiser, NetworkDenoiser):
        raise UserError(f"{model.source}: its network follows another convention (docs/adopt.md); export the original")
    if model.denoiser.parts:
        parts = ", ".join(map(str, model.denoiser.parts))
        raise UserError(f"{model.source}: conditioned on {parts}; an export takes x, a noise level and a class alone")
    return model.denoiser


def example(denoiser: NetworkDenoiser) -> tuple[Tensor, ...]:
    """Arguments of the network: zeros for two samples, with labels if it takes them."""
    inputs = (torch.zeros(2, *denoiser.shape), torch.zeros(2))
    return (*inputs, torch.zeros(2, dtype=torch.int64)) if denoiser.num_classes else inputs


def check_onnx() -> None:
    """Refuse to begin without the libraries that write ONNX."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f"--to: ONNX is written through {missing[0]}, which is not installed; {way_to_install('web')}")


@torch.no_grad()
def exported(denoiser: NetworkDenoiser) -> torch.export.ExportedProgram:
    """The network as a program for batches of any size; float32 on the CPU."""
    network = PlainNetwork(denoiser).float().cpu().eval()
    inputs = example(denoiser)
    sizes = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
    return torch.export.export(network, inputs, dynamic_shapes=sizes)


def description(model: DiffusionModel, denoiser: NetworkDenoiser) -> dict[str, Any]:
    """What one must know to denoise with the network: its arguments, what it predicts, and the path."""
    predicts = denoiser.parameterization
    return {
        "model": named(model),
        "weights": model.weights,
        "data": model.facts.name,
        "shape": list(denoiser.shape),
        "levels": model.facts.levels,
        "classes": list(names_of(model.facts.provenance, denoiser.num_classes)),
        "no_label": denoiser.num_classes if denoiser.num_classes else None,
        "inputs": {
            "x": "c_in x_t, c_in = 1 / sqrt(alpha^2 sigma_data^2 + sigma^2); x_t = alpha x + sigma eps",
            "c_noise": f"log(alpha^2 / sigma^2) / 4 within -{C_NOISE_LIMIT:g} and {C_NOISE_LIMIT:g}, one per sample",
            **({"labels": "the number of a class, or no_label"} if denoiser.num_classes else {}),
        },
        "output": "raw" if predicts == "levels" else predicts,
        "data_to_x": _units(model),
        **({} if model.normalizer is None else {"normalizer": model.normalizer.to_plain()}),
        "sigma_data": denoiser.sigma_data,
        "schedule": repr(denoiser.schedule),
    }


def _units(model: DiffusionModel) -> str:
    """How data become x, clean data as the network knows them, and back."""
    levels, normalizer = model.facts.levels, model.normalizer
    if levels is not None:
        return (
            f"level k, 0 to {levels - 1}, is x = (2 k + 1) / {levels} - 1; back: k = floor({levels} (x + 1) / 2), cut "
            f"to 0 to {levels - 1}"
        )
    if normalizer is None:
        return "x is the data, in their own units"
    if normalizer.directions is None:
        return "x = (data - mean) / sqrt(variances), of each channel; back: data = mean + sqrt(variances) x"
    return (
        "x = ((data - mean) U) / sqrt(variances), data a row of all its entries; back: data = mean + "
        "(sqrt(variances) x) U^T. U is directions: base64 of float64, little-endian, row after row; its columns are "
        "the eigenvectors"
    )


def named(model: TrainedModel) -> str:
    """The model as a command line names it, without where it is on this machine."""
    if runs.shipped_file(model.source) is not None:
        return model.source
    source = Path(model.source).absolute()
    if source.parent.name == runs.CHECKPOINTS:
        return "/".join(source.parts[-3:])
    return source.parent.name if source.name == runs.MODEL else source.name


def write_torch(model: TrainedModel, folder: Path) -> None:
    """Write `network.pt2` (`torch.export.load` reads it) and its description.

    Raises:
        UserError: For a model without a network to export.
    """
    denoiser = denoiser_of_network(model)
    assert isinstance(model, DiffusionModel)
    text = describing(model, denoiser)
    program = exported(denoiser)
    buffer = io.BytesIO()  # a write to the disk that fails within it would abort the process
    torch.export.save(program, buffer, extra_files={DESCRIPTION: text})
    atomic.write_bytes(folder / TORCH, buffer.getvalue())
    atomic.write_text(folder / DESCRIPTION, text)


def write_onnx(model: TrainedModel, folder: Path) -> None:
    """Write `network.onnx`, one file for batches of any size, with its description inside and next to it.

    Raises:
        UserError: For a model without a network to export, or one of more than 2 GiB.
    """
    denoiser = denoiser_of_network(model)
    assert isinstance(model, DiffusionModel)
    if (size := sum(4 * weight.numel() for weight in denoiser.network.parameters())) > _MOST_BYTES:
        raise UserError(f"{model.source}: has {size / 2**30:.1f} GiB of weights; an ONNX file holds 2; use --to torch")
    text = describing(model, denoiser)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own future
        names = INPUTS[: len(example(denoiser))]
        program = torch.onnx.export(
            exported(denoiser), input_names=names, output_names=["output"], dynamo=True, verbose=False
        )
    assert program is not None
    program.model.metadata_props["diffusion"] = text
    with atomic.writer(folder / ONNX) as file:
        file.write(program.model_proto.SerializeToString())
    atomic.write_text(folder / DESCRIPTION, text)


def describing(model: DiffusionModel, denoiser: NetworkDenoiser) -> str:
    """The description as text."""
    return json.dumps(description(model, denoiser), indent=2) + "\n"
