"""The folders of the library diffusers: `unet/` with config.json and weights, `scheduler/`, and model_index.json.

The files of a part without a folder of its own are in that of the pipeline, as in those of `google/ddpm-*`.

The scheduler's fields say how the network was trained: the table of betas is the path, `prediction_type` the answer,
and the network takes the index of a level. They also say how it is drawn from: the sampler, `timestep_spacing` the
grid, `clip_sample` the clipping of x_hat.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ...denoisers.conventions import path_of
from ...errors import UserError
from ...schedules.discrete import Levels, without_signal
from ...storage.foreign_weights import read_weights
from ...storage.records import reading
from ...storage.runs import FOREIGN_MARKS
from . import diffusers_dit, diffusers_unet
from .fields import Fields
from .known import Known

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
PREDICTS = {"epsilon": "eps", "sample": "x", "v_prediction": "v"}
SPACINGS = {"leading": "leading", "trailing": "trailing", "linspace": "time"}
# Of ancestral steps; their fixed_large_log and learned (not a range) are those of no published pipeline.
VARIANCES = {"fixed_small": "lower", "fixed_small_log": "lower", "fixed_large": "upper", "learned_range": "learned"}
# Their schedulers on a table of betas, and the sampler of ours that draws as they do; None: another one does.
SCHEDULERS = {"DDPMScheduler": "ancestral", "DDIMScheduler": "ddim"} | dict.fromkeys(
    f"{name}Scheduler"
    for name in (
        "PNDM", "DEISMultistep", "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "EulerDiscrete",
        "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete",
    )
)  # fmt: skip
VE = "ScoreSdeVeScheduler"
BETAS = {"linear": "linear", "scaled_linear": "scaled-linear", "squaredcos_cap_v2": "cosine", "sigmoid": "sigmoid"}
LEVELS = 256
NETWORKS = {"unet": "UNet2DModel", "transformer": "DiTTransformer2DModel"}  # by the folder they are in


def recognises(path: Path) -> bool:
    """Whether this is the folder of a pipeline."""
    return path.is_dir() and any((path / mark).is_file() for mark in FOREIGN_MARKS)


def read(path: Path) -> Known:
    """The network and the conventions of a pipeline.

    Raises:
        UserError: For a file that is missing or damaged, a field of another kind, and a pipeline of other parts.
    """
    part = next((name for name in NETWORKS if (path / name).is_dir()), None)
    place = path if part is None else path / part
    fields = Fields(place / "config.json")
    kind = fields.word("_class_name", None, NETWORKS.values() if part is None else [NETWORKS[part]])
    named = path / "scheduler"
    scheduler = Fields((named if part is not None or named.is_dir() else path) / "scheduler_config.json")
    weights = _weights(place)
    conventions, sampling = conventions_of(scheduler), sampling_of(scheduler)
    conventions["shape"] = [fields.whole("in_channels", None), *fields.sides("sample_size")]
    if (path / "vae").is_dir() or (path / "vqvae").is_dir():  # its data are an encoder's, which is not read
        conventions |= {"levels": None, "data_range": None}
    if kind == NETWORKS["transformer"]:
        classes = fields.whole("num_embeds_ada_norm", None)
        conventions["labels"] = [classes, classes]
    elif fields.get("num_class_embeds") is not None:
        conventions["labels"] = fields.whole("num_class_embeds", None)
    elif fields.get("class_embed_type") is not None:
        raise fields.refuse("class_embed_type", "null, or num_class_embeds, the number of classes")
    if fields.get("time_embedding_type") == "learned":  # a table has no rows in between
        conventions["time"] = "index-rounded"
    return Known(*_network(kind, fields, weights), conventions, sampling)


def _network(kind: str, fields: Fields, weights: dict[str, Tensor]) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """The name, the options and the weights of the network: ours where it is the same function, else theirs."""
    of_unet = kind == NETWORKS["unet"]
    options = diffusers_unet.options_of(fields) if of_unet else diffusers_dit.options_of(fields)
    if options is None or not (of_unet or diffusers_dit.is_shared(weights)):
        return "diffusers", {"kind": kind, "config": fields.values}, weights
    cos_first = fields.flag("flip_sin_to_cos", True)
    with reading(f"{fields.path.parent}: its weights are not those of its config.json"):
        if of_unet:
            return "unet", options, diffusers_unet.to_ours(weights, options, cos_first)
        return "dit", options, diffusers_dit.to_ours(weights, options)


def _weights(folder: Path) -> dict[str, Tensor]:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return read_weights(folder / name, prefix="")
        if (index := folder / f"{name}.index.json").is_file():
            return _of_several(Fields(index))
    found = sorted(path.name for suffix in ("safetensors", "bin") for path in folder.glob(f"*.{suffix}"))
    near = f"found {found[0]}; " if found else ""
    raise UserError(
        f"{folder}: holds no weights; {near}accepted: {' or '.join(WEIGHTS)}, or in parts with an .index.json"
    )


def _of_several(index: Fields) -> dict[str, Tensor]:
    """Weights in several files, of which an index says where each is."""
    places = index.get("weight_map")
    names = list(places.values()) if isinstance(places, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise index.refuse("weight_map", "the name of a file next to it for every weight")
    weights: dict[str, Tensor] = {}
    for name in sorted(set(names)):
        weights |= read_weights(index.path.parent / name, prefix="")
    if missing := sorted(places.keys() - weights.keys()):
        raise UserError(f"{index.path}: weight '{missing[0]}' is in none of its files")
    return weights


def conventions_of(scheduler: Fields) -> dict[str, Any]:
    """Arguments of `adopt`, from the scheduler that the network was trained by.

    Raises:
        UserError: For a scheduler of no known path, and a field of another kind.
    """
    kind = scheduler.word("_class_name", None, [*SCHEDULERS, VE])
    if kind == VE:  # score_sde's, whose data are in [0, 1] and whose network answers the score
        ends = {f"sigma_{end}": scheduler.number(f"sigma_{end}", None, 1e-9, 1e9) for end in ("min", "max")}
        return {"path": {"name": "ve", **ends}, "predicts": "score", "time": "sigma", "levels": LEVELS,
                "data_range": [0, 1]}  # fmt: skip
    clips = scheduler.flag("clip_sample", SCHEDULERS[kind] is not None)
    thresholds = scheduler.flag("thresholding", False)  # which takes the place of clipping
    return {
        "path": _path_of(scheduler),
        "predicts": PREDICTS[scheduler.word("prediction_type", "epsilon", PREDICTS)],
        "time": "index",
        "levels": LEVELS,
        "clip": scheduler.number("clip_sample_range", 1.0, 1e-9) if clips and not thresholds else None,
        **({"threshold": [scheduler.number("dynamic_thresholding_ratio", 0.995, 1e-9, 1.0),
                          scheduler.number("sample_max_value", 1.0, 1.0)]} if thresholds else {}),
    }  # fmt: skip


def _path_of(scheduler: Fields) -> dict[str, Any]:
    """The path of a table of betas, as `adopt` takes it."""
    if scheduler.get("trained_betas") is not None:
        path: dict[str, Any] = {"betas": scheduler.numbers("trained_betas")}
    else:
        path = {
            "name": "ddpm",
            "steps": scheduler.whole("num_train_timesteps", None, 2, 1_000_000),
            "betas": BETAS[scheduler.word("beta_schedule", None, BETAS)],
            "beta_start": scheduler.number("beta_start", None, 1e-9, 1.0),
            "beta_end": scheduler.number("beta_end", None, 1e-9, 1.0),
        }
    if not scheduler.flag("rescale_betas_zero_snr", False):
        return path
    levels = path_of(path).schedule
    assert isinstance(levels, Levels)
    return {"alphas_cumprod": without_signal(levels).tolist()}


def sampling_of(scheduler: Fields) -> dict[str, Any]:
    """Fields of `SamplingConfig`: how the pipeline draws, where its sampler is one of ours."""
    sampler = SCHEDULERS.get(scheduler.get("_class_name"))
    if sampler is None:
        return {}
    more: dict[str, Any] = {}
    if sampler == "ancestral":
        more["steps"] = scheduler.whole("num_train_timesteps", None)
        if (kind := scheduler.word("variance_type", "fixed_small", VARIANCES)) != "fixed_small":
            more["variance"] = VARIANCES[kind]
    if offset := scheduler.whole("steps_offset", 0, 0):
        more["steps_offset"] = offset
    if sampler == "ddim" and not scheduler.flag("set_alpha_to_one", True):
        more["ends_at_level"] = True
    return {"sampler": sampler, "grid": SPACINGS[scheduler.word("timestep_spacing", "leading", SPACINGS)], **more}
