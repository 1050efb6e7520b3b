"""A training run of a second: every batch is a function of the step, so that resuming has to be exact.

As a script, `python tiny_training.py FOLDER STEPS SECONDS_PER_STEP` trains and exits with the code of a graceful stop.
"""

import sys
import time
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from diffusion.training.callbacks import EMACallback
from diffusion.training.checkpoint_io import AtomicCheckpointIO, Checkpoints
from diffusion.training.gradient_guard import GradientGuard
from diffusion.training.logs.metrics import ContinueMetrics, MetricsLog
from diffusion.training.stopping import GracefulStop

# Lightning's own: it uses a deprecated class of PyTorch, and advises worker processes for data made on the fly.
LIGHTNING_WARNINGS = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(())


class TinyModule(L.LightningModule):
    """AdamW with momentum, weight decay and a schedule, and a BatchNorm: everything that has a state."""

    def __init__(self, bad_steps=(), seconds_per_step=0.0, validation_losses=None):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.bad_steps = set(bad_steps)
        self.seconds_per_step = seconds_per_step
        self.validation_losses = validation_losses or {}
        self.validated_at = []

    def training_step(self, batch, batch_idx):
        generator = torch.Generator().manual_seed(1000 * self.global_step + batch_idx % 10)
        loss = self.network(torch.randn(8, 3, generator=generator)).square().mean()
        if self.global_step in self.bad_steps:
            loss = loss * float("nan")
        time.sleep(self.seconds_per_step)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.validated_at.append(self.global_step)
        loss = self.validation_losses.get(self.global_step, float(self.network[0].weight.detach().sum()))
        self.log("validation/loss", loss, batch_size=1)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + 0.1 * step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Run:
    """A trainer with all parts wired, and handles on them."""

    def __init__(self, folder, steps, *, every=5, validate_every=None, accumulate=1, keep_last=1, patience=2):
        folder = Path(folder)
        self.log = MetricsLog(folder)
        self.ema = EMACallback(20.0, images_per_step=8 * accumulate, ramp_up=0.5, submodule="network")
        self.checkpoints = Checkpoints(folder / "checkpoints", every=every, keep_last=keep_last)
        self.guard = GradientGuard(clip=0.5, patience=patience, last_checkpoint=self.checkpoints.last)
        self.stop = GracefulStop()
        self.trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=steps,
            max_epochs=-1,
            logger=[self.log],
            callbacks=[ContinueMetrics(self.log), self.guard, self.ema, self.stop, self.checkpoints],
            plugins=[AtomicCheckpointIO()],
            accumulate_grad_batches=accumulate,
            val_check_interval=(validate_every or 10**6) * accumulate,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            limit_val_batches=1,
            log_every_n_steps=1,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )

    def fit(self, module, resume=None):
        self.module = module
        loader = DataLoader(Endless(), batch_size=None)
        with self.stop.caught():
            self.trainer.fit(module, loader, DataLoader([0.0], batch_size=1), ckpt_path=resume)
        return self


if __name__ == "__main__":
    run = Run(sys.argv[1], int(sys.argv[2]), every=1000)
    print("started", flush=True)
    run.fit(TinyModule(seconds_per_step=float(sys.argv[3])))
    sys.exit(run.stop.exit_code)
