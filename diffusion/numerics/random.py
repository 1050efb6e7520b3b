"""Randomness as a function, not a state: every draw is keyed by (seed, sample index, step).

A counter-based generator (Philox 4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011) maps a key and a counter to four random words, without any state. The seed is the key; the sample's index, the
step and the stream form the counter. Row i of a draw therefore depends only on its own index: an image does not depend
on the batch size, its position in the batch or the number of processes, and a resumed run sees the same noise as an
uninterrupted one.

The words are computed in int64 (torch has no full uint32 arithmetic) on any device. Normals come from the Box-Muller
transform in float64, rounded once, which hides the last bit of a vectorised logarithm.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_FEW = 2**13  # blocks of four words that arrays of NumPy compute in less time than tensors, whose calls cost more

# Streams separate the uses of randomness: adding or removing a stream changes no draw of another.
STREAM_INITIAL, STREAM_SOLVER, STREAM_TRAIN_NOISE, STREAM_TRAIN_TIME, STREAM_DEQUANTIZE = 0, 1, 2, 3, 4
STREAM_LABEL_DROP, STREAM_AUGMENT, STREAM_PROBE, STREAM_EVALUATE, STREAM_LABEL = 5, 6, 7, 8, 9
STREAM_ORDER, STREAM_TOY, STREAM_STATE, STREAM_EXACT, STREAM_MASK = 10, 11, 12, 13, 14
# The streams from here on form one: their last 15 bits belong to the node of a tree (`path_normal`).
STREAM_PATH = 0x8000

# The name of `fixed_order` in records.
FIXED_ORDER = "SHA-256 of the index"

_AHEAD, _AT_ONCE = 32, 2**15  # steps that a sampler's noise is drawn for at once, and normals, at most


def hashed_order(keys: Iterable[str]) -> list[int]:
    """Return the positions of `keys`, which are all different, sorted by the SHA-256 of the key."""
    digests = [hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest() for key in keys]
    return sorted(range(len(digests)), key=lambda row: (digests[row], row))


def fixed_order(rows: int | Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The order in which a subset of the rows of a data set is taken: that of the SHA-256 of their numbers.

    Files are often sorted by class, by writer or by difficulty, so the first rows are not a random sample, and every
    k-th row may be of one class. This order is pseudo-random and depends only on the row numbers: the first n are among
    the first n + 1, and the relative order within any subset of the rows is the same as among all of them.

    Args:
        rows: Their numbers, all different; or their count n, for 0 .. n - 1.

    Returns:
        Positions in `rows`, in the order in which to take them.
    """
    numbers = range(rows) if isinstance(rows, int) else rows.tolist()
    return torch.tensor(hashed_order(map(str, numbers)), dtype=torch.long)


def fixed_subset(total: int, count: int | None) -> Int[Tensor, " n"]:
    """The rows of 0 .. total - 1 that come first in the fixed order, at most `count`, in ascending order."""
    return torch.arange(total) if count is None or count >= total else fixed_order(total)[:count].sort().values


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox 4x32 with 10 rounds.

    Args:
        counter: Four int64 tensors that broadcast together, with values in [0, 2^32).
        key: Two words in [0, 2^32).

    Returns:
        Four int64 tensors of random words in [0, 2^32).
    """
    if torch.compiler.is_compiling():
        return _rounds(counter, key)
    whole = torch.broadcast_tensors(*counter)[0].shape  # `broadcast_shapes` imports sympy: 0.4 s
    if whole.numel() <= _FEW and (arrays := _arrays(counter)) is not None:
        a, b, c, d = (torch.from_numpy(word) for word in _rounds(arrays, key))
        return a, b, c, d
    words, spare = counter, None
    for k0, k1 in _keys(key):
        if spare is None:
            words = _round(words, k0, k1)
            if all(c.shape == whole for c in words):
                spare = torch.empty_like(words[0]), torch.empty_like(words[0])
        else:  # in six buffers, which stay in the CPU cache
            c0, c1, c2, c3 = words
            p0, p1 = torch.mul(c0, _MULTIPLIERS[0], out=spare[0]), torch.mul(c2, _MULTIPLIERS[1], out=spare[1])
            torch.bitwise_right_shift(p1, 32, out=c0).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(_MASK)
            torch.bitwise_right_shift(p0, 32, out=c2).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(_MASK)
            words, spare = (c0, p1, c2, p0), (c1, c3)
    c0, c1, c2, c3 = words
    return c0, c1.bitwise_and_(_MASK), c2, c3.bitwise_and_(_MASK)


def _arrays(counter: Iterable[Tensor]) -> list[Any] | None:
    """The words as arrays of NumPy; None where they are more than data on the CPU: traced, or in a transform."""
    if torch.jit.is_tracing() or is_in_torch_dispatch_mode():
        return None
    if any(type(c) is not Tensor or c.device.type != "cpu" or c.ndim == 0 for c in counter):
        return None  # what NumPy computes of no axis is a number, which warns where it wraps
    try:
        return [c.numpy() for c in counter]
    except RuntimeError:  # of `torch.func`'s tensors, which hold no data
        return None


def _keys(key: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The key of each round."""
    for i in range(_ROUNDS):
        yield (key[0] + i * _WEYL[0]) & _MASK, (key[1] + i * _WEYL[1]) & _MASK


def _round(words: Any, k0: int, k1: int) -> Any:
    """One round, of four numbers, arrays or tensors of int64.

    Products wrap modulo 2^64 there: shifts and masks extract their halves. Bits of the second and the fourth word above
    the lowest 32 are masked in the next round, in the first and the third.
    """
    c0, c1, c2, c3 = words
    p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
    return ((p1 >> 32) ^ c1 ^ k0) & _MASK, p1, ((p0 >> 32) ^ c3 ^ k1) & _MASK, p0


def _rounds(words: Any, key: tuple[int, int]) -> Any:
    """All rounds, one after another."""
    for k0, k1 in _keys(key):
        words = _round(words, k0, k1)
    c0, c1, c2, c3 = words
    return c0, c1 & _MASK, c2, c3 & _MASK


def _words(
    seed: int,
    indices: Tensor,
    step: int | Tensor,
    count: int,
    stream: int | Tensor,
    device: torch.device | str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every fourth word, four times, of shape (B, blocks): enough for `count` a row; step and stream may be per row."""
    index = torch.as_tensor(indices, dtype=torch.int64).to(device)
    step, stream = (
        key.to(index).reshape(-1)
        if isinstance(key, Tensor)
        else torch.full((1,), key, dtype=torch.int64, device=index.device)  # written there: nothing is copied
        for key in (step, stream)
    )
    blocks = (count + 3) // 4
    if index.device.type == "cuda" and not torch.compiler.is_compiling() and (kernel := _kernel()) is not None:
        with torch.cuda.device(index.device):
            a, b, c, d = kernel(seed, index, step, stream, blocks)
        return a, b, c, d
    index, step, stream = index[:, None], step[:, None], stream[:, None]
    block = torch.arange(blocks, dtype=torch.int64, device=index.device)[None, :]
    # counter = (block, index low, step, index high and stream): 2^32 blocks, 2^48 samples, 2^32 steps, 2^16 streams.
    # They are not expanded: the first rounds, on single rows or columns, then cost next to nothing.
    counter = (block, index & _MASK, step & _MASK, ((index >> 32) & 0xFFFF) | (stream << 16))
    return philox4x32(counter, (seed & _MASK, (seed >> 32) & _MASK))


@cache
def _kernel() -> Callable[..., tuple[Tensor, ...]] | None:
    """The words from one kernel, where Triton is there and can make one (it needs a C compiler)."""
    try:
        from .philox_kernel import words

        one = torch.zeros(1, dtype=torch.int64, device="cuda")
        words(0, one, one, one, 1)
    except Exception:  # whatever it lacks: the operations on tensors give the same words
        return None
    return words


def uniform(
    seed: int,
    indices: Int[Tensor, " b"],
    step: int | Int[Tensor, " *b"],
    shape: Sequence[int] = (),
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Float[Tensor, " b *dims"]:
    """Uniform draws in the open interval (0, 1), row i keyed by (seed, indices[i], step, stream).

    Args:
        seed: The seed, up to 64 bits.
        indices: Sample indices, shape (B,).
        step: The step of the loop that draws.
        shape: The shape of one sample's draw; () for one number per sample.
        stream: The use of the draw (the `STREAM_` constants).
        dtype: The floating type of the result.
        device: Where to compute; the device of `indices` by default.

    Returns:
        A tensor of shape (B, *shape).
    """
    count = math.prod(shape)
    words = torch.stack(_words(seed, indices, step, count, stream, device), dim=-1).flatten(1)[:, :count]
    # float32 has 24 bits; the clamp excludes the ends, which rounding could reach.
    bits, shift = (24, 8) if dtype != torch.float64 else (32, 0)
    u = ((words >> shift).to(torch.float64) + 0.5) * 2.0**-bits
    if dtype != torch.float64:
        u = u.clamp(2.0**-25, 1.0 - 2.0**-24)
    return u.to(dtype).reshape(-1, *shape)


def normal(
    seed: int,
    indices: Int[Tensor, " b"],
    step: int | Int[Tensor, " *b"],
    shape: Sequence[int] = (),
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Float[Tensor, " b *dims"]:
    """Standard normal draws, row i keyed by (seed, indices[i], step, stream); the step may be per row.

    Arguments as in `uniform`.
    """
    count = math.prod(shape)
    return _box_muller(_words(seed, indices, step, count, stream, device), count, dtype).reshape(-1, *shape)


def path_normal(
    seed: int,
    indices: Int[Tensor, " b"],
    nodes: Int[Tensor, " b"],
    shape: Sequence[int] = (),
    device: torch.device | str | None = None,
) -> Float[Tensor, " b *dims"]:
    """float64 standard normals, row i keyed by (seed, indices[i], nodes[i]), for a tree with nodes in [0, 2^47)."""
    count = math.prod(shape)
    words = _words(seed, indices, nodes, count, STREAM_PATH | (nodes >> 32), device)
    return _box_muller(words, count, torch.float64).reshape(-1, *shape)


def _box_muller(words: tuple[Tensor, Tensor, Tensor, Tensor], count: int, dtype: torch.dtype) -> Tensor:
    """(B, count) normals from four times (B, blocks) words."""
    z = torch.empty(*words[0].shape, 4, dtype=dtype, device=words[0].device)
    for i in (0, 2):
        # 2^-32 (word + 1/2) lies in (0, 1)
        radius = words[i].to(torch.float64).add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
        angle = words[i + 1].to(torch.float64).add_(0.5).mul_(2.0 * math.pi * 2.0**-32)
        z[..., i], z[..., i + 1] = angle.cos().mul_(radius), angle.sin_().mul_(radius)
    return z.flatten(1)[:, :count]


def rademacher(
    seed: int,
    indices: Int[Tensor, " b"],
    step: int | Int[Tensor, " *b"],
    shape: Sequence[int] = (),
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Float[Tensor, " b *dims"]:
    """Random signs, -1 or +1, row i keyed by (seed, indices[i], step, stream). Arguments as in `uniform`."""
    count = math.prod(shape)
    words = torch.stack(_words(seed, indices, step, count, stream, device), dim=-1).flatten(1)[:, :count]
    return ((words >> 31) * 2 - 1).to(dtype).reshape(-1, *shape)


def state_seed(seed: int, *keys: int) -> int:
    """A seed for a stateful generator (for dropout), as a function of the run's seed and up to three keys.

    Args:
        seed: The run's seed.
        keys: Numbers that distinguish the uses, e.g. step, part of the batch and process.
    """
    a, b, c = (*keys, 0, 0, 0)[:3]
    low, high = _first_words(seed, (a & _MASK, b & _MASK, c & _MASK, STREAM_STATE << 16))
    return (high & 0x7FFFFFFF) << 32 | low


def one_uniform(seed: int, index: int, step: int, stream: int) -> float:
    """The float64 that `uniform` has for one index, step and stream, computed from numbers, without a tensor."""
    counter = (0, index & _MASK, step & _MASK, ((index >> 32) & 0xFFFF) | (stream << 16))
    return (_first_words(seed, counter)[0] + 0.5) * 2.0**-32


def _first_words(seed: int, counter: tuple[int, int, int, int]) -> tuple[int, int]:
    """The first two words of `philox4x32`, of numbers."""
    first, second, _, _ = _rounds(counter, (seed & _MASK, (seed >> 32) & _MASK))
    return first, second


@dataclass(frozen=True)
class Noise:
    """The noise of a sampler: a function from the step to standard normals, one row per sample.

    Args:
        seed: The seed.
        indices: The indices of the samples in the batch, shape (B,).
        shape: The shape of one sample.
        dtype: The floating type of the draws.
        device: The device of the draws.
    """

    seed: int
    indices: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    device: torch.device | str | None = None
    # The cost of a small draw is launching its hundred operations, so it includes the next steps. Draws are a function
    # of the step, so the cache does not affect the result.
    _ahead: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self):
        if self.device is not None:  # copied there once, not with each step
            object.__setattr__(self, "indices", self.indices.to(self.device))

    @cached_property
    def steps_at_once(self) -> int:
        """The steps whose normals are drawn at once."""
        return max(1, min(_AHEAD, _AT_ONCE // max(1, len(self.indices) * math.prod(self.shape))))

    def initial(self) -> Tensor:
        """Standard normals of shape (B, *shape) for the start of the path."""
        return normal(self.seed, self.indices, 0, self.shape, STREAM_INITIAL, self.dtype, self.device)

    def __call__(self, step: int) -> Tensor:
        """Standard normals of shape (B, *shape) for the given step."""
        at_once = self.steps_at_once
        if at_once == 1:
            return normal(self.seed, self.indices, step, self.shape, STREAM_SOLVER, self.dtype, self.device)
        if step not in self._ahead:
            steps = torch.arange(step, step + at_once, device=self.indices.device)
            rows = self.indices.repeat(at_once), steps.repeat_interleave(len(self.indices))
            with torch.inference_mode(False):  # cached: the next step may take gradients
                z = normal(self.seed, *rows, self.shape, STREAM_SOLVER, self.dtype, self.device)
            self._ahead.clear()
            self._ahead.update(enumerate(z.reshape(at_once, -1, *self.shape), start=step))
        return self._ahead[step]
