"""Tiny runs without what takes most of their time: charts with axes, fine densities, 2,048 points in a validation."""

from functools import partial
from unittest import mock

from diffusion.data import pictures
from diffusion.training import data_module


def _points(x, toy):
    return pictures.grid(x[:, None, None].clamp(-1, 1))


few_points = mock.patch.object(data_module, "_TOY_VALIDATION", 64)
_ALL = (
    few_points,
    mock.patch.object(pictures, "_points_picture", _points),
    mock.patch.object(pictures, "density_picture", partial(pictures.density_picture, side=4)),
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
