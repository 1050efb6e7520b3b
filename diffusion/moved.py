"""Modules by the names that they had in version 0.1.0: they are imported from where they are now, with a warning."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "atomic": "storage.atomic",
    "auto_grid": "sampling.auto_grid",
    "broadcasting": "numerics.broadcasting",
    "brownian": "numerics.brownian",
    "checkpoint_files": "storage.checkpoint_files",
    "cli": "commands.app",
    "control": "commands.sample.control",
    "defaults": "errors",
    "draw": "commands.sample.sample",
    "encoding": "sampling.encode",
    "evaluation": "commands.evaluation",
    "evaluations": "denoisers.evaluations",
    "experiment": "models.build",
    "families": "models",
    "fit_sampler": "sampling.fit",
    "flow": "samplers.ode.flow",
    "full_disk": "storage.full_disk",
    "model": "models.load",
    "model_files": "storage.tensor_files",
    "nearest": "numerics.nearest",
    "noisy_classifier": "models.noisy_classifier",
    "own_steps": "numerics.runge_kutta",
    "pictures": "data.pictures",
    "preflight": "config.preflight",
    "random": "numerics.random",
    "report": "commands.report",
    "resume": "training.resume",
    "run_lock": "storage.run_lock",
    "runs": "storage.runs",
    "sample_record": "commands.sample.record",
    "sde": "samplers.sde.sde",
    "stopped_runs": "storage.run_status",
    "tensor_files": "storage.tensor_files",
    "user_cache": "storage.runs",
}


class Finder(MetaPathFinder, Loader):
    """Finds the module behind a former name, `diffusion.<former name>`: the moved module itself, not a copy."""

    def find_spec(
        self, fullname: str, path: Iterable[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The place of a former name; None of any other."""
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == __package__ and name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module where it is now."""
        now = f"{__package__}.{MOVED[spec.name.partition('.')[2]]}"
        warnings.warn(f"{spec.name} is {now} now", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(now)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is run again; the module keeps its own name and place."""
        spec = module.__spec__
        if spec is not None and spec.loader is self:
            module.__spec__ = spec.loader_state
