"""sample.py: chooses model and sampler, draws, and writes the files."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ... import samplers
from ...config import AUTO_GRID
from ...data import find_toy, pictures
from ...data.class_names import names_of, number_of
from ...data.files.raw_images import OPACITY
from ...denoisers.condition import LABEL
from ...devices import choose_device, device_name
from ...errors import UserError
from ...models import DiffusionModel
from ...models.load import TrainedModel, load, load_named
from ...models.tuning_cache import reported_tuning
from ...processes import launched
from ...sampling.fit import FITTED
from ...sampling.sample import DEFAULT_BATCH
from ...sampling.settings import SETTINGS, given_settings
from ...storage import hub, runs
from ...storage.paths import file_name
from ..app import ProgressBar
from ..options import flag
from ..terminal import console, print_next
from .condition import check_count, rows_of_conditions
from .control import controlled, of_images, with_defaults
from .encode import DEFAULT_SAMPLER, encode_command, interpolate_command, save_strip
from .files import SampleFiles
from .record import SampleRecord, free_name, image_digests
from .start import start_of_draws

DEFAULT_MODEL = "pretrained:digits"
_NEWEST = "; it is the newest run, --run names another"
# The samples that an animation shows.
ANIMATED = 16


def draw(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    processes = launched()
    if processes.count > 1 and (options.out is None or Path(options.out).suffix == ".png" or options.animate):
        raise UserError("--out: several processes draw into x.npz, x.zip or a folder; name one")
    record = SampleRecord.read(options.from_image) if options.from_image is not None else None
    device = choose_device(options.device)
    of_command = load if options.run is None else load_named  # a picture's record runs no Python file
    model = of_command(_which(options, record), device, options.runs)
    newest = "" if options.run is not None or record is not None or model.source == DEFAULT_MODEL else _NEWEST
    family = model.config.family
    print(f"model: {model.source} ({family}, {model.facts.name}, step {model.step}) on {device}{newest}")
    if record is not None:
        return redraw(model, record, options, device)

    model, record = requested(model, options, device)
    (shown, way), *_ = record.settings.items()
    n = options.n or model.config.sampling.n
    if options.encode:
        return encode_command(model, record, options)
    if options.interpolate:
        return interpolate_command(model, record, options, _place(model, options, f"{way}-between", "png"))
    if options.animate:
        return animate(model, record, options, n)
    model, drawing = controlled(model, record, options.runs)
    check_count(drawing.settings.get("cond", {}), n)
    files = SampleFiles(options.out, _place(model, options, way, "png"), n, record, model.facts, processes)
    if files.done:
        print(f"{files.done} of {n} samples are there already; resuming")
    start = time.perf_counter()
    drawn, written, begun = 0, [], files.done
    task = f"sampling ({way})"
    with files, model.counted() as count, closing(ProgressBar()) as bar:
        size = min(n, options.batch_size or DEFAULT_BATCH)
        for first, stop in files.missing(size):
            batch = stop - first
            # the evaluations of each sample of this batch, while it is drawn
            count.watch = lambda batch=batch, before=count.rows, done=begun + drawn: bar.named(
                task, done, n, f"NFE {(count.rows - before) / batch:.0f}"
            )
            files.keep(first, draw_batch(model, drawing, first, stop))
            drawn += batch
            bar.named(task, begun + drawn, n)
        if processes.count > 1 and processes.is_main:
            files.wait(lambda done: bar.named(task, done, n))
        if processes.is_main:
            written = files.finish()
    for path in written:
        print(f"wrote {path}")
    nfe = f", NFE {count.rows / drawn:.0f}" if drawn else ""
    print(f"{n} samples, {shown} {way}{nfe}, {time.perf_counter() - start:.1f} s")
    if options.run is None and model.source == DEFAULT_MODEL:
        print_next(console(), "train")
    elif (name := named(model.source)) is not None:
        print_next(console(), "evaluate", name)
    return 0


def requested(
    model: TrainedModel, options: argparse.Namespace, device: torch.device
) -> tuple[TrainedModel, SampleRecord]:
    """The model at the size that a command line requests, and the record of what is to be drawn with it.

    Args:
        model: The model.
        options: Of `parse_sample_arguments`.
        device: Where it is drawn.

    Raises:
        UserError: For options that the model does not take.
    """
    given = given_settings(options)
    if (options.encode or options.interpolate) and "sampler" in model.sampling_options:
        given = {"sampler": DEFAULT_SAMPLER, **given}
    for name in given:
        if name not in model.sampling_options:
            taken = ", ".join(map(flag, ("n", "seed", *model.sampling_options)))
            family = model.config.family
            raise UserError(f"{flag(name)}: {model.source} is of family '{family}', which takes {taken}")
    if options.option and "sampler" not in model.sampling_options:
        raise UserError(f"--option: {model.source} is of family '{model.config.family}', which has no sampler")
    given |= dict(options.option or ())
    if options.label is not None:
        given["label"] = _class_number(model, options)
    if "data" in given and "fitted_start" not in given:
        raise UserError("--data: needs --fitted-start, which is fitted to these images")
    settings = model.sampling_settings(with_defaults(given))
    model = _begun(model, settings)
    way = next(iter(settings.values()))
    if "steps" in given and way != FITTED and samplers.build(way, method=options.method).is_adaptive:
        print(
            "note: --steps is not used by an adaptive ode (--tolerance is); --method rk4 takes steps", file=sys.stderr
        )
    limit = f", for {options.tuning_seconds:g} s at most (--tuning-seconds)"
    if "law" in (remarks := model.effective_settings(settings)):
        print(f"note: --prior {settings['prior']}: {remarks['law']}", file=sys.stderr)
    if settings.get("grid") == AUTO_GRID:
        print(f"note: --grid auto is tuned once for a model, a sampler and its steps{limit}", file=sys.stderr)
    if way == FITTED:
        _check_fitted(settings)
        print(f"note: --sampler {FITTED} is fitted once for a model and its steps{limit}", file=sys.stderr)
    with reported_tuning(options.tuning_seconds):
        return model, _record(model, options.seed, settings, device, options.runs)


def named(source: str) -> str | None:
    """How to name a run or a shipped model on a command line; None for others, which may know of no data."""
    if source in runs.shipped_models():
        return source
    return str(Path(source).parent) if Path(source).name == runs.MODEL else None


def _class_number(model: TrainedModel, options: argparse.Namespace) -> int:
    """The number of the class that --label means, among those of the model, or of the classifier that steers it."""
    facts, text = model.facts, options.label
    # the classifier knows its own classes by number; the names are those of the model's data
    by_class = options.classifier is not None or LABEL in model.config.denoiser.parts
    count = facts.num_classes if by_class else 0
    names = names_of(facts.provenance, count)
    if text.isascii() and text.isdigit() and text not in names and (options.classifier is not None or not names):
        return int(text)
    if not names:
        raise UserError(f"--label: found '{text}'; {model.source} was trained without labels")
    number = number_of(text, names)
    if names[number] != text:
        print(f"class {number}: {names[number]}")
    return number


def draw_batch(model: TrainedModel, record: SampleRecord, first: int, stop: int) -> torch.Tensor:
    """Samples `first` to `stop` of a record, drawn together, on the CPU."""
    batch, settings = stop - first, dict(record.settings)
    if "cond" in settings:
        settings["cond"] = rows_of_conditions(settings["cond"], first, stop)
    return model.sample(batch, record.seed, start=first, batch_size=batch, **settings).cpu()


def redraw(model: TrainedModel, record: SampleRecord, options: argparse.Namespace, device: torch.device) -> int:
    """Draw the picture of a record again and report whether the pixels are equal; returns the exit code."""
    old = Path(options.from_image)
    weights = model.weights
    if weights != record.weights:
        raise UserError(
            f"--from: {old} was drawn with another model ({record.model}, SHA-256 {record.weights[:12]}...) than "
            f"{model.source} ({weights[:12]}...); name that one by --run"
        )
    target = Path(options.out) if options.out is not None else (
        free_name(old.with_name(f"{old.stem}-again.png"), record)
    )  # fmt: skip
    if target.suffix != ".png":
        raise UserError(f"--out: found '{target}'; --from draws one picture, x.png")
    _refuse_other_files(old, record, options.runs)
    model = _begun(model, record.settings)
    begins = _start_digest(model, record.settings).get("fitted_start")
    if begins is not None and (before := record.images.get("fitted_start", begins)) != begins:
        raise UserError(f"--from: {old} began in {', '.join(before)}; that of the images now is {', '.join(begins)}")
    if "interpolate" in record.settings:
        save_strip(target, model, record)
        print(f"wrote {target}")
        print(_compare(old, target, record, device_name(device)))
        return 0
    controlled_model, drawing = controlled(model, record, options.runs)
    samples = torch.cat([draw_batch(controlled_model, drawing, first, stop) for first, stop in record.batches])
    if record.index is not None:
        samples = samples[record.index - record.batches[0][0]][None]
        opacity = OPACITY in model.facts.provenance
        picture = pictures.from_bytes(pictures.to_bytes(samples)[0].numpy(), opacity)
        pictures.save(target, picture, record.to_text())
    else:
        continuous = model.facts.levels is None
        toy = find_toy(model.facts.name) if continuous else None
        pictures.save_samples(target, samples[: record.count], toy, record.to_text(), continuous)
    print(f"wrote {target}")
    print(_compare(old, target, record, device_name(device)))
    return 0


def _compare(old: Path, new: Path, record: SampleRecord, device: str) -> str:
    with Image.open(old) as a, Image.open(new) as b:
        before, after = np.asarray(a).astype(int), np.asarray(b).astype(int)
    if before.shape != after.shape:
        return f"not the same: {old} has been resized since"
    difference = np.abs(before - after)
    if not difference.any():
        return f"the same pixels as {old}"
    share = (difference > 0).mean()
    where = f"drawn on {record.device} with torch {record.torch}; this is {device} with torch {torch.__version__}"
    return f"{share:.2%} of the values differ from {old}, by at most {difference.max()} of 255 ({where})"


def animate(model: TrainedModel, record: SampleRecord, options: argparse.Namespace, n: int) -> int:
    """Write the path of a few samples, x_t and x_hat side by side, as a GIF; returns the exit code."""
    of_images(model, "--animate")
    count = min(n, ANIMATED)
    record = replace(record, count=count)
    path = Path(options.out) if options.out is not None else (
        free_name(_place(model, options, record.settings["sampler"], "gif"), record)
    )  # fmt: skip
    if path.suffix != ".gif":
        raise UserError(f"--out: found '{path}'; --animate writes x.gif")
    model, drawing = controlled(model, record, options.runs)
    check_count(drawing.settings.get("cond", {}), count)
    assert isinstance(model, DiffusionModel)
    states, _, x_hats = model.trajectory(count, record.seed, **drawing.settings)
    pictures.save_animation(path, pictures.path_frames(states, x_hats), json.dumps(record.to_text()))
    print(f"wrote {path}")
    return 0


def _record(
    model: TrainedModel, seed: int, settings: Mapping[str, Any], device: torch.device, runs_dir: str
) -> SampleRecord:
    steered = _steering_digests(settings, runs_dir)
    return SampleRecord(
        model=model.source,
        weights=model.weights,
        data=model.facts.name,
        seed=seed,
        settings=model.resolved(settings),
        shown=model.effective_settings(settings),
        device=device_name(device),
        torch=torch.__version__,
        classifier=steered["classifier"],
        guide=steered["guide"],
        images=image_digests(settings) | _start_digest(model, settings),
    )


def _begun(model: TrainedModel, settings: Mapping[str, Any]) -> TrainedModel:
    """The model at the requested size, begun in the requested start, if there is one, else in its own."""
    kind = settings.get("fitted_start")
    if kind is None or not isinstance(model, DiffusionModel):
        return model.at_size(settings["size"]) if "size" in settings else model
    model = model.begun_in(None)
    model = model.at_size(settings["size"]) if "size" in settings else model
    return model.begun_in(start_of_draws(model, kind, settings.get("data")))


def _start_digest(model: TrainedModel, settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """What identifies the requested start; one that a model has by itself is a part of it."""
    if settings.get("fitted_start") is None or not isinstance(model, DiffusionModel):
        return {}
    return {"fitted_start": [repr(model.start)]}


def _check_fitted(settings: Mapping[str, Any]) -> None:
    taken = [name for name, setting in SETTINGS.items() if setting.fitted]
    refused = [name for name in settings if name not in taken]
    if refused:
        raise UserError(f"--sampler {FITTED}: does not go with {refused[0]}; it takes {', '.join(taken[1:])}")


def _refuse_other_files(old: Path, record: SampleRecord, runs_dir: str) -> None:
    """Refuse files that have changed since a picture was drawn with them; missing ones are reported when read."""
    steered, images = _steering_digests(record.settings, runs_dir), image_digests(record.settings)
    for name, drawn_with in (("classifier", record.classifier), ("guide", record.guide)):
        if drawn_with is not None and steered[name] != drawn_with:
            raise _other_file(old, name, record.settings[name])
    for name, digests in record.images.items():
        if images.get(name, digests) != digests:
            given = record.settings[name]
            raise _other_file(old, f"image for --{name}", given if isinstance(given, str) else " or ".join(given))


def _other_file(old: Path, kind: str, path: str) -> UserError:
    return UserError(f"--from: {old} was drawn with another {kind} than {path} is now (their SHA-256 differ)")


def _steering_digests(settings: Mapping[str, Any], runs_dir: str) -> dict[str, str | None]:
    """The SHA-256 of the files that steer a draw, by the setting that names them."""
    return {
        name: runs.file_digest(find(settings[name])) if name in settings else None
        for name, find in (
            ("classifier", runs.resolve_classifier),
            ("guide", lambda guide: runs.resolve_weights(guide, runs_dir)),
        )
    }


def _which(options: argparse.Namespace, record: SampleRecord | None) -> str | Path:
    """The model to use: the one named, that of a record, else the newest run, else the pretrained one."""
    if options.run is not None:
        return options.run
    if record is not None:
        if record.model.startswith(hub.PREFIX):  # a picture may come from anybody: it makes nobody fetch a model
            raise UserError(f"--from: the picture names {record.model}; give it as the model, if you want it")
        return record.model
    return runs.newest_run(options.runs) or DEFAULT_MODEL


def _place(model: TrainedModel, options: argparse.Namespace, way: str, kind: str) -> Path:
    """The default path of a picture; its name contains the settings that were given."""
    size = None if options.size is None else "x".join(map(str, options.size))
    requested = {"label": options.label, "guidance": options.guidance, "size": size, "steps": options.steps}
    requested |= {"strength": options.strength, "posterior": options.posterior}
    words = [
        f"-{name}"
        for name in ("inpaint", "restore", "edit", "guide", "classifier", "condition")
        if getattr(options, name)
    ]
    words += [f"-{name}{value:g}" if isinstance(value, (int, float)) else f"-{name}{file_name(value)}"
              for name, value in requested.items() if value is not None]  # fmt: skip
    return _folder(model) / f"{file_name(model.facts.name)}-{way}-seed{options.seed}{''.join(words)}.{kind}"


def _folder(model: TrainedModel) -> Path:
    source = Path(model.source)
    of_a_run = source.name == runs.MODEL and not source.is_symlink()  # as the files in the Hub's cache are
    return source.parent / runs.SAMPLES if of_a_run else Path("samples")
