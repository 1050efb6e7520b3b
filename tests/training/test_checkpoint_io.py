"""A checkpoint is whole, checked, harmless and finite; a run that continues from one is the same run."""

import os
import pickle
import random

import pytest
import torch
from tiny_training import LIGHTNING_WARNINGS, Run, TinyModule

from diffusion.errors import UserError
from diffusion.training.checkpoint_io import AtomicCheckpointIO, Checkpoints, read_checkpoint

pytestmark = LIGHTNING_WARNINGS


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    content = {"state_dict": {"w": torch.randn(20, 20)}, "global_step": 3, "optimizer_states": [{"m": torch.ones(3)}]}
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(content, path)
    return path, content


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_a_checkpoint_is_read_back_as_it_was(checkpoint):
    path, content = checkpoint
    assert equal(AtomicCheckpointIO().load_checkpoint(path, weights_only=False), content)
    AtomicCheckpointIO().remove_checkpoint(path)
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("flips", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_no_flipped_bit_changes_what_is_loaded(checkpoint, flips):
    path, content = checkpoint
    good = path.read_bytes()
    draw, caught = random.Random(0), 0
    for _ in range(flips):
        bad = bytearray(good)
        position, bit = draw.randrange(len(good)), draw.randrange(8)
        bad[position] ^= 1 << bit
        path.write_bytes(bytes(bad))
        try:
            loaded = read_checkpoint(path)
        except UserError:
            caught += 1
        else:  # a bit of padding or of a time stamp
            assert equal(loaded, content), f"bit {bit} of byte {position} changed the checkpoint in silence"
    assert caught > flips // 4


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_checkpoint_is_refused(checkpoint, share):
    path, _ = checkpoint
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match="cut short or corrupt"):
        read_checkpoint(path)


class Hostile:
    def __reduce__(self):
        return os.mkdir, (os.environ["HOSTILE_FOLDER"],)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_checkpoint_cannot_run_code(tmp_path, monkeypatch, save):
    monkeypatch.setenv("HOSTILE_FOLDER", str(tmp_path / "executed"))
    save({"state_dict": Hostile()}, tmp_path / "hostile.ckpt")
    with pytest.raises(UserError, match=r"hostile\.ckpt"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "hostile.ckpt", weights_only=False)
    assert not (tmp_path / "executed").exists()


def test_missing_and_foreign_files_are_explained(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "absent.ckpt")
    torch.save(torch.zeros(3), tmp_path / "tensor.ckpt")
    with pytest.raises(UserError, match="holds a Tensor"):
        read_checkpoint(tmp_path / "tensor.ckpt")


@pytest.mark.parametrize("key", ["state_dict", "weight_average", "optimizer_states"])
def test_weights_that_are_not_finite_leave_the_former_checkpoint(checkpoint, key):
    path, content = checkpoint
    with pytest.raises(UserError, match=rf"{key}.*not finite at step 3"):
        AtomicCheckpointIO().save_checkpoint({**content, key: {"a": [torch.tensor([0.0, torch.inf])]}}, path)
    assert equal(read_checkpoint(path), content)


def curve(run):
    return run.log.path.read_text()


@pytest.mark.parametrize(
    ("cut", "every", "validate_every", "accumulate"), [(5, 5, None, 1), (6, 3, 3, 1), (4, 2, 3, 2)]
)
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(tmp_path, cut, every, validate_every, accumulate):
    options = {"every": every, "validate_every": validate_every, "accumulate": accumulate}
    whole = Run(tmp_path / "whole", 12, **options).fit(TinyModule())

    class Killed(TinyModule):
        def on_train_batch_start(self, batch, batch_idx):
            if self.global_step == cut + 1 and cut % every == 0:
                raise SystemError("as if killed, a step after the checkpoint")

    with pytest.raises(SystemError):
        Run(tmp_path / "cut", 12, **options).fit(Killed())
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    assert read_checkpoint(last)["global_step"] == cut
    resumed = Run(tmp_path / "cut", 12, **options).fit(TinyModule(), resume=last)
    assert resumed.trainer.global_step == 12
    one, two = (read_checkpoint(run.checkpoints.last) for run in (whole, resumed))
    for key in ("state_dict", "weight_average", "optimizer_states", "lr_schedulers", "global_step", "callbacks"):
        assert equal(one[key], two[key]), key
    assert curve(whole) == curve(resumed)


def test_a_run_resumed_from_its_best_checkpoint_is_the_same_run(tmp_path):
    losses = {3: 1.0, 6: 5.0, 9: 3.0}
    whole = Run(tmp_path, 9, every=100, validate_every=3).fit(TinyModule(validation_losses=losses))
    before, text = read_checkpoint(whole.checkpoints.last), curve(whole)
    best = tmp_path / "checkpoints" / "best.ckpt"
    assert read_checkpoint(best)["global_step"] == 3
    again = TinyModule(validation_losses=losses)
    Run(tmp_path, 9, every=100, validate_every=3).fit(again, resume=best)
    assert again.validated_at == [6, 9]
    assert equal(read_checkpoint(whole.checkpoints.last), before)
    assert curve(whole) == text


def test_the_end_is_saved_though_it_is_no_multiple_of_the_interval(tmp_path):
    run = Run(tmp_path, 8, every=5).fit(TinyModule())
    assert read_checkpoint(run.checkpoints.last)["global_step"] == 8


def test_a_finished_run_can_be_made_longer(tmp_path):
    whole = Run(tmp_path / "whole", 9).fit(TinyModule())
    short = Run(tmp_path / "short", 6).fit(TinyModule())
    longer = Run(tmp_path / "short", 9).fit(TinyModule(), resume=short.checkpoints.last)
    one, two = (read_checkpoint(run.checkpoints.last) for run in (whole, longer))
    assert equal(one["state_dict"], two["state_dict"])
    assert equal(one["optimizer_states"], two["optimizer_states"])


def test_best_is_the_lowest_validation_loss_and_survives_a_resume(tmp_path):
    losses = {2: 4.0, 4: 2.0, 6: 3.0, 8: float("nan")}
    run = Run(tmp_path, 4, every=2, validate_every=2).fit(TinyModule(validation_losses=losses))
    resumed = Run(tmp_path, 8, every=2, validate_every=2)
    resumed.fit(TinyModule(validation_losses=losses), resume=run.checkpoints.last)
    best = read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")
    assert best["global_step"] == 4
    assert resumed.checkpoints.best_score == 2.0


def test_the_latest_checkpoints_are_kept_and_remnants_swept(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / ".last.ckpt.0a1b2c3d.tmp").write_bytes(b"half")
    Run(tmp_path, 8, every=2, keep_last=2).fit(TinyModule())
    assert sorted(os.listdir(folder)) == ["last.ckpt", "step-00000006.ckpt", "step-00000008.ckpt"]
    assert read_checkpoint(folder / "step-00000006.ckpt")["global_step"] == 6


def test_diverged_weights_end_the_run_and_leave_the_last_good_checkpoint(tmp_path):
    class Diverging(TinyModule):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if self.global_step == 6:
                self.network[0].weight.data[0, 0] = float("nan")

    run = Run(tmp_path, 8, every=2, patience=100)
    with pytest.raises(UserError, match="not finite at step"):
        run.fit(Diverging())
    assert read_checkpoint(run.checkpoints.last)["global_step"] == 6


@pytest.mark.parametrize("wrong", [{"every": 0}, {"every": 1, "keep_last": 0}])
def test_intervals_below_one_are_refused(tmp_path, wrong):
    with pytest.raises(UserError, match="at least 1"):
        Checkpoints(tmp_path, **wrong)
