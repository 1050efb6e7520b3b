"""The configuration of a run: optimisation, training, what is drawn and measured, and the whole of it, `Config`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ..errors import UserError
from .options import Among, Place, Section, declared, option
from .sections import (
    DENOISING,
    TOY_SETS,
    AutoencoderConfig,
    DataConfig,
    DenoiserConfig,
    NetworkConfig,
    ObjectiveConfig,
    ScheduleConfig,
)
from .strict_yaml import show

Decay = Annotated[float, Field(ge=0, lt=1)]
Width = Annotated[float, Field(gt=0, lt=0.288)]


class OptimizerConfig(Section):
    """How the weights are updated."""

    section = "optimizer"

    name: Literal["adamw", "muon", "adax"] = option(
        "adamw",
        "adamw (with weight_decay 0 it is Adam); muon: orthogonal updates of matrices, adamw for the rest; adax: early "
        "squares of the gradient count for longest, and their average freezes late in training, after 1 / adax_beta "
        "steps",
    )
    lr: float = option(2e-4, "learning rate after the warmup", gt=0)
    muon_lr: float | None = option({"muon": 0.02}, "that of matrices, the size of an update in the spectral norm", gt=0)
    betas: tuple[Decay, Decay] = option(
        (0.9, 0.999), "decay rates of the averages of the gradient and its square; adax takes the first alone"
    )
    adax_beta: float | None = option(
        {"adax": 1e-4}, "the square of step t has the weight (1 + adax_beta)^t in the average", gt=0, lt=1
    )
    weight_decay: float = option(0.0, "decoupled weight decay", ge=0)
    warmup: int = option(1000, "steps over which the learning rate rises linearly from 0", ge=0)
    decay: Literal["constant", "cosine"] = option("constant", "the learning rate after the warmup")
    gradient_clip: float | None = option(1.0, "largest norm of the gradient; null: not clipped", gt=0)


class EMAConfig(Section):
    """The exponential moving average of the weights, which samples and likelihoods use."""

    section = "ema"

    half_life: float = option(500_000.0, "half-life of the average, in images", gt=0)
    ramp_up: float | None = option(
        0.05, "largest half-life as a fraction of the images seen so far; null: not limited", gt=0, le=1
    )
    widths: tuple[Width, ...] = option(
        (),
        "also track averages of these widths, e.g. [0.05, 0.1], relative to the length of training; afterwards "
        "`python -m diffusion average RUN --width 0.12` makes one of any width",
        families=(*DENOISING, "vae"),
    )
    snapshots: int = option(
        32, "how often the averages of widths are kept in the run, each time with a copy of the weights a width", ge=2,
        families=(*DENOISING, "vae"),
    )  # fmt: skip

    def check(self) -> None:
        if len(self.widths) == 1 or len(set(self.widths)) != len(self.widths):
            raise UserError(f"ema.widths: found {show(list(self.widths))}; must be two or more different ones, or []")


class TrainerConfig(Section):
    """How long to train, on what, and how often to log, validate, sample and save."""

    section = "trainer"

    steps: int = option(100_000, "total number of optimiser steps", ge=1)
    start: Place | None = option(
        None,
        "the model whose weights training starts from (--from): a run, a file of one, pretrained:NAME, or what another "
        "project wrote, also hf:OWNER/NAME",
    )
    lora: int | None = option(
        None, "with start: the rank of factors of attention and convolutions, which alone are trained; null: all is",
        families=DENOISING, ge=1,
    )  # fmt: skip
    batch_size: int = option(128, "images per step, over all devices", ge=1)
    accumulate: int = option(1, "number of parts in which a batch is processed, to save memory", ge=1)
    precision: Literal["auto", "32", "bf16"] = option("auto", "of the network; auto: bf16 where it is fast")
    compile: Literal["auto"] | bool = option("auto", "torch.compile; auto: on a GPU")
    devices: int = option(1, "number of processes, one per device", ge=1)
    strategy: Literal["ddp", "sharded"] = option(
        "ddp", "with several processes: each holds the whole model (ddp) or a part of it (sharded)"
    )
    workers: int = option(0, "data-loading processes per device; 0: none, for data in memory", ge=0)
    log_every: int = option(50, "steps between two lines of metrics", ge=1)
    validate_every: int = option(5000, "steps between two validations; 0: none", ge=0)
    sample_every: int = option(5000, "steps between two grids of samples; 0: none", ge=0)
    checkpoint_every: int = option(5000, "steps between two checkpoints; the last step is always kept", ge=1)
    keep_last: int = option(2, "number of checkpoints kept", ge=1)

    def check(self) -> None:
        if self.lora is not None and self.start is None:
            raise UserError(f"trainer.lora: found {self.lora}; factors are of a model to start from: give --from MODEL")
        parts = self.accumulate * self.devices
        if self.batch_size % parts:
            raise UserError(
                f"trainer.batch_size: found {self.batch_size}; must be a multiple of accumulate x devices, {parts}"
            )


SAMPLERS = {
    "ode": "samplers.ode.probability_flow:ODE",
    "ddim": "samplers.ddim:DDIM",
    "ancestral": "samplers.ancestral:Ancestral",
    "sde": "samplers.sde.reverse_sde:ExponentialSDE",
    "euler-maruyama": "samplers.sde.reverse_sde:EulerMaruyama",
    "predictor-corrector": "samplers.sde.predictor_corrector:PredictorCorrector",
    "dpm-solver++sde": "samplers.sde.dpm_solver_sde:DPMSolverSDE",
    "sa-solver": "samplers.sde.sa_solver:SASolver",
    "adaptive-sde": "samplers.sde.adaptive_sde:AdaptiveSDE",
    "euler": "samplers.ode.edm:Euler",
    "heun": "samplers.ode.edm:Heun",
    "dpm-solver-2": "samplers.ode.dpm_solver:DPMSolver2",
    "dpm-solver-3": "samplers.ode.dpm_solver:DPMSolver3",
    "dpm-solver++2m": "samplers.ode.linear_multistep:DPMSolverPP2M",
    "dpm-solver++3m": "samplers.ode.linear_multistep:DPMSolverPP3M",
    "unipc": "samplers.ode.linear_multistep:UniPC",
    "deis": "samplers.ode.linear_multistep:DEIS",
    "adams": "samplers.ode.linear_multistep:Adams",
    "abm": "samplers.ode.linear_multistep:ABM",
}
# Grids of times. Strides are every (T / steps)-th of T levels: from the noisiest down, or from the cleanest up
# (arXiv 2305.08891, table 2).
STRIDES = ("trailing", "leading")
GRIDS = ("shifted", "cauchy", "log-snr", "karras", "angle", "time", "quadratic", *STRIDES)
AUTO_GRID = "auto"  # depends on the model: `sampling.auto_grid` makes it
# What `--sampler` takes besides the samplers of a configuration: a solver fitted to a trained model. The numbers to
# fit, and with them the cost, grow with the square of its steps.
FITTED, FITTED_STEPS = "fitted", range(2, 11)


class SamplingConfig(Section):
    """The samples drawn while training, and the defaults of sample.py."""

    section = "sampling"

    sampler: Annotated[str, Among(SAMPLERS)] = option(
        "abm", "the sampler; fitted, a solver fitted to the trained model, can only be given as --sampler",
        families=DENOISING,
    )  # fmt: skip
    steps: int | None = option(
        None,
        "number of steps, unless the sampler is adaptive; null: 20 for abm, 50 for others",
        ge=1,
        families=DENOISING,
    )
    grid: Annotated[str, Among((*GRIDS, AUTO_GRID))] | None = option(
        None,
        "the times of the steps; null: those that suit the sampler; auto: tuned to the trained model",
        families=DENOISING,
    )
    log_snr_end: float | None = option(
        None,
        "log-SNR at which sampling ends; null: 3 log(steps) for shifted and cauchy, else 9.25 (later with grid null)",
        families=DENOISING,
    )
    eta: float | None = option(
        None,
        "stochasticity: 0 for the ODE, 1 for the reverse SDE; null: the sampler's default",
        ge=0,
        families=DENOISING,
    )
    prior: Literal["normal", "mixture"] = option(
        "normal", "eae: the law from which codes are drawn; mixture: fitted to the codes", families=("eae",)
    )
    n: int = option(64, "number of samples", ge=1)

    def check(self) -> None:
        if self.grid == AUTO_GRID and self.log_snr_end is not None:
            raise UserError(f"sampling.log_snr_end: found {self.log_snr_end:g}; sampling.grid 'auto' chooses its own")


class EvaluationConfig(Section):
    """The likelihood of the test set, measured at the end of training."""

    section = "evaluation"

    enabled: bool = option(True, "whether to measure it")
    images: int | None = option(None, "number of test images, the same every time; null: all", ge=1)
    tolerance: float = option(1e-4, "relative and absolute tolerance of the ODE solver", gt=0, lt=1, families=DENOISING)
    probes: int = option(1, "probe vectors of the trace estimator per image", ge=1, families=DENOISING)
    elbo_draws: int = option(32, "draws (of times or codes) per image for the variational bound", ge=1)
    iwae_samples: int = option(
        1000, "draws K per image for the importance-weighted bound (vae, eae)", ge=1, families=("vae", "eae")
    )
    baselines: bool = option(True, "also measure classical models: fitted once per data set, and stored")
    batch_size: int = option(256, "images, or codes of images, processed at a time", ge=1)


class LoggingConfig(Section):
    """Weights & Biases; metrics.jsonl in the run folder is always written."""

    section = "logging"

    wandb: Literal["auto", "online", "offline", "off"] = option("auto", "auto: WANDB_MODE if set, else offline")
    project: str = option("diffusion", "the W&B project")
    group: str | None = option(None, "the W&B group, which joins the runs of an experiment")
    tags: tuple[str, ...] = option((), "W&B tags")


FAMILIES = {
    "diffusion": "models.diffusion_model:DiffusionModel",
    "adopted": "models.adopt:AdoptedModel",
    "vae": "models.latent_model:LatentModel",
    "eae": "models.latent_model:EAEModel",
}


class Config(Section):
    """A run: model, data, training, and what is sampled and measured."""

    section = ""

    family: Annotated[str, Among(FAMILIES)] = option(
        "diffusion",
        "the family of the model: diffusion, variational or entropic autoencoder; adopted: a diffusion model of "
        "another project, trained further (--from) by its own conventions",
    )
    name: str | None = option(None, "name of the run; null: the name of the configuration file")
    seed: int = option(0, "the random seed", ge=0)
    runs: Place = option("runs", "folder of runs")
    device: Literal["auto", "cpu", "cuda", "mps"] = option(
        "auto", "the device; auto: a GPU of CUDA if there is one; mps: that of a Mac"
    )

    data: DataConfig = DataConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    network: NetworkConfig = NetworkConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EMAConfig = EMAConfig()
    trainer: TrainerConfig = TrainerConfig()
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()

    def check(self) -> None:
        if self.name is not None and (Path(self.name).name != self.name or self.name == ".."):
            raise UserError(f"name: found {show(self.name)}; must be the name of a folder, not a path")
        if self.denoiser.prediction == "levels" and self.objective.dequantize:
            raise UserError("objective.dequantize: found true; denoiser.prediction 'levels' takes false")
        if self.trainer.lora is not None and self.ema.widths:
            raise UserError(f"ema.widths: found {show(list(self.ema.widths))}; with trainer.lora: []")
        if self.schedule.name == self.objective.weighting == "learned":
            raise UserError("objective.weighting: found 'learned'; schedule.name 'learned' takes elbo or likelihood")
        named = ", ".join(name for name in self.denoiser.condition if name != "label")
        if named and self.data.name in TOY_SETS:
            raise UserError(
                f"denoiser.condition: found {named}; draws of '{self.data.name}' have none; accepted: images, or draws "
                "that are saved as an array (data.name=array)"
            )
        for section, name, families in self.foreign():
            value, default = getattr(section, name), getattr(type(section)(), name)
            if value != default:
                takers = ", ".join(families)
                key = section.key(name)
                do = "do" if len(families) > 1 else "does"
                raise UserError(f"{key}: found {show(value)}; family '{self.family}' does not take it; {takers} {do}")

    def sections(self) -> list[Section]:
        """The sections, in their order."""
        return [value for value in self.__dict__.values() if isinstance(value, Section)]

    def foreign(self) -> list[tuple[Section, str, tuple[str, ...]]]:
        """Options that other families take, which stand at their defaults: section, name and those families."""
        return [
            (section, name, families)
            for section in self.sections()
            for name, field in type(section).model_fields.items()
            if (families := declared(field, "families") or section.families) and self.family not in families
        ]
