"""Pictures of points without the axes of a chart, which take half of the time of a tiny run."""

from unittest import mock

from diffusion.data import pictures


def _points(x, toy):
    return pictures.grid(x[:, None, None].clamp(-1, 1))


quick_pictures = mock.patch.object(pictures, "_points_picture", _points)
