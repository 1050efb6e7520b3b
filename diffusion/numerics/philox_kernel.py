"""The words of `random.philox4x32` from one kernel of a GPU: as operations on tensors they are a hundred.

A thread keeps the ten rounds of its counter in registers. Words are whole numbers, so they are the same to the last bit
everywhere.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256


@triton.jit(do_not_specialize=["blocks", "total", "key_low", "key_high"])
def _kernel(
    indices,
    steps,
    streams,
    out,
    blocks,
    total,
    key_low,
    key_high,
    STEP_STRIDE: tl.constexpr,
    STREAM_STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < total
    row = place // blocks
    index = tl.load(indices + row, mask=inside, other=0)
    step = tl.load(steps + row * STEP_STRIDE, mask=inside, other=0)
    stream = tl.load(streams + row * STREAM_STRIDE, mask=inside, other=0)
    c0 = (place % blocks).to(tl.uint32)
    c1 = index.to(tl.uint32)
    c2 = step.to(tl.uint32)
    c3 = (((index >> 32) & 0xFFFF) | (stream << 16)).to(tl.uint32)
    k0 = key_low.to(tl.uint32)
    k1 = key_high.to(tl.uint32)
    m0 = tl.full((BLOCK,), 0xD2511F53, tl.uint32)
    m1 = tl.full((BLOCK,), 0xCD9E8D57, tl.uint32)
    for _ in tl.static_range(10):  # type: ignore[reportGeneralTypeIssues]
        low_0, low_1 = c0 * m0, c2 * m1
        high_0, high_1 = tl.umulhi(c0, m0), tl.umulhi(c2, m1)
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    total = total.to(tl.int64)  # three times it is beyond int32 from 0.7 thousand million words on
    tl.store(out + place, c0.to(tl.int64), mask=inside)
    tl.store(out + total + place, c1.to(tl.int64), mask=inside)
    tl.store(out + 2 * total + place, c2.to(tl.int64), mask=inside)
    tl.store(out + 3 * total + place, c3.to(tl.int64), mask=inside)


def words(seed: int, index: Tensor, step: Tensor, stream: Tensor, blocks: int) -> tuple[Tensor, ...]:
    """Every fourth word, four times, int64 of shape (B, blocks).

    Args:
        seed: The seed.
        index: Sample indices, int64 (B,).
        step: Steps, int64 (1,) or (B,).
        stream: Streams, int64 (1,) or (B,).
        blocks: A quarter of the words of a row.
    """
    out = torch.empty(4, len(index), blocks, dtype=torch.int64, device=index.device)
    total = len(index) * blocks
    if total:
        launch: Any = _kernel[(triton.cdiv(total, _BLOCK),)]
        launch(
            index.contiguous(), step.contiguous(), stream.contiguous(), out, blocks, total,
            seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF,
            STEP_STRIDE=int(len(step) > 1), STREAM_STRIDE=int(len(stream) > 1), BLOCK=_BLOCK,
        )  # fmt: skip
    return out.unbind()
