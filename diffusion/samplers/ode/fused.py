"""a x + b y in one pass over memory.

A step is memory-bound: on a CPU whose cache holds two or three states, a product and then a sum take half as long again
as one fused operation. torch has none by that name, but its rank-one update, beta M + alpha u v^T, is one for a matrix
of one row and u = 1.

Its last bit depends on the position in the batch (the CPU rounds once or twice), that of torch.add does not: samplers
whose noise is keyed by the sample use torch.add, so that the samples do not depend on the batch either.
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
    """a x + b y in the memory of `x`, which must no longer be used: use the result instead."""
    return x.reshape(1, -1).addr_(_one(x.dtype, x.device), y.reshape(-1), beta=a, alpha=b).reshape(x.shape)


@lru_cache
def _one(dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it may also be used where gradients are taken
        return torch.ones(1, dtype=dtype, device=device)
