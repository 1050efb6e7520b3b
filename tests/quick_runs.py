"""Tiny runs without what takes most of their time: charts with axes, fine densities, 2,048 points in a validation.

Charts are made, and come out blank.
"""

from functools import partial
from unittest import mock

from matplotlib.figure import Figure
from PIL import Image

from diffusion.data import pictures
from diffusion.training import data_module


def _points(x, toy):
    return pictures.grid(x[:, None, None].clamp(-1, 1))


def _blank(figure, buffer, format):
    size = (figure.get_size_inches() * figure.dpi).round().astype(int)
    Image.new("RGB", tuple(size.tolist()), "white").save(buffer, format)


few_points = mock.patch.object(data_module, "_TOY_VALIDATION", 64)
_ALL = (
    few_points,
    mock.patch.object(pictures, "_points_picture", _points),
    mock.patch.object(pictures, "density_picture", partial(pictures.density_picture, side=4)),
    mock.patch.object(Figure, "savefig", _blank),
)


class _Quick:
    """All of it, in a block or from `start` on."""

    def start(self):
        for patch in _ALL:
            patch.start()

    __enter__ = start

    def __exit__(self, *error):
        for patch in _ALL:
            patch.stop()


quick_runs = _Quick()
