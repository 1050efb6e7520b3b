"""The 1,797 handwritten digits that come with scikit-learn: 8 x 8, 17 levels (0 .. 16), no download."""

from __future__ import annotations

import torch

from diffusion.data.decoding import resize_arrays
from diffusion.data.raw_images import RawImages

VALIDATION_FRACTION = 90 / 1797
TEST_FRACTION = 360 / 1797


def load_digits(size: int | None = None) -> RawImages:
    """Return the digits, unsplit; `size` resizes them (values stay within the 17 levels)."""
    from sklearn import datasets

    pixels, target = datasets.load_digits(return_X_y=True)
    images = torch.as_tensor(pixels).to(torch.uint8).reshape(-1, 1, 8, 8)
    labels = torch.as_tensor(target).long()
    return RawImages(
        images=resize_arrays(images, size, levels=17),
        labels=labels,
        keys=[str(row) for row in range(len(images))],
        parts={"train": range(len(images))},
        source="scikit-learn load_digits (UCI optical recognition of handwritten digits, test part)",
        levels=17,
        num_classes=10,
        class_names=tuple("0123456789"),
    )
