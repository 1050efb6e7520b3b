"""Levels that the head of a `levels` model can never find the likeliest, by linear programming.

The head gives level k the log-odds f_k = w_k . h + b_k, linear in the features h of the network below. With fewer
features than levels less one, some w_k can lie within the convex hull of the others: no h makes f_k the largest
(Demeter, Kimmel and Downey 2020, arXiv 2005.02433; Grivas, Bogoychev and Lopez 2022, arXiv 2203.06464, who find them by
the same programs). For each k

    maximise m    such that    f_k >= f_j + m for all j != k,    m <= 1

over all h, even those that no image leads to: a level without a positive m is never the likeliest.

A denoiser adds the evidence of the pixel's own noisy value, alpha c_k x_t / sigma^2 - alpha^2 c_k^2 / (2 sigma^2): a
feature more, and another b_k. In much noise it is too weak to matter.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ...denoisers import LevelDenoiser

_POSITIVE = 1e-7  # margins are 1 where there is any, unless biases alone decide


def never_likeliest(weights: Float[Tensor, " l d"], biases: Float[Tensor, " l"]) -> list[int]:
    """The levels k, of L, for which no h has w_k . h + b_k above all others, in ascending order."""
    from scipy.optimize import linprog

    weights, biases = weights.detach().cpu().double(), biases.detach().cpu().double()
    count = len(weights)
    if int(torch.linalg.matrix_rank(weights[1:] - weights[0])) == count - 1:
        return []  # any values at all can be given to the differences of the f
    never, others = [], torch.ones(count, dtype=torch.bool)
    for k in range(count):
        others[k] = False
        differences = weights[others] - weights[k]
        scale = differences.norm(dim=1).clamp(min=1e-12).amax()
        table = torch.cat([differences / scale, torch.ones(count - 1, 1, dtype=torch.float64)], dim=1)
        right, free = (biases[k] - biases[others]) / scale, [(None, None)] * weights.shape[1]
        cost = [0.0] * weights.shape[1] + [-1.0]
        found = linprog(cost, table.numpy(), right.numpy(), bounds=[*free, (None, 1.0)])
        if found.status != 0 or not found.x[-1] > _POSITIVE:
            never.append(k)
        others[k] = True
    return never


def head_of(denoiser: LevelDenoiser) -> tuple[Float[Tensor, " p l d"], Float[Tensor, " p l"]] | None:
    """The weights and biases of the levels of each of P outputs: channels, times the places within a patch.

    None for a network whose last layer is not known.
    """
    last = getattr(denoiser.network, "conv_out", None) or getattr(denoiser.network, "dense_out", None)
    channels, levels = denoiser.shape[0], len(denoiser.places)
    if last is None or last.bias is None or len(last.weight) % (channels * levels):
        return None
    # as `LevelDenoiser` and `from_patches` take them apart: channel, level, place
    weights = last.weight.flatten(1).unflatten(0, (channels, levels, -1)).transpose(1, 2)
    biases = last.bias.unflatten(0, (channels, levels, -1)).transpose(1, 2)
    return weights.flatten(0, 1), biases.flatten(0, 1)


def with_own_value(
    weights: Tensor, biases: Tensor, places: Float[Tensor, " l"], log_snr: float
) -> tuple[Float[Tensor, " l d_1"], Float[Tensor, " l"]]:
    """The same with the evidence of the pixel's own value at a log-SNR, in units of sigma: the last feature is
    x_t / sigma.
    """
    places = places.to(weights) * float(torch.exp(torch.tensor(0.5 * log_snr)))
    return torch.cat([weights, places[:, None]], dim=1), biases - 0.5 * places.square()


def lines(denoiser: LevelDenoiser, log_snr: float = 0.0) -> list[str]:
    """What `check` says of a head: a line, or two where some level can never be the likeliest."""
    head = head_of(denoiser)
    if head is None:
        return []
    weights, biases = head
    never = [never_likeliest(w, b) for w, b in zip(weights, biases, strict=True)]
    count, outputs = sum(map(len, never)), len(never)
    if not count:
        return [f"levels: each of the {weights.shape[1]} can be the likeliest, in every of {outputs} outputs"]
    own = [
        never_likeliest(*with_own_value(w, b, denoiser.places, log_snr)) for w, b in zip(weights, biases, strict=True)
    ]
    named = sorted({k for levels in never for k in levels})
    shown = ", ".join(map(str, named[:12])) + (", ..." if len(named) > 12 else "")
    return [
        f"levels that can never be the likeliest by the network alone ({weights.shape[2]} features): {shown}; "
        f"{count} in {outputs} outputs of {weights.shape[1]}",
        f"with the pixel's own value at log-SNR {log_snr:g}: {sum(map(len, own))}",
    ]
