"""A step with a gradient that is not finite leaves no trace but a count; too many end the run."""

import pytest
import torch
from tiny_training import LIGHTNING_WARNINGS, Run, TinyModule

from diffusion.errors import UserError
from diffusion.training.gradient_guard import GradientGuard, TrainingDivergedError
from diffusion.training.logs.metrics import read_metrics

pytestmark = LIGHTNING_WARNINGS


class Recording(TinyModule):
    """Keeps weights and optimiser state after every step, and the gradients that the optimiser received."""

    def __init__(self, optimizer="adamw", **options):
        super().__init__(**options)
        self.optimizer_name = optimizer
        self.history = []

    def configure_optimizers(self):
        if self.optimizer_name == "sgd":
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        fused = self.optimizer_name == "fused"
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1, fused=fused)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        optimizer = self.trainer.optimizers[0]
        tensors = list(self.parameters())
        for parameter in self.parameters():
            tensors += [v for v in optimizer.state[parameter].values() if isinstance(v, torch.Tensor)]
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else None
        self.history.append(([tensor.detach().clone() for tensor in tensors], norm))


@pytest.mark.parametrize("optimizer", ["adamw", "fused", "sgd"])
def test_a_dropped_step_changes_neither_weights_nor_optimiser(tmp_path, optimizer):
    module = Recording(optimizer, bad_steps={3})
    run = Run(tmp_path, 6).fit(module)
    states = [tensors for tensors, _ in module.history]
    assert all(torch.equal(a, b) for a, b in zip(states[2], states[3], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(states[3], states[4], strict=True))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in states[-1])
    assert run.guard.dropped == 1


def test_the_norm_and_the_count_are_logged(tmp_path):
    run = Run(tmp_path, 4).fit(TinyModule(bad_steps={2}))
    rows = [row for row in read_metrics(run.log.path) if "train/loss" in row]
    assert [row["train/dropped_steps"] for row in rows] == [0, 0, 1, 1]
    norms = [row["train/grad_norm"] for row in rows]
    assert norms[2] != norms[2]
    assert all(norms[i] > 0 for i in (0, 1, 3))


def test_clipping_bounds_the_norm_and_keeps_the_direction(tmp_path):
    module = Recording()
    run = Run(tmp_path, 3)
    run.guard.clip = 1e-3
    run.fit(module)
    for row, (_, clipped) in zip(read_metrics(run.log.path), module.history, strict=True):
        assert row["train/grad_norm"] > 1e-2
        assert clipped == pytest.approx(1e-3, rel=1e-3)


def test_a_small_gradient_is_left_alone(tmp_path):
    module = Recording()
    run = Run(tmp_path, 3)
    run.guard.clip = 1e6
    run.fit(module)
    for row, (_, norm) in zip(read_metrics(run.log.path), module.history, strict=True):
        assert row["train/grad_norm"] == pytest.approx(norm)


def test_too_many_in_a_row_end_the_run_with_the_last_good_checkpoint(tmp_path):
    module = TinyModule(bad_steps={1, 4, 5, 6, 7})
    run = Run(tmp_path, 20, every=2, patience=2)
    with pytest.raises(TrainingDivergedError, match=r"3 steps in a row, up to step 6\. .*last\.ckpt"):
        run.fit(module)
    assert run.guard.dropped == 4
    assert all(bool(torch.isfinite(p).all()) for p in module.parameters())


def test_without_a_checkpoint_the_message_says_so(tmp_path):
    with pytest.raises(TrainingDivergedError, match="No checkpoint had been written"):
        Run(tmp_path, 20, every=100).fit(TinyModule(bad_steps=range(20)))


def test_isolated_bad_steps_are_no_reason_to_stop(tmp_path):
    run = Run(tmp_path, 12, patience=1).fit(TinyModule(bad_steps=range(0, 12, 2)))
    assert run.trainer.global_step == 12
    assert run.guard.dropped == 6


def test_the_counts_survive_a_resume(tmp_path):
    run = Run(tmp_path, 4).fit(TinyModule(bad_steps={1, 3}))
    resumed = Run(tmp_path, 6).fit(TinyModule(bad_steps={5}), resume=run.checkpoints.last)
    assert resumed.guard.dropped == 3


def test_a_clip_that_is_not_positive_is_refused():
    with pytest.raises(UserError, match="gradient_clip"):
        GradientGuard(clip=0.0)
