"""Feature extractors: networks with a name and a hash, so that figures record which one was used."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ..errors import UserError
from ..numerics.placement import for_numbers
from ..storage import tensor_files

BATCH = 256
Progress = Callable[[int, int], None]


class FeatureExtractor(nn.Module, ABC):
    """A feature network: level indices, uint8 (N, C, H, W), in; features (N, d) out.

    Args:
        name: Its name in figures.
        preprocessing: A description of the preprocessing and of the output used: part of the hash.
    """

    def __init__(self, name: str, preprocessing: str):
        super().__init__()
        self.name = name
        self.preprocessing = preprocessing

    @abstractmethod
    def forward(self, images: UInt8[Tensor, " n c h w"]) -> Float[Tensor, " n d"]:
        """The features of images of level indices."""

    def digest(self) -> str:
        """The SHA-256 of weights and preprocessing."""
        state = {name: value.detach().cpu() for name, value in self.state_dict().items()}
        return tensor_files.digest(state, {"preprocessing": self.preprocessing})


class GivenFeatures(FeatureExtractor):
    """Any module from uint8 images to features, under a name.

    Args:
        module: Takes uint8 (N, C, H, W), returns (N, d) or anything that flattens to it.
        name: Its name in figures.
        preprocessing: A description of what it does: the hash of a module without weights depends only on this.
    """

    def __init__(self, module: nn.Module, name: str, preprocessing: str = ""):
        super().__init__(name, preprocessing or name)
        self.module = module

    def forward(self, images: UInt8[Tensor, " n c h w"]) -> Float[Tensor, " n d"]:
        """The module's output, flattened, in at least float32."""
        found = self.module(images).flatten(1)
        return found.to(torch.promote_types(found.dtype, torch.float32))


@torch.no_grad()
def extract(
    extractor: FeatureExtractor,
    images: UInt8[Tensor, " n c h w"],
    device: torch.device | str = "cpu",
    batch_size: int = BATCH,
    progress: Progress | None = None,
) -> Float[Tensor, " n d"]:
    """The features of many images, a batch at a time, on `device`, with the extractor in evaluation mode.

    Raises:
        UserError: For features that are not finite, or no images.
    """
    if not len(images):
        raise UserError("images: found none; features of nothing cannot be measured")
    device = for_numbers(torch.device(device))
    extractor = extractor.to(device).eval()
    found = []
    for batch in images.split(batch_size):
        found.append(extractor(batch.to(device)))
        if progress is not None:
            progress(sum(map(len, found)), len(images))
    features = torch.cat(found)
    if not bool(torch.isfinite(features).all()):
        raise UserError(f"features: '{extractor.name}' returned values that are not finite")
    return features
