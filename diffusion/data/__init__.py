"""Images as level indices with fixed splits, distributions in the plane, and the order of training batches."""

from .batches import augment, batch_indices, global_positions
from .images import DataNote, ImageData, image_names, load_images
from .summary import describe
from .toy import Checkerboard, MixtureToy, Toy, load_toy, toy_names

__all__ = [
    "Checkerboard",
    "DataNote",
    "ImageData",
    "MixtureToy",
    "Toy",
    "augment",
    "batch_indices",
    "describe",
    "global_positions",
    "image_names",
    "load_images",
    "load_toy",
    "toy_names",
]
