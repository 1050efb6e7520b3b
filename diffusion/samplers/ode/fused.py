"""a x + b y in one pass over memory.

A step costs what it moves: on a CPU whose cache holds two or three states, a product and then a sum take half as long
again as one operation that does both. torch has none by that name, but its update of rank one,
beta M + alpha u v^T, is it for a matrix of one row and u = 1.

Its last bit depends on where in the batch a number lies (the processor rounds once or twice), that of torch.add does
not: samplers whose noise is keyed by the sample keep to torch.add, so that the whole sample is.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor


def linear(a: float, x: Float[Tensor, " *dims"], b: float, y: Float[Tensor, " *dims"]) -> Float[Tensor, " *dims"]:
    """a x + b y, a new tensor of the dtype of `x`."""
    return torch.addr(x.reshape(1, -1), _one(x.dtype, x.device), y.reshape(-1), beta=a, alpha=b).reshape(x.shape)


def linear_(a: float, x: Float[Tensor, " *dims"], b: float, y: Float[Tensor, " *dims"]) -> Float[Tensor, " *dims"]:
    """a x + b y in the memory of `x`, which is given up: the result is to be used in its place."""
    return x.reshape(1, -1).addr_(_one(x.dtype, x.device), y.reshape(-1), beta=a, alpha=b).reshape(x.shape)


@lru_cache
def _one(dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # one that may also be used where gradients are
        return torch.ones(1, dtype=dtype, device=device)
