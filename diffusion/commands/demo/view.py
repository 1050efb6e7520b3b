"""The page's HTML: pictures with their path, costs, command and download. What comes from outside is escaped."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from html import escape

from .drawing import Drawn, Picture

_LEFT = 94.0  # per cent of the axis of noise levels; clean data stand at its end


def address(png: bytes) -> str:
    """A PNG as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def line(text: str = "", is_error: bool = False) -> str:
    """A line about what has just happened."""
    return f'<p class="line{" error" if is_error else ""}" role="status">{escape(text)}</p>'


def empty(text: str) -> str:
    """What stands where nothing has been drawn yet."""
    return f'<div class="empty">{escape(text)}</div>'


def figure(picture: Picture, caption: str, kind: str = "small") -> str:
    """A picture with its caption and a link that keeps it; `kind` is small, wide or chart."""
    source = address(picture.png)
    return (
        f'<figure class="{kind}"><img src="{source}" alt="{escape(caption)}">'
        f"<figcaption><span>{escape(caption)}</span>"
        f'<a download="{escape(picture.name)}" href="{source}">Save PNG</a></figcaption></figure>'
    )


def facts(values: Mapping[str, str]) -> str:
    """Figures with their names."""
    inner = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in values.items())
    return f"<dl>{inner}</dl>"


def code(text: str, caption: str = "The same from the command line") -> str:
    """A command, and a button that copies it."""
    return (
        f'<div class="again"><p>{escape(caption)}</p><div class="command"><code>{escape(text)}</code>'
        '<button type="button" class="copy">Copy</button></div></div>'
    )


def path(drawn: Drawn) -> str:
    """The path from noise with a slider over its steps, and the grid of noise levels."""
    if not drawn.frames:
        return _ticks(drawn.log_snrs) if drawn.log_snrs else ""
    frames = [[address(half) for half in frame] for frame in drawn.frames]
    last = len(frames) - 1
    begins = "noise" if math.isfinite(drawn.log_snrs[0]) else "start"
    words = [_level(i, last, log_snr, begins) for i, log_snr in enumerate(drawn.log_snrs)]
    captions = ("x<sub>t</sub>, the state", "E[x | x<sub>t</sub>], the estimate of the step")
    halves = "".join(
        f'<div><p>{caption}</p><img src="{half}" alt=""></div>'
        for caption, half in zip(captions, frames[last], strict=True)
    )
    return (
        f'<div class="path" data-frames="{escape(json.dumps(frames))}" data-words="{escape(json.dumps(words))}">'
        f'<div class="halves">{halves}</div>'
        '<div class="scrub"><button type="button" class="play">Play</button>'
        f'<input type="range" min="0" max="{last}" value="{last}" aria-label="Step of the path">'
        f"<output>{words[last]}</output></div>{_ticks(drawn.log_snrs)}</div>"
    )


def _level(step: int, last: int, log_snr: float, begins: str) -> str:
    where = "clean" if math.isinf(log_snr) else f"log-SNR {log_snr:.2f}"
    return f"{begins}, {where}" if step == 0 else f"step {step} of {last}, {where}"


def _ticks(log_snrs: Sequence[float]) -> str:
    finite = [value for value in log_snrs if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    ticks = []
    for i, value in enumerate(log_snrs):
        left = 100.0 if math.isinf(value) else _LEFT * (value - low) / (high - low or 1.0)
        now = ' class="now"' if i == len(log_snrs) - 1 else ""
        ticks.append(f'<i{now} style="left:{left:.2f}%"></i>')
    ends = f"<span>noise, {low:.1f}</span><span>log-SNR of the steps</span><span>{high:.1f}, data</span>"
    return f'<div class="grid"><div class="ticks">{"".join(ticks)}</div><div class="ends">{ends}</div></div>'


def result(drawn: Drawn, caption: str) -> str:
    """All of a draw."""
    costs = facts({"Evaluations a sample": f"{drawn.nfe:.0f}", "Seconds": f"{drawn.seconds:.2f}"})
    side = f'<div class="side">{costs}{code(drawn.command)}</div>'
    shown = f"<article>{figure(drawn.picture, caption, 'wide')}{side}</article>"
    return f'<div class="result">{shown}{path(drawn)}</div>'


def painter(image: Picture, height: int, width: int) -> str:
    """An image whose pixels can be marked: marked ones are written into the field with the id `mask`."""
    return (
        f'<div class="painter" style="aspect-ratio:{width}/{height};background-image:url({address(image.png)})">'
        f'<canvas width="{width}" height="{height}" aria-label="Paint over what is to be filled in"></canvas></div>'
        '<div class="tools"><label>Brush <input type="range" class="brush" min="1" '
        f'max="{max(2, min(height, width) // 4)}" value="{max(1, min(height, width) // 8)}"></label>'
        '<button type="button" class="clear">Clear</button></div>'
    )
