"""Images as level indices with fixed splits, distributions of known density, and the order of training batches."""

from .batches import augment, batch_indices, global_positions
from .images import DataNote, ImageData, image_names, load_images
from .summary import describe
from .toy import AutoregressiveToy, Checkerboard, MixtureToy, Toy, find_toy, load_toy, toy_names

__all__ = [
    "AutoregressiveToy",
    "Checkerboard",
    "DataNote",
    "ImageData",
    "MixtureToy",
    "Toy",
    "augment",
    "batch_indices",
    "describe",
    "find_toy",
    "global_positions",
    "image_names",
    "load_images",
    "load_toy",
    "toy_names",
]
