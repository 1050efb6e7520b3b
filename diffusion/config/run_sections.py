"""The configuration of a run: optimisation, training, what is drawn and measured, and the whole of it, `Config`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar, Literal

from ..errors import UserError
from .sections import AutoencoderConfig, DataConfig, DenoiserConfig, NetworkConfig, ObjectiveConfig, ScheduleConfig
from .values import Section, option, show


@dataclass(frozen=True)
class OptimizerConfig(Section):
    """How the weights are updated."""

    section: ClassVar[str] = "optimizer"

    name: Literal["adamw"] = option("adamw", "the optimizer; with weight_decay 0 it is Adam")
    lr: float = option(2e-4, "learning rate after the warmup", above=0)
    betas: tuple[float, float] = option(
        (0.9, 0.999), "decay of the averages of the gradient and its square", at_least=0, below=1
    )
    weight_decay: float = option(0.0, "decoupled weight decay", at_least=0)
    warmup: int = option(1000, "steps in which the learning rate rises linearly from 0", at_least=0)
    decay: Literal["constant", "cosine"] = option("constant", "the learning rate after the warmup")
    gradient_clip: float | None = option(1.0, "largest norm of the gradient; null: not clipped", above=0)


@dataclass(frozen=True)
class EMAConfig(Section):
    """The exponential moving average of the weights, which samples and likelihoods use."""

    section: ClassVar[str] = "ema"

    half_life: float = option(500_000.0, "half-life of the average, in images", above=0)
    ramp_up: float | None = option(
        0.05, "longest half-life as a share of the images seen so far; null: not limited", above=0, at_most=1
    )


@dataclass(frozen=True)
class TrainerConfig(Section):
    """How long training is, on what it runs, and how often it looks up."""

    section: ClassVar[str] = "trainer"

    steps: int = option(100_000, "updates of the weights, in all", at_least=1)
    batch_size: int = option(128, "images of one update, over all devices", at_least=1)
    accumulate: int = option(1, "parts that a batch is worked through in, to save memory", at_least=1)
    precision: Literal["auto", "32", "bf16"] = option("auto", "of the network; auto: bf16 where it is fast")
    compile: Literal["auto"] | bool = option("auto", "torch.compile; auto: on a GPU")
    devices: int = option(1, "number of processes, one a device", at_least=1)
    strategy: Literal["ddp", "sharded"] = option(
        "ddp", "several processes: each holds the model (ddp), or a part of it (sharded)"
    )
    workers: int = option(0, "processes that load the data, a device; 0: none, for data in memory", at_least=0)
    log_every: int = option(50, "steps between two lines of metrics", at_least=1)
    validate_every: int = option(5000, "steps between two validations; 0: none", at_least=0)
    sample_every: int = option(5000, "steps between two grids of samples; 0: none", at_least=0)
    checkpoint_every: int = option(5000, "steps between two checkpoints; the end is always kept", at_least=1)
    keep_last: int = option(2, "number of checkpoints kept", at_least=1)

    def check(self) -> None:
        parts = self.accumulate * self.devices
        if self.batch_size % parts:
            raise UserError(
                f"trainer.batch_size: found {self.batch_size}; must be a multiple of accumulate x devices, {parts}"
            )


@dataclass(frozen=True)
class SamplingConfig(Section):
    """The samples drawn while training, and the defaults of sample.py."""

    section: ClassVar[str] = "sampling"

    sampler: str = option("abm", "the method; sample.py --help lists them")
    steps: int | None = option(
        None, "steps of the method, where it does not choose them itself; null: 20 of abm, 50 of others", at_least=1
    )
    grid: Literal["cauchy", "log-snr", "karras", "angle", "time", "quadratic", "auto"] | None = option(
        None, "the times of the steps; null: as suits the sampler; auto: tuned to the model once it is trained"
    )
    log_snr_end: float | None = option(
        None,
        "log-SNR at which the grid leaves the path; null: 3 log(steps) of cauchy, else 9.25 (later with grid null)",
    )
    eta: float | None = option(None, "fresh noise: 0 none, 1 the reverse SDE; null: the method's own", at_least=0)
    prior: Literal["normal", "mixture"] = option("normal", "eae: where codes are drawn; mixture: fitted to the codes")
    n: int = option(64, "number of samples", at_least=1)

    def check(self) -> None:
        if self.grid == "auto" and self.log_snr_end is not None:
            raise UserError(f"sampling.log_snr_end: found {self.log_snr_end:g}; sampling.grid 'auto' chooses its own")


@dataclass(frozen=True)
class EvaluationConfig(Section):
    """The likelihood of the test set, measured at the end of training."""

    section: ClassVar[str] = "evaluation"

    enabled: bool = option(True, "measure it")
    images: int | None = option(None, "number of test images, the same ones every time; null: all of them", at_least=1)
    tolerance: float = option(1e-4, "relative and absolute tolerance of the ODE solver", above=0, below=1)
    probes: int = option(1, "random vectors of the trace estimator, an image", at_least=1)
    elbo_draws: int = option(32, "draws (of times, of codes) of the variational bound, an image", at_least=1)
    iwae_samples: int = option(1000, "draws K of the importance-weighted bound, an image (vae, eae)", at_least=1)
    baselines: bool = option(True, "measure classical models beside it: fitted once for a data set, and kept")
    batch_size: int = option(256, "images, or codes of images, measured at once", at_least=1)


@dataclass(frozen=True)
class LoggingConfig(Section):
    """Weights & Biases; metrics.jsonl in the run folder is always written."""

    section: ClassVar[str] = "logging"

    wandb: Literal["auto", "online", "offline", "off"] = option("auto", "auto: as WANDB_MODE says, else offline")
    project: str = option("diffusion", "the project that the run belongs to")
    group: str | None = option(None, "name that joins runs of one experiment")
    tags: tuple[str, ...] = option((), "words to find the run by")


@dataclass(frozen=True)
class Config(Section):
    """A run: what is learned, how, and what is drawn and measured on the way."""

    section: ClassVar[str] = ""

    family: Literal["diffusion", "vae", "eae"] = option(
        "diffusion", "the family of the model: diffusion, variational or entropic autoencoder"
    )
    name: str | None = option(None, "name of the run; by default the name of the configuration file")
    seed: int = option(0, "seed of everything random", at_least=0)
    runs: str = option("runs", "folder that runs are kept in", True)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to compute; auto: on a GPU if there is one")

    data: DataConfig = field(default=DataConfig())
    schedule: ScheduleConfig = field(default=ScheduleConfig())
    network: NetworkConfig = field(default=NetworkConfig())
    denoiser: DenoiserConfig = field(default=DenoiserConfig())
    objective: ObjectiveConfig = field(default=ObjectiveConfig())
    autoencoder: AutoencoderConfig = field(default=AutoencoderConfig())
    optimizer: OptimizerConfig = field(default=OptimizerConfig())
    ema: EMAConfig = field(default=EMAConfig())
    trainer: TrainerConfig = field(default=TrainerConfig())
    sampling: SamplingConfig = field(default=SamplingConfig())
    evaluation: EvaluationConfig = field(default=EvaluationConfig())
    logging: LoggingConfig = field(default=LoggingConfig())

    def check(self) -> None:
        if self.name is not None and (Path(self.name).name != self.name or self.name == ".."):
            raise UserError(f"name: found {show(self.name)}; must be the name of a folder, not a path")
        if self.denoiser.prediction == "levels" and self.objective.dequantize:
            raise UserError("objective.dequantize: found true; denoiser.prediction 'levels' takes false")
        for key in self.foreign_keys():
            section, _, name = key.partition(".")
            value, default = getattr(getattr(self, section), name), getattr(type(getattr(self, section))(), name)
            if value != default:
                takers = ", ".join(takers_of(key))
                raise UserError(f"{key}: found {show(value)}; family '{self.family}' does not take it; {takers} does")

    def foreign_keys(self) -> list[str]:
        """The keys that the family does not take; they stand at their defaults."""
        sections = [f.name for f in fields(self) if not f.metadata]
        keys = [f"{section}.{f.name}" for section in sections for f in fields(getattr(self, section))]
        return [key for key in keys if self.family not in takers_of(key)]


_DIFFUSION, _AUTOENCODERS, _ALL = ("diffusion",), ("vae", "eae"), ("diffusion", "vae", "eae")
# The families that take a section, or a key of it; a key before its section. What is not here, all take.
_TAKERS = {
    **dict.fromkeys(("schedule", "network", "denoiser", "objective"), _DIFFUSION),
    **dict.fromkeys((f"sampling.{name}" for name in ("sampler", "steps", "grid", "log_snr_end", "eta")), _DIFFUSION),
    **dict.fromkeys((f"evaluation.{name}" for name in ("tolerance", "probes")), _DIFFUSION),
    **dict.fromkeys(("autoencoder", "evaluation.iwae_samples"), _AUTOENCODERS),
    **dict.fromkeys(
        (f"autoencoder.{name}" for name in ("observation", "components", "beta", "free_bits", "iwae_samples")), ("vae",)
    ),
    **dict.fromkeys(("autoencoder.entropy_weight", "autoencoder.neighbours", "sampling.prior"), ("eae",)),
}


def takers_of(key: str) -> tuple[str, ...]:
    """The families that take a key, e.g. `sampling.eta`."""
    return _TAKERS.get(key) or _TAKERS.get(key.partition(".")[0]) or _ALL
