"""Inception v3 as a feature network: 2,048 features after the last average pooling.

Two networks have this name, and their figures are not comparable:

- torchvision's, trained on ImageNet in PyTorch. Its weights come with torchvision (a file in torch's hub folder).
- The one of published FIDs (Heusel et al. 2017): TensorFlow's of 2015-12-05 with 1,008 classes, whose average pools do
  not count the padding and whose last block has a maximum pool. Ports of its weights to PyTorch are files named
  `pt_inception-2015-12-05-*.pth` and `weights-inception-2015-12-05-*.pth`; images are resized to 299 x 299 as in
  TensorFlow 1 (bilinear, corner to corner without a half-pixel shift) and scaled to (v - 128) / 128.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from ..storage.paths import named_path
from .extractor import FeatureExtractor

SIDE = 299
_FID_CLASSES, _CLASSES = 1008, 1000


class InceptionFeatures(FeatureExtractor):
    """Inception v3 up to the last average pooling.

    Args:
        state: The weights, with torchvision's names: 1,000 classes, or the 1,008 of published FIDs.
        levels: The number of values a channel can take; pixels are scaled to [0, 255] with it.

    Raises:
        UserError: For weights of neither network.
    """

    def __init__(self, state: dict[str, Tensor], levels: int = 256):
        from torchvision.models import inception_v3

        head = state.get("fc.weight")
        classes = 0 if head is None else len(head)
        if classes not in (_CLASSES, _FID_CLASSES):
            raise UserError(
                f"--features: found weights of {classes} classes; accepted: Inception v3 of torchvision ({_CLASSES}) "
                f"or of published FIDs ({_FID_CLASSES})"
            )
        name = "inception-fid" if classes == _FID_CLASSES else "inception-torchvision"
        resize = "TF1 bilinear, (v - 128) / 128" if classes == _FID_CLASSES else "bicubic antialiased, v / 127.5 - 1"
        super().__init__(name, f"Inception v3, {levels} levels to [0, 255], {SIDE} x {SIDE} {resize}, pool 3")
        self.levels = levels
        self.of_fid = classes == _FID_CLASSES
        net = inception_v3(weights=None, num_classes=classes, aux_logits=False, init_weights=False)
        try:
            net.load_state_dict({key: value for key, value in state.items() if not key.startswith("AuxLogits.")})
        except RuntimeError as error:
            raise UserError("--features: the weights are not those of Inception v3 in torchvision's names") from error
        net.add_module("fc", nn.Identity())
        if self.of_fid:
            _pool_as_tensorflow(net)
        self.net = net.eval()

    def forward(self, images: UInt8[Tensor, " n c h w"]) -> Float[Tensor, " n d"]:
        """The features, shape (N, 2048).

        Raises:
            UserError: For images with neither one nor three channels.
        """
        if images.shape[1] not in (1, 3):
            raise UserError(f"features '{self.name}': found {images.shape[1]} channels; accepted: 1 or 3")
        x = (images.float() * (255.0 / (self.levels - 1))).expand(-1, 3, -1, -1)
        if self.of_fid:
            return self.net((_resize_tf1(x, SIDE) - 128.0) / 128.0)
        x = F.interpolate(x, (SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True)
        return self.net(x.clamp(0.0, 255.0) / 127.5 - 1.0)


def load_inception(path: str | Path, levels: int = 256) -> InceptionFeatures:
    """Read Inception's weights from a file of `torch.save`; nothing in it is run.

    Raises:
        UserError: For a file that is missing, damaged, would run code, or contains other weights.
    """
    path = named_path(path, "--features")
    if not path.is_file():
        raise UserError(f"--features: there is no file {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a pickle that will be refused
            state = torch.load(path, map_location="cpu", weights_only=True)
        state = {str(name): value for name, value in dict(state).items() if torch.is_tensor(value)}
    except Exception as error:  # for other files the parsers can raise almost any exception
        raise UserError(f"--features: {path} holds no plain weights, or is damaged") from error
    return InceptionFeatures(state, levels)


def torchvision_inception(levels: int = 256, download: bool = False) -> InceptionFeatures:
    """Inception of torchvision, from the weights in torch's hub folder ($TORCH_HOME).

    Args:
        levels: The number of values a channel can take.
        download: Download the weights if they are missing.

    Raises:
        UserError: If they are missing and may not, or cannot, be downloaded.
    """
    from torchvision.models import Inception_V3_Weights

    weights = Inception_V3_Weights.IMAGENET1K_V1
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if not path.is_file():
        if not download:
            raise UserError(
                f"--features: torchvision's Inception weights are not at {path}; give --download to fetch them, copy "
                "them there, or name other features: digits, mnist, or a file"
            )
        try:
            weights.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"--download: fetching {weights.url} failed ({reason})") from error
    return load_inception(path, levels)


def _pool_as_tensorflow(net: nn.Module) -> None:
    """Average pools that exclude the padding, and a maximum pool in the last block: only the last branch differs."""
    average = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
    pools = dict.fromkeys(("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b"), average)
    for name, pool in {**pools, "7c": partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)}.items():
        block = net.get_submodule(f"Mixed_{name}")
        # not a wrapper module, which would change the names of the weights
        object.__setattr__(block, "_forward", partial(_with_pool, block, block._forward, pool))


def _with_pool(block, branches, pool, x: Tensor) -> list[Tensor]:
    return [*branches(x)[:-1], block.branch_pool(pool(x))]


def _resize_tf1(x: Tensor, side: int) -> Tensor:
    """TensorFlow 1's bilinear resize: output i samples i * (size / side), clamped to the last row and column."""
    for dim in (2, 3):
        size = x.shape[dim]
        place = torch.arange(side, device=x.device, dtype=torch.float32) * (size / side)
        low = place.long().clamp(max=size - 1)
        high = (low + 1).clamp(max=size - 1)
        weight = (place - low).reshape((-1, 1) if dim == 2 else (-1,))
        x = torch.lerp(x.index_select(dim, low), x.index_select(dim, high), weight)
    return x
