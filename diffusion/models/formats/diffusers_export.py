"""Our U-Net as a folder of diffusers, which its `DDPMPipeline.from_pretrained` loads and draws from.

Any path is one of betas, matched by log-SNR, and any features of the noise level are a table by the index of a level
(`time_embedding_type` "learned"): at each of 1000 levels theirs is the same function.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...denoisers import NetworkDenoiser
from ...denoisers.preconditioning import c_noise
from ...errors import UserError
from ...networks import UNet
from ...schedules import DDPM, Schedule
from ...schedules.discrete import Levels
from ...schedules.time_grids import LOG_SNR_END
from ...storage import atomic, tensor_files
from ..adopt import AdoptedModel
from ..diffusion_model import DiffusionModel
from ..trained_model import TrainedModel
from . import diffusers_unet
from .diffusers import BETAS, PREDICTS, WEIGHTS

LEVELS = 1000
VERSION = "0.35.0"  # of the library, whose fields these are
_OURS = {"eps": "epsilon", "x": "sample", "v": "v_prediction", "edm": "v_prediction"}


def levels_of(schedule: Schedule) -> Tensor:
    """The times of the levels that stand for a path, rising: its own, or 1000 up to the log-SNR at which grids end."""
    if isinstance(schedule, Levels):
        return torch.arange(1, schedule.steps + 1, dtype=torch.float64) / schedule.steps
    end = torch.tensor(LOG_SNR_END, dtype=torch.float64)
    first = max(schedule.t_min, float(schedule.inverse_log_snr(end))) if _reaches(schedule) else schedule.t_min
    return torch.linspace(first, schedule.t_max, LEVELS, dtype=torch.float64)


def _reaches(schedule: Schedule) -> bool:
    return float(schedule.log_snr(torch.tensor(schedule.t_min, dtype=torch.float64))) > LOG_SNR_END


@torch.no_grad()
def write(model: TrainedModel, folder: Path) -> None:
    """Write a model as a pipeline.

    Args:
        model: A diffusion model.
        folder: A folder that is not there.

    Raises:
        UserError: For a model that a pipeline of diffusers cannot express, with what it is.
    """
    if isinstance(model, AdoptedModel) and model.known is not None:
        config, weights, scheduler = _of_known(model)
    elif isinstance(model, DiffusionModel) and isinstance(model.denoiser, NetworkDenoiser):
        config, weights, scheduler = _of_ours(model, model.denoiser)
    else:
        raise _refusal(model, "is no diffusion model with a U-Net of ours")
    part = folder / "unet"
    part.mkdir(parents=True)
    (folder / "scheduler").mkdir()
    tensor_files.write(part / WEIGHTS[0], weights, {"format": "pt"})
    _write_json(part / "config.json", {"_class_name": "UNet2DModel", **config})
    _write_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": "DDIMScheduler", **scheduler})
    index = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDIMScheduler"]}
    _write_json(folder / "model_index.json", {"_class_name": "DDPMPipeline", **index})


def _write_json(path: Path, values: dict[str, Any]) -> None:
    atomic.write_text(path, json.dumps({"_diffusers_version": VERSION, **values}, indent=2) + "\n")


def _refusal(model: TrainedModel, reason: str) -> UserError:
    return UserError(f"{model.source}: {reason}; a pipeline of diffusers cannot express that")


Parts = tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]


def _of_known(model: AdoptedModel) -> Parts:
    """The config, the weights and the scheduler of what was read from a known format."""
    known, convention = model.known, model.adopted.convention
    assert known is not None
    named = {ours: theirs for theirs, ours in PREDICTS.items()}
    if convention.predicts not in named or not isinstance(convention.path.schedule, Levels):
        raise _refusal(model, f"predicts '{convention.predicts}' on the path {convention.path.schedule}")
    if convention.data_range != (-1.0, 1.0) or convention.takes_scaled:
        raise _refusal(model, f"sees data in {convention.data_range}, scaled {convention.takes_scaled}")
    scheduler = _scheduler(convention.path.schedule, named[convention.predicts], model.clip)
    scheduler["set_alpha_to_one"] = not model.ends_at_level
    if model.threshold is not None:
        quantile, most = model.threshold
        scheduler |= {"thresholding": True, "dynamic_thresholding_ratio": quantile, "sample_max_value": most}
    if known.network == "diffusers" and known.options["kind"] == "UNet2DModel":
        return known.options["config"], known.weights, scheduler
    network = model.adopted.network.network
    if not isinstance(network, UNet) or not str(known.options.get("noise_embedding")).startswith("index"):
        raise _refusal(model, f"has a {type(network).__name__} that takes time as '{convention.time}'")
    embedding = {"freq_shift": int(known.options["noise_embedding"] == "index-endpoint"), "flip_sin_to_cos": False}
    return {**_config(model, network, known.options), **embedding}, diffusers_unet.to_theirs(known.weights), scheduler


def _of_ours(model: DiffusionModel, denoiser: NetworkDenoiser) -> Parts:
    """The same of a model that was trained here."""
    network, schedule, predicts = denoiser.network, denoiser.schedule, denoiser.parameterization
    if not isinstance(network, UNet):
        raise _refusal(model, f"has a {type(network).__name__}")
    if denoiser.parts:
        raise _refusal(model, f"is conditioned on {', '.join(map(str, denoiser.parts))}")
    if model.facts.levels is None:  # theirs draws images in [-1, 1], and knows neither mean nor standard deviation
        raise _refusal(model, f"draws real numbers ('{model.facts.name}'), not images of levels")
    times = levels_of(schedule)
    preserving = bool((torch.hypot(*schedule(times)) - 1.0).abs().max() < 1e-6)
    if predicts not in _OURS or (predicts == "v" and not preserving) or type(denoiser) is not NetworkDenoiser:
        raise _refusal(model, f"predicts '{predicts}' on the path '{model.config.schedule.name}'")
    if denoiser.sigma_data != 1.0:  # else c_in x_t is x_t of the path with the same log-SNR whose variance is kept
        raise _refusal(model, f"scales its input by denoiser.sigma_data {denoiser.sigma_data:g}")
    options = model.config.network.options()
    options |= {"in_channels": denoiser.shape[0], "image_size": denoiser.shape[1:]}
    weights = diffusers_unet.to_theirs(network.state_dict())
    if predicts == "edm":  # x_hat = alpha x_t + sigma F of unit data: F is -v
        weights |= {name: -weights[name] for name in ("conv_out.weight", "conv_out.bias")}
    log_snr = schedule.log_snr(times)
    dtype = network.conv_in.weight.dtype
    weights["time_proj.weight"] = network.conditioning.noise(c_noise(log_snr).to(dtype)).cpu()
    weights.pop("conditioning.noise.frequencies", None)
    config = {"time_embedding_type": "learned", "num_train_timesteps": len(times)}
    own = schedule if isinstance(schedule, DDPM) else log_snr
    return {**_config(model, network, options), **config}, weights, _scheduler(own, _OURS[predicts], None)


def _config(model: TrainedModel, network: UNet, options: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `UNet2DModel` that is the same function.

    Args:
        model: For messages.
        network: The network.
        options: The arguments that it was made with.
    """
    sides, multipliers = list(options["image_size"]), options["multipliers"]
    norms = {(m.num_groups, m.eps) for m in network.modules() if isinstance(m, nn.GroupNorm)}
    if network.dims != 2:
        raise _refusal(model, f"has data with {network.dims} sides")
    if network.patch_size > 1 or network.fourier_features:
        found = f"patch_size {network.patch_size}, fourier_features {list(network.fourier_features)}"
        raise _refusal(model, f"has a network of {found}")
    if any(side % network.size_multiple for side in sides):
        raise _refusal(model, f"pads images of {sides} to multiples of {network.size_multiple}")
    if len(norms) != 1:
        raise _refusal(model, f"has normalisations of {sorted(groups for groups, _ in norms)} groups")
    ((groups, eps),) = norms
    attention = [max(sides) >> level in options["attention"] for level in range(len(multipliers))]
    classes = network.conditioning.classes
    return {
        "sample_size": sides,
        "in_channels": network.in_channels,
        "out_channels": network.conv_out.out_channels,
        "block_out_channels": [n * options["base_channels"] for n in multipliers],
        "layers_per_block": options["blocks"],
        "down_block_types": ["AttnDownBlock2D" if has else "DownBlock2D" for has in attention],
        "up_block_types": ["AttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attention)],
        "attention_head_dim": options.get("head_channels"),
        "norm_num_groups": groups,
        "norm_eps": eps,
        "downsample_padding": 0 if options.get("pad_end") else 1,
        "dropout": options.get("dropout", 0.0),
        "num_class_embeds": None if classes is None else classes.num_embeddings,
    }


def _scheduler(path: Levels | Tensor, predicts: str, clip: float | None) -> dict[str, Any]:
    """The fields of a `DDIMScheduler`, on a path of levels or on a table of their log-SNR."""
    fields: dict[str, Any] = {
        "prediction_type": predicts,
        "clip_sample": clip is not None,
        "clip_sample_range": 1.0 if clip is None else clip,
        "timestep_spacing": "trailing",
        "set_alpha_to_one": True,
    }
    if isinstance(path, DDPM) and path.betas != "sigmoid":  # which that class does not have
        kind = next(theirs for theirs, ours in BETAS.items() if ours == path.betas)
        ends = {"beta_start": path.beta_start, "beta_end": path.beta_end}
        return {**fields, "num_train_timesteps": path.steps, "beta_schedule": kind, **ends}
    log_snr = path.log_snr(levels_of(path)) if isinstance(path, Levels) else path
    kept = torch.nn.functional.logsigmoid(log_snr.double())  # log alphas_cumprod
    betas = -torch.expm1(torch.cat((kept[:1], kept.diff())))
    return {**fields, "num_train_timesteps": len(betas), "trained_betas": betas.tolist()}
