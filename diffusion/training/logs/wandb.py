"""Weights & Biases as a mirror of the log: it never prompts, never blocks for minutes, and never ends a run.

Left to itself, `wandb.init` without a key is an error, or a prompt where there is a terminal, and with a key but
without network it waits for minutes. So the mode is decided here, before W&B is called: what the user chose; else
`WANDB_MODE`; else online if there is a key (falling back to offline after 10 seconds), else offline. `metrics.jsonl`
stays the record: W&B's offline file is not durable, and a fault of W&B is one warning, after which training goes on
without it.
"""

from __future__ import annotations

import logging
import netrc
import os
import secrets
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ...config import LoggingConfig
from ...errors import choose
from ...storage import atomic

MODES = LoggingConfig.words("wandb")
_NO_WEAVE = "WANDB_DISABLE_WEAVE"
INIT_TIMEOUT_SECONDS = 10.0
FINISH_TIMEOUT_SECONDS = 60.0
_ENVIRONMENT_MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "off"}


def has_key(environment: Mapping[str, str]) -> bool:
    """Whether W&B would find credentials without asking: in the environment or in the netrc file."""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    path = Path(environment.get("NETRC") or Path(environment.get("HOME") or Path.home()) / ".netrc").expanduser()
    host = urlsplit(environment.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    try:
        entry = netrc.netrc(path).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return False
    return bool(entry and entry[2])


def resolve_mode(choice: str = "auto", environment: Mapping[str, str] = os.environ) -> str:
    """Return "off", "offline" or "online".

    Args:
        choice: What the user chose (`logging.wandb`): off, offline, online, or auto, which leaves it to
            `WANDB_MODE` and is offline without it: a key alone does not ask for an upload. Online without a key becomes
            offline, with a warning, since W&B would ask for one.
        environment: The environment variables.

    Raises:
        UserError: `choice` or `WANDB_MODE` is not known.
    """
    mode = choose("logging.wandb", choice, MODES)
    if mode == "auto":
        named = environment.get("WANDB_MODE", "")
        if not named:
            return "offline"
        mode = _ENVIRONMENT_MODES[choose("WANDB_MODE", named, _ENVIRONMENT_MODES)]
    if mode == "online" and not has_key(environment):
        warnings.warn("W&B: online was requested, but there is no API key; logging offline.", stacklevel=2)
        return "offline"
    return mode


class WandbMirror(WandbLogger):
    """Lightning's W&B logger; its first failure is a warning, after which training continues without it."""

    faulty: bool = False

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log scalars at a step."""
        self._attempt(super().log_metrics, metrics, step)

    def log_hyperparams(self, params: Any) -> None:
        """Add to the configuration of the run."""
        self._attempt(super().log_hyperparams, params)

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Log images (tensors, arrays, PIL images or paths) at a step."""
        self._attempt(super().log_image, key, images, step, **kwargs)

    def log_table(self, key: str, *args: Any, **kwargs: Any) -> None:
        """Log a table, from `columns` and `data` or from `dataframe`."""
        self._attempt(super().log_table, key, *args, **kwargs)

    def log_bars(self, key: str, bars: Mapping[str, float], value: str) -> None:
        """Log one of W&B's own bar charts: the length of each bar by its name.

        Args:
            key: The chart's key, and its title.
            bars: The values by name.
            value: What they are.
        """

        def log() -> None:
            import wandb

            table = wandb.Table(columns=["name", value], data=[list(bar) for bar in bars.items()])
            self.experiment.log({key: wandb.plot.bar(table, "name", value, title=key)})

        self._attempt(log)

    def log_lines(self, key: str, lines: Mapping[str, tuple[list[float], list[float]]], x_name: str) -> None:
        """Log one of W&B's own line charts.

        Args:
            key: The chart's key, and its title.
            lines: The x and y of each line by name.
            x_name: What x is.
        """

        def log() -> None:
            import wandb

            xs, ys = ([list(line[i]) for line in lines.values()] for i in (0, 1))
            chart = wandb.plot.line_series(xs=xs, ys=ys, keys=list(lines), title=key, xname=x_name)
            self.experiment.log({key: chart})

        self._attempt(log)

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Set entries of the run table, e.g. `eval/bits_per_dim`."""
        self._attempt(lambda: self.experiment.summary.update(dict(values)))

    def finish(self, exit_code: int = 0, seconds: float | None = None) -> None:
        """Close the W&B run; call it last, since evaluations after training log here too.

        Args:
            exit_code: The command's.
            seconds: How long to wait for a server that does not answer; None for as long as W&B does.
        """
        closing = threading.Thread(target=self._close, args=(exit_code,), daemon=True)
        closing.start()
        closing.join(seconds)
        if closing.is_alive():
            self.faulty = True
            warnings.warn(f"W&B: not closed within {seconds:g} s; its files are kept.", stacklevel=2)

    def _close(self, exit_code: int) -> None:
        self._attempt(lambda: self.experiment.finish(exit_code=exit_code))
        if self.faulty:
            import wandb

            with suppress(Exception):  # here, and not with a traceback when the program ends
                wandb.teardown()

    def _attempt(self, action: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        if self.faulty:
            return
        try:
            action(*args, **kwargs)
        except Exception as error:  # W&B raises many kinds, and none of them is worth a training run
            self.faulty = True
            warnings.warn(f"W&B: logging failed ({type(error).__name__}: {error}); going on without.", stacklevel=3)


def make_wandb_logger(
    run_dir: str | Path,
    mode: str,
    project: str = "diffusion",
    group: str | None = None,
    tags: list[str] | None = None,
    config: Mapping[str, Any] | None = None,
    summaries: Mapping[str, str] | None = None,
    job_type: str = "train",
) -> WandbMirror | None:
    """Return a Lightning logger that mirrors a run to W&B, or None if W&B is off or fails.

    The files go to `run_dir/wandb`; the W&B run is named after the run folder, and its id is kept there, so that a
    resumed run continues the same curve. Nothing is printed, and there is no prompt.

    Args:
        run_dir: The run folder.
        mode: A mode of `resolve_mode`. If online fails, offline is used; if that fails too, a warning is all.
        project: The W&B project.
        group: The W&B group (for evaluations: the training run).
        tags: Tags of the run.
        config: The configuration as plain values.
        summaries: How metrics enter the run table, e.g. {"validation/loss": "min", "eval/bits_per_dim": "last"}.
        job_type: "train" or "eval".
    """
    if mode == "off" or rank_zero_only.rank != 0:
        return None
    run_dir = Path(run_dir)
    options = {
        "dir": str(run_dir),
        "name": run_dir.name,
        "project": project,
        "group": group,
        "tags": tags or [],
        "config": dict(config or {}),
        "job_type": job_type,
        "resume": "allow",
    }
    for attempt in ("online", "offline") if mode == "online" else ("offline",):
        try:
            run = _start(run_dir, attempt, options)
            for name, summary in (summaries or {}).items():
                run.define_metric(name, step_metric="trainer/global_step", summary=summary)
            return WandbMirror(experiment=run, project=project, save_dir=str(run_dir))
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            warnings.warn(f"W&B: {attempt} logging failed ({reason}).", stacklevel=2)
            _forget()
    return None


def _forget() -> None:
    """End W&B's own process, which would otherwise hold the id of the run that failed to start."""
    import wandb

    with suppress(Exception):
        wandb.teardown()


def _start(run_dir: Path, mode: str, options: Mapping[str, Any]) -> Any:
    import wandb  # here, since it takes a second and may be off

    identity = run_dir / "wandb" / f"{options['job_type']}-id"
    if not identity.is_file():
        atomic.write_text(identity, secrets.token_hex(4))
    settings = wandb.Settings(
        silent=True,
        console="off",
        init_timeout=INIT_TIMEOUT_SECONDS,
        finish_timeout=FINISH_TIMEOUT_SECONDS,
        disable_git=True,
        disable_code=True,
        x_disable_stats=True,
        # a run of the user's that is open in this process is left as it is: else W&B would give it back for ours
        reinit="create_new",
    )
    with _no_word_of_its_own_log():
        run = wandb.init(**options, id=identity.read_text().strip(), mode=mode, settings=settings)  # type: ignore[arg-type]
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return run


@contextmanager
def _no_word_of_its_own_log() -> Iterator[None]:
    """W&B's debug log may fail (a full disk) without a traceback of each of its lines, in the block and after it.

    Within the block it advertises no Weave, as it else does on stderr where huggingface_hub is imported.
    """
    former, logging.raiseExceptions = logging.raiseExceptions, False
    advertises = "weave" not in sys.modules and _NO_WEAVE not in os.environ
    if advertises:
        os.environ[_NO_WEAVE] = "true"
    try:
        yield
    finally:
        logging.raiseExceptions = former
        if advertises:
            del os.environ[_NO_WEAVE]
        for handler in logging.getLogger("wandb").handlers:
            handler.handleError = lambda record: None
