"""Files as EDM, score_sde and OpenAI's projects write them, of small networks with weights by a formula of their names.

`fixtures/published/<case>.npz` holds the names and shapes of the weights of a small network of theirs, and the eps (and
the variance, where there is one) that their code answered for it.
"""

import math
import pickle
import sys
import types
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import nn

STORED = Path(__file__).parents[1] / "fixtures" / "published"
SHAPE = (3, 3, 8, 8)


def values(name, shape):
    """Numbers by a formula of a name and the place: of a matrix scaled by its inputs, of a scale near 1."""
    size = math.prod(shape)
    places = torch.arange(1, size + 1, dtype=torch.float64)
    uniform = torch.frac(torch.sin(12.9898 * places + zlib.crc32(name.encode()) % 1000) * 43758.5453).abs() - 0.5
    found = math.sqrt(12.0) * uniform.reshape(shape)
    if len(shape) > 1:
        return (found * math.sqrt(shape[0] / size)).float()
    return (float(name.endswith("weight")) + 0.2 * found).float()


class Stored:
    """What their code answered.

    Attributes:
        weights: By their names.
        at: Three noise levels, sigma or times.
        answer: For `x` with `noise` at those.
    """

    def __init__(self, case):
        with np.load(STORED / f"{case}.npz") as file:
            names, shapes = file["names"].tolist(), [tuple(map(int, text.split())) for text in file["shapes"].tolist()]
            self.at, self.answer = torch.tensor(file["at"]), torch.tensor(file["output"])
        self.weights = {name: values(name, shape) for name, shape in zip(names, shapes, strict=True)}
        # 3 x 3 x 8 x 8 are no matrix of a network
        self.x, self.noise = 0.5 * values("x", SHAPE), values("noise", SHAPE)


class _Persistent:
    """Pickled as NVlabs does, with the source of its class; this source makes a folder if it is run."""

    def __init__(self, class_name, state, folder):
        self.meta = {"type": "class", "version": 6, "class_name": class_name, "state": state}
        self.meta["module_src"] = f"import os; os.mkdir({str(folder)!r})"

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


def _state(weights, buffers, folder, **more):
    """The state of a module whose parameters and modules have these full names."""
    own = {"training": False, "_parameters": OrderedDict(), "_buffers": OrderedDict(), "_modules": OrderedDict()}
    inner = {}
    for name, tensor in weights.items():
        head, _, rest = name.partition(".")
        if rest:
            inner.setdefault(head, {})[rest] = tensor
        elif head in buffers:
            own["_buffers"][head] = tensor
        else:
            own["_parameters"][head] = nn.Parameter(tensor, requires_grad=False)
    for name, part in inner.items():
        own["_modules"][name] = _Persistent("Part", _state(part, buffers, folder), folder)
    return {**own, **more}


def edm_pickle(class_name, arguments, weights, folder, protocol=pickle.DEFAULT_PROTOCOL):
    """The bytes of a network pickle; `folder` is what its code would make."""
    module = types.ModuleType("torch_utils.persistence")
    exec("def _reconstruct_persistent_obj(meta): pass", vars(module))
    sys.modules["torch_utils"], sys.modules["torch_utils.persistence"] = types.ModuleType("torch_utils"), module
    try:
        state = _state(weights, ("freqs", "resample_filter", "u"), folder, _init_args=(), _init_kwargs=arguments)
        content = {"ema": _Persistent(class_name, state, folder), "loss_fn": None, "dataset_kwargs": {"path": "x"}}
        return pickle.dumps(content, protocol)
    finally:
        del sys.modules["torch_utils"], sys.modules["torch_utils.persistence"]


def song_checkpoint(path, weights):
    """A checkpoint of score_sde_pytorch: raw weights behind DataParallel, and averages without names."""
    averages = [value for name, value in weights.items() if name not in ("sigmas", "all_modules.0.W")]
    raw = {
        f"module.{name}": value if name in ("sigmas", "all_modules.0.W") else value + 1.0
        for name, value in weights.items()
    }
    optimizer = nn.Linear(2, 2)
    state = torch.optim.Adam(optimizer.parameters()).state_dict()
    ema = {"decay": 0.9999, "num_updates": 3, "shadow_params": averages}
    torch.save({"optimizer": state, "model": raw, "ema": ema, "step": 3}, path)
