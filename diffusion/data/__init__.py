"""Images as level indices and arrays of numbers, with fixed splits, densities that are known, the order of batches."""

from .arrays import ARRAY, ArrayData, load_array
from .batches import augment, batch_indices, global_positions
from .images import ImageData, image_names, load_images
from .split_data import DataNote, SplitData
from .summary import describe
from .toy import AutoregressiveToy, Checkerboard, MixtureToy, Toy, find_toy, load_toy, toy_names

__all__ = [
    "ARRAY",
    "ArrayData",
    "AutoregressiveToy",
    "Checkerboard",
    "DataNote",
    "ImageData",
    "MixtureToy",
    "SplitData",
    "Toy",
    "augment",
    "batch_indices",
    "describe",
    "find_toy",
    "global_positions",
    "image_names",
    "load_array",
    "load_images",
    "load_toy",
    "toy_names",
]
