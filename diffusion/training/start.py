"""A run that starts from the weights of another model: `train.py --from`, `trainer.start`.

With `--lora`, `trainer.lora`, low-rank factors on the weights are trained in their place (`models.factors`).

Both the weights and their average begin as the averaged weights of the source; the optimiser, the counters and the
ramp-up of the average are fresh. At step 0 the model has the figures of its source, to the bit.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import Config
from ..data.class_names import names_of
from ..denoisers.condition import LABEL
from ..errors import UserError
from ..models.adopt import AdoptedModel
from ..models.build import DataFacts, check_labelled, check_state
from ..models.factors import add_factors
from ..models.formats.known import IN_DENOISER, Known
from ..models.load import load
from ..networks.parts import CLASSES
from ..storage import runs, tensor_files

_CLASSES = "conditioning.classes.weight"
_PART = "conditioning.parts.{}.rows.weight"
# Options that change neither the shapes nor the meaning of the weights; the parts of the condition are compared whole.
_FREE = (
    "network.dropout", "denoiser.conditional", "denoiser.condition", "denoiser.label_dropout",
    "autoencoder.beta", "autoencoder.free_bits", "autoencoder.iwae_samples",
)  # fmt: skip


def start_from(model: nn.Module, config: Config, facts: DataFacts) -> list[str]:
    """Load the weights of `trainer.start` into a model of the run, in place.

    Args:
        model: The model of the run, with fresh weights.
        config: The configuration of the run.
        facts: The data of the run.

    Returns:
        The source, and what differs from it, a line each.

    Raises:
        UserError: For a source that is not there, or whose weights would mean something else here.
    """
    assert config.trainer.start is not None
    with torch.random.fork_rng(devices=[]):
        source = load(config.trainer.start, runs_dir=config.runs)
    name, own = f"trainer.start: {source.source}", source.config
    if isinstance(source, AdoptedModel):
        raise UserError(f"{name} is another project's, by conventions of its own; give family=adopted")
    if own.family != config.family:
        raise UserError(f"{name} is of family '{own.family}', and the run of '{config.family}'")
    unlike = []
    for section in ("network", "denoiser", "autoencoder"):
        ours, theirs = getattr(config, section), getattr(own, section)
        for option in type(ours).model_fields:
            key, here, there = ours.key(option), getattr(ours, option), getattr(theirs, option)
            if here != there and key not in _FREE:
                unlike.append(f"{key} {there} (the run has {here})")
    here, there = config.denoiser.parts, own.denoiser.parts
    if here != there and not {here, there} <= {(), (LABEL,)}:  # the class alone may come or go
        found = [", ".join(parts) or "none" for parts in (there, here)]
        unlike.append(f"denoiser.condition {found[0]} (the run has {found[1]})")
    if unlike:
        raise UserError(f"{name} was trained with {', '.join(unlike)}; it must be the same")
    if source.facts.shape[0] != facts.shape[0]:
        channels = f"{source.facts.shape[0]} channels, and '{facts.name}' has {facts.shape[0]}"
        raise UserError(f"{name} takes data of {channels}")
    state, notes, new = _with_classes(source.module.state_dict(), model.state_dict(), source.facts, facts)
    check_state(state, model, name)
    model.load_state_dict(state)
    notes += _factors(model, config, new)
    for what, there, here in (
        ("size", source.facts.shape[1:], facts.shape[1:]),
        ("grey levels", source.facts.levels, facts.levels),
        ("path", own.schedule, config.schedule),
        ("normalize", own.data.normalize, config.data.normalize),
        ("condition", *(str([part.to_plain() for part in of.parts]) for of in (source.facts, facts))),
    ):
        if there != here:
            notes.append(f"{what}: {there} in its training, {here} now")
    return [f"starting from {source.source} (step {source.step:,})", *notes]


def _factors(model: nn.Module, config: Config, new: list[str]) -> list[str]:
    """Put the factors on a model that are trained, if they are; returns what to say of it.

    Args:
        model: The model, with its weights.
        config: The configuration of the run.
        new: The names of weights that are trained whole.
    """
    if (rank := config.trainer.lora) is None:
        return []
    total = sum(value.numel() for value in model.state_dict().values())
    count = add_factors(model, rank, new)
    learned = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    also = ", and the label embedding" if new else ""
    return [
        f"training factors of rank {rank} of {count} weights{also}: {learned:,} numbers; the model's own {total:,} stay"
    ]


def adopted_start(config: Config, facts: DataFacts, run: Path | None) -> tuple[AdoptedModel, list[str]]:
    """The model of a run of family `adopted`, with the weights of `trainer.start`.

    Args:
        config: The configuration of the run.
        facts: The data of the run.
        run: The folder of a run that continues: all but the weights is then known there.

    Returns:
        The model, and the source and what differs from it, a line each.

    Raises:
        UserError: For a source that is not there, that is none of another project, or that does not take the data.
    """
    assert config.trainer.start is not None
    check_labelled(config.denoiser, facts)
    name, lora = f"trainer.start: {config.trainer.start}", config.trainer.lora is not None
    if run is not None and not lora and (run / runs.START).is_file():
        _, metadata = tensor_files.read_model(run / runs.START)
        if runs.KNOWN in metadata:
            return Known.from_json(metadata[runs.KNOWN], {}, str(run)).untrained(config, facts), []
    with torch.random.fork_rng(devices=[]):
        source = load(config.trainer.start, runs_dir=config.runs)
    if not isinstance(source, AdoptedModel) or source.known is None:
        raise UserError(f"{name} is a model of ours; leave out family=adopted")
    if lora and (Path(source.source).suffix != ".safetensors"):
        raise UserError(
            f"trainer.lora: factors are kept with a file of ours, and {source.source} is none; "
            f"python -m diffusion convert {config.trainer.start} OUT.safetensors makes one"
        )
    try:
        known, notes = source.known.for_data(facts, LABEL in config.denoiser.parts)
    except UserError as error:
        raise UserError(f"{name} {error}") from error
    made = known.model(source.source, config, facts)
    there = source.known.weights
    new = [IN_DENOISER + key for key, value in known.weights.items() if value is not there.get(key)]
    notes += _factors(made.adopted, config, new)
    return made, [f"starting from {source.source}, by its own conventions", *notes]


def _with_classes(
    state: dict[str, Tensor], fresh: dict[str, Tensor], there: DataFacts, here: DataFacts
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """The state with the embeddings of classes of the run: the source's where the classes are as many, else new ones.

    The last row, no label, stays what it was, so that without labels the model is the same. Also what to say of it, and
    the embeddings whose classes are other ones than in the source.
    """
    notes, made, new = [], dict(state), []
    known = {_CLASSES: ("labels", *(names_of(facts.provenance, facts.num_classes) for facts in (there, here)))}
    for i, (a, b) in enumerate(zip(there.parts, here.parts, strict=False)):
        if a.kind == b.kind == CLASSES:
            known[_PART.format(i)] = (b.name, list(a.names), list(b.names))
    found = {key: of for key in (*state, *fresh) for end, of in known.items() if key.endswith(end)}
    for name, (what, names, names_here) in found.items():
        if name not in fresh:
            notes.append(f"labels: its {len(made.pop(name)) - 1} classes are left out; the run takes no labels")
        elif name not in state or len(state[name]) != len(fresh[name]):
            made[name] = fresh[name].clone()
            made[name][-1] = state[name][-1] if name in state else 0.0
            before = len(state[name]) - 1 if name in state else 0
            count = len(fresh[name]) - 1
            notes.append(f"{what}: {before} classes in its training, {count} now: a new label embedding")
            new.append(name)
        elif names != names_here:
            notes.append(f"{what}: as many classes, by other names; their embedding is kept")
            new.append(name)
    return made, notes, new
