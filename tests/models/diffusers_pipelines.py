"""Networks of the library diffusers with random weights, saved as its pipelines are; tests are skipped without it."""

import warnings

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("diffusers", reason="an optional extra")
    from diffusers import (
        DDIMPipeline,
        DDIMScheduler,
        DDPMPipeline,
        DDPMScheduler,
        DiTTransformer2DModel,
        UNet2DModel,
    )

PLAIN, ATTENTION = "DownBlock2D", "AttnDownBlock2D"


def network_of(options, seed=0):
    """A network of theirs with random weights, of every norm and bias, too, in evaluation mode."""
    torch.manual_seed(seed)
    down = options.get("down_block_types")
    up = {} if down is None else {"up_block_types": [kind.replace("Down", "Up") for kind in reversed(down)]}
    made = (DiTTransformer2DModel if "num_layers" in options else UNet2DModel)(**{**up, **options}).eval()
    for parameter in made.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    if "num_layers" in options and "patch_size" not in options:  # as published ones are, all blocks have the same
        first, *others = (block.norm1.emb for block in made.transformer_blocks)
        for other in others:
            other.load_state_dict(first.state_dict())
    return made


def save(folder, network, scheduler, **options):
    """As a pipeline of theirs is saved."""
    if isinstance(network, UNet2DModel) and isinstance(scheduler, DDIMScheduler | DDPMScheduler):
        kind = DDIMPipeline if isinstance(scheduler, DDIMScheduler) else DDPMPipeline
        kind(network, scheduler).save_pretrained(folder, **options)
    else:
        part = "unet" if isinstance(network, UNet2DModel) else "transformer"
        network.save_pretrained(folder / part, **options)
        scheduler.save_pretrained(folder / "scheduler")
