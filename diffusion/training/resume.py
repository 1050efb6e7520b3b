"""Which run a command resumes (the last unfinished one of its name, the one it names, or none), and a run's status.

A run resumes with the configuration and on the data it was started with, wherever the data are now
(`training.subject` compares their content). Devices, logging and the like may change freely; the optimisation may
change on request (`--resume-changed`); the architecture may not.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from pathlib import Path

from .. import config as configuration
from ..config import Config
from ..errors import UserError
from ..processes import is_helper, typed
from ..storage import run_lock, run_status, runs
from ..storage.records import DAMAGED

_CHECKPOINT = Path("checkpoints") / "last.ckpt"
_MODEL, _EVALUATION, _CONFIG = "model.safetensors", "evaluation.json", "config.yaml"
# Where and by how many processes a run is made, and how it is looked at: no part of what it computes.
_FREE = (
    "name", "runs", "device", "data.root", "data.download", "data.cache", "data.place", "logging.", "sampling.",
    "evaluation.", "trainer.devices", "trainer.strategy", "trainer.workers", "trainer.log_every",
    "trainer.validate_every", "trainer.sample_every", "trainer.checkpoint_every", "trainer.keep_last",
)  # fmt: skip
# What goes into the next steps, and not into the shape or the meaning of the weights.
_CHANGEABLE = (
    "seed", "trainer.", "optimizer.", "objective.", "data.flip", "autoencoder.beta", "autoencoder.free_bits",
    "autoencoder.iwae_samples", "autoencoder.entropy_weight", "autoencoder.neighbours",
)  # fmt: skip


def run_to_continue(config: Config, resume: str, changed: bool = False, flag: str = "--resume") -> Path | None:
    """The run folder to continue, or None to start a new run.

    `auto` takes the newest run of the same name and configuration that was interrupted, in training or evaluation, and
    that no other process is training; `never` takes none; anything else is a run folder, or the name of one.

    Args:
        config: The configuration of the command.
        resume: `auto`, `never`, or a run.
        changed: Whether the optimisation may differ from the run's own configuration.
        flag: What the user knows `resume` by: `--resume`, or `resume` in Python.

    Raises:
        UserError: For a run that is not there, has no checkpoint, is being trained, or differs in its configuration
            (every difference is listed).
    """
    if resume == "never":
        return None
    folder = Path(config.runs)
    if resume == "auto":
        return _last_unfinished(config, folder, changed)
    run = _named(folder, resume, flag)
    typed_here = flag.startswith("--")
    never = f"{flag} never" if typed_here else f"{flag}='never'"
    if not (run / _CHECKPOINT).is_file():
        raise UserError(f"{flag}: {run} has no {_CHECKPOINT}; start a new run with {never}")
    if (holder := _holder(run)) is not None:
        raise UserError(f"{flag}: {run} is being trained by {holder}; wait for it or stop it")
    differences = _differences(config, run, named=True)
    done = _steps_done(run) if "trainer.steps" in differences else 0
    if config.trainer.steps < done:
        raise UserError(f"trainer.steps: found {config.trainer.steps}; {run} has done {done:.0f}, and takes no fewer")
    fixed = [text for key, text in differences.items() if not (changed and _is_changeable(key, text))]
    if fixed:
        may_change = typed_here and not changed and all(_is_changeable(*item) for item in differences.items())
        way_out = "accept it with --resume-changed, " if may_change else ""
        own = str(run / _CONFIG)
        use = f"--config {shlex.quote(own)}" if typed_here else f"diffusion.train({own!r})"
        raise UserError(
            f"{flag}: {run} was trained with a different configuration: {'; '.join(fixed)}. "
            f"Use {use}, {way_out}or start a new run with {never}"
        )
    if differences:
        _tell(f"{run} resumes with a different configuration: {'; '.join(differences.values())}")
    return run


def _is_changeable(key: str, difference: str) -> bool:
    """Whether the next steps can do without what was kept of this: an optimiser has a state, and so has what is learned
    of a weighting.
    """
    has_state = key == "optimizer.name" or (key == "objective.weighting" and "learned" in difference)
    return key.startswith(_CHANGEABLE) and not has_state


def continuing(run: Path, config: Config) -> str:
    """The message about a run that resumes: which one, and from which step."""
    return f"continuing {run} {_from(run, config)}"


def _from(run: Path, config: Config) -> str:
    if not (done := _steps_done(run)):
        has_one = (run / _CHECKPOINT).is_file()
        return "from its last checkpoint" if has_one else "from its start: it has no checkpoint yet"
    return f"from step {done:,.0f} of {config.trainer.steps:,}"


def status(config: Config, resume: str = "auto") -> int:
    """Print the status of a run: the latest one with this name and configuration, or the one that is named.

    A named run is judged by its own configuration, whatever the rest of the command line says.

    Returns:
        0: complete; 75 or 130: stopped by SIGTERM or SIGINT, and the same command resumes it; 1: interrupted otherwise
        (a failure, a kill), or still being trained.

    Raises:
        UserError: There is no such run.
    """
    folder = Path(config.runs)
    if resume in ("auto", "never"):
        found = [path.parent for path in folder.glob(f"*/{_CONFIG}")]
        found = [run for run in found if _is_of_name(run, config) and not _differences(config, run)]
        if not found:
            raise UserError(f"--status: there is no run of this name and configuration in {folder}")
        run = max(found, key=lambda run: max(path.stat().st_mtime_ns for path in _written(run)))
    else:
        run = _named(folder, resume, "--status")
        config = _saved(run) or config
    if _is_finished(run, config):
        print(f"{run}: complete")
        return 0
    if (holder := _holder(run)) is not None:
        print(f"{run}: is being trained by {holder}; step {_logged(run):,} of {config.trainer.steps:,}")
        return 1
    saved = (run / _CHECKPOINT).is_file() and resume not in ("auto", "never")
    command = f"{typed('train')} --resume {shlex.quote(str(run))}" if saved else "the same command"
    goes_on = f"{command} resumes it {_from(run, config)}"
    if code := run_status.exit_code(run):
        print(f"{run}: stopped by a signal; {goes_on}")
        return code
    if _is_trained(run, config):
        print(f"{run}: trained, but not evaluated; {command} evaluates it")
    else:
        print(f"{run}: interrupted by a failure or a kill; {goes_on}")
    return 1


def _written(run: Path) -> list[Path]:
    """The files of a run whose times show when it was last worked on."""
    names = (_CONFIG, _CHECKPOINT, _MODEL, _EVALUATION, run_status.STOPPED)
    return [run / name for name in names if (run / name).is_file()]


def _named(folder: Path, name: str, flag: str) -> Path:
    run = next((path for path in (Path(name), folder / name) if path.is_dir()), None)
    if run is None:
        raise UserError(f"{flag}: there is no run '{name}' (nor in {folder}).{runs.others(Path(name), folder)}")
    return run


def _is_of_name(run: Path, config: Config) -> bool:
    return run.name.rpartition("-")[0] == config.name


def _last_unfinished(config: Config, folder: Path, changed: bool) -> Path | None:
    """The newest run to resume; one interrupted before its first checkpoint starts again."""
    unfinished = [
        path.parent
        for path in folder.glob(f"*/{_CONFIG}")
        if _is_of_name(path.parent, config) and not _is_finished(path.parent, config) and _holder(path.parent) is None
    ]

    def age(run: Path) -> tuple[bool, int]:
        saved = (run / _CHECKPOINT).is_file()
        return saved, (run / (_CHECKPOINT if saved else _CONFIG)).stat().st_mtime_ns

    unfinished.sort(key=age, reverse=True)
    found = {run: _differences(config, run) for run in unfinished}
    for run, differences in found.items():
        if not differences or (changed and all(key.startswith(_CHANGEABLE) for key in differences)):
            if differences:
                _tell(f"{run} resumes with a different configuration: {'; '.join(differences.values())}")
            return run
    # one that its own configuration has finished is not cut off
    cut_off = [run for run in unfinished if not _is_finished(run, _saved(run) or config)]
    if cut_off:
        newest, unlike = cut_off[0], "; ".join(found[cut_off[0]].values())
        _tell(f"{newest} is unfinished, but has a different configuration ({unlike}); starting a new run")
    return None


def _holder(run: Path) -> str | None:
    """Who is training a run, unless it is the main process of this one."""
    return None if is_helper() else run_lock.holder(run)


def _is_finished(run: Path, config: Config) -> bool:
    """Whether a run is fully trained, and evaluated if its configuration says so."""
    return _is_trained(run, config) and (not config.evaluation.enabled or (run / _EVALUATION).exists())


def _is_trained(run: Path, config: Config) -> bool:
    return (run / _MODEL).exists() and _model_step(run / _MODEL) >= config.trainer.steps


def _steps_done(run: Path) -> float:
    """The number of steps that a resumable run has done."""
    if (run / _MODEL).is_file() and math.isfinite(step := _model_step(run / _MODEL)):
        return step
    from ..storage.checkpoint_files import step_of  # takes torch

    return float(step_of(run / _CHECKPOINT))


def _logged(run: Path) -> int:
    """The last step that a run has logged."""
    try:
        last = (run / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[-2]  # each line has an end
        return int(json.loads(last)["step"]) + 1
    except (*DAMAGED, IndexError):
        return 0


def _model_step(path: Path) -> float:
    """The step at which a model file was written, from its header; infinity if it is not recorded.

    Minus infinity for a trained model that lacks what is fitted after training: its run must resume.
    """
    try:
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        written = header["__metadata__"]
        return float("-inf") if "not_fitted" in written else float(written["step"])
    except DAMAGED:
        return float("inf")


def _differences(config: Config, run: Path, named: bool = False) -> dict[str, str]:
    """Where a run's saved configuration differs, by key, as `key: saved -> given`.

    Other data may lie at another path, or at the same: their content is compared where they are read. So a path is no
    difference for a run that is `named`; one that is looked for is of this path, or of one where nothing is any more.
    """
    if (saved := _saved(run)) is None:
        return {"": f"{run / _CONFIG} cannot be read"}
    ours, theirs = _flat(config), _flat(saved)
    if named or _is_moved(saved, config):
        theirs["data.path"] = ours["data.path"]
    return {key: f"{key}: {theirs.get(key)} -> {ours.get(key)}" for key in ours if ours.get(key) != theirs.get(key)}


def _is_moved(saved: Config, given: Config) -> bool:
    old, new = (configuration.with_places(config).data.path for config in (saved, given))
    return None not in (old, new) and (old == new or not Path(str(old)).exists())


def _saved(run: Path) -> Config | None:
    """The configuration of a run; None if it cannot be read."""
    try:
        return configuration.parse_config((run / _CONFIG).read_text(encoding="utf-8"), source=str(run / _CONFIG))
    except (OSError, ValueError):  # UserError, and what is no text, are
        return None


def _flat(config: Config) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in config.model_dump().items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": entry for key, entry in value.items()}
        else:
            flat[name] = value
    return {key: value for key, value in flat.items() if not key.startswith(_FREE)}


def _tell(message: str) -> None:
    if not is_helper():
        print(message, file=sys.stderr)
