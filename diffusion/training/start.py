"""A run that starts from the weights of another model: `train.py --from`, `trainer.start`.

With `--lora`, `trainer.lora`, low-rank factors on the weights are trained in their place (`models.factors`).

Both the weights and their average begin as the averaged weights of the source; the optimiser, the counters and the
ramp-up of the average are fresh. At step 0 the model has the figures of its source, to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import Config
from ..data.class_names import names_of
from ..denoisers.condition import LABEL
from ..errors import UserError
from ..models.adopt import AdoptedModel
from ..models.build import DataFacts, check_state
from ..models.factors import add_factors
from ..models.load import load
from ..networks.parts import CLASSES

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
        raise UserError(f"{name} is another project's, by conventions of its own; training starts from a model of ours")
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
    if (rank := config.trainer.lora) is not None:
        count, total = add_factors(model, rank, new), sum(value.numel() for value in state.values())
        learned = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        also = ", and the label embedding" if new else ""
        notes.append(
            f"training factors of rank {rank} of {count} weights{also}: {learned:,} numbers; "
            f"the model's own {total:,} stay"
        )
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
