"""Which run a command continues: the last unfinished one of its name, the one it names, or none."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from . import config as configuration
from .config import Config
from .errors import UserError, did_you_mean

_CHECKPOINT = Path("checkpoints") / "last.ckpt"
_MODEL, _EVALUATION = "model.safetensors", "evaluation.json"


def run_to_continue(config: Config, resume: str) -> Path | None:
    """The run folder to continue, or None to start a new run.

    `auto` takes the newest run of the configuration's name and content that was cut off after a checkpoint, in training
    or while it was measured; `never` takes none; anything else is a run folder, or the name of one.

    Args:
        config: The configuration of the command.
        resume: `auto`, `never`, or a run.

    Raises:
        UserError: For a run that is not there, has no checkpoint, or differs in its configuration (every difference is
            listed).
    """
    if resume == "never":
        return None
    folder = Path(config.runs)
    if resume == "auto":
        unfinished = [
            path.parents[1]
            for path in folder.glob(f"*/{_CHECKPOINT}")
            if path.parents[1].name.rpartition("-")[0] == config.name and not _is_finished(path.parents[1], config)
        ]
        same = [run for run in unfinished if not _differences(config, run)]
        return max(same, key=lambda run: (run / _CHECKPOINT).stat().st_mtime_ns, default=None)
    run = next((path for path in (Path(resume), folder / resume) if path.is_dir()), None)
    if run is None:
        names = [path.name for path in sorted(folder.glob("*")) if path.is_dir()]
        raise UserError(f"--resume: there is no run '{resume}' (nor in {folder}).{did_you_mean(resume, names)}")
    if not (run / _CHECKPOINT).is_file():
        raise UserError(f"--resume: {run} has no {_CHECKPOINT}; start a new run with --resume never")
    differences = _differences(config, run)
    if differences:
        raise UserError(
            f"--resume: {run} was trained with another configuration: {'; '.join(differences)}. "
            f"Use --config {run / 'config.yaml'}, or start a new run with --resume never"
        )
    return run


def _is_finished(run: Path, config: Config) -> bool:
    """Whether a run has been trained, and measured where that is asked for."""
    return (run / _MODEL).exists() and (not config.evaluation.enabled or (run / _EVALUATION).exists())


def _differences(config: Config, run: Path) -> list[str]:
    """Where a run's saved configuration differs, as `key: saved -> given`; its name and place do not count."""
    path = run / "config.yaml"
    try:
        saved = configuration.parse_config(path.read_text(encoding="utf-8"), source=str(path))
    except (OSError, UserError) as error:
        return [f"{path} cannot be read ({error})"]
    ours, theirs = _flat(config), _flat(saved)
    return [f"{key}: {theirs.get(key)} -> {ours.get(key)}" for key in ours if ours.get(key) != theirs.get(key)]


def _flat(config: Config) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in asdict(config).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": entry for key, entry in value.items()}
        else:
            flat[name] = value
    return {key: value for key, value in flat.items() if key not in ("name", "runs", "device", "logging.wandb")}
