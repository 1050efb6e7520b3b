"""The average is its closed form, survives a checkpoint, and is never left in the module."""

import pytest
import torch
from tiny_training import LIGHTNING_WARNINGS, Run, TinyModule
from torch import nn

import diffusion
from diffusion.errors import UserError
from diffusion.training.ema import Average, decay

pytestmark = LIGHTNING_WARNINGS


def weights(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_after_a_half_life_of_images_half_of_the_start_is_left():
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(0.0)
        averages = Average(module, 100.0, ramp_up=None), Average(module, 200.0, ramp_up=None)
        module.weight.fill_(1.0)
    for _ in range(25):
        for average in averages:
            average.update(4)
    assert float(averages[0].weights()["weight"]) == pytest.approx(1 - 0.5**1, abs=1e-6)
    assert float(averages[1].weights()["weight"]) == pytest.approx(1 - 0.5**0.5, abs=1e-6)


@pytest.mark.parametrize("batch", [1, 5, 50])
def test_the_half_life_means_the_same_at_every_batch_size(batch):
    kept = 1.0
    for step in range(100 // batch):
        kept *= decay(batch, (step + 1) * batch, 30.0, None)
    assert kept == pytest.approx(0.5 ** (100 / 30))


@pytest.mark.parametrize("ramp_up", [None, 0.05, 0.5])
def test_the_average_is_the_weighted_sum_of_all_weights(ramp_up):
    torch.manual_seed(0)
    module = nn.Linear(3, 2).double()
    history = [module.weight.detach().clone()]
    average = Average(module, 40.0, ramp_up)
    factors = []
    for step in range(1, 31):
        with torch.no_grad():
            module.weight.normal_()
        history.append(module.weight.detach().clone())
        average.update(8)
        half_life = 40.0 if ramp_up is None else min(40.0, ramp_up * 8 * step)
        factors.append(2.0 ** (-8 / half_life))
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for index, value in enumerate(history):  # weight k enters with 1 - d_k and is then kept by all later factors
        share = 1.0 if index == 0 else 1.0 - factors[index - 1]
        for factor in factors[index:]:
            share *= factor
        expected += share * value
    assert torch.allclose(average.weights()["weight"], expected, rtol=1e-12, atol=1e-14)


def test_low_precision_weights_are_averaged_in_float32():
    module = nn.Linear(1, 1, bias=False).bfloat16()
    with torch.no_grad():
        module.weight.fill_(1.0)
        average = Average(module, 1000.0, ramp_up=None)
        module.weight.fill_(2.0)
    average.update(1)
    assert average.weights()["weight"].dtype == torch.float32
    assert float(average.weights()["weight"]) == pytest.approx(2.0 - 0.5**0.001, abs=1e-6)


def test_floating_buffers_are_averaged_and_integer_ones_copied():
    module = nn.BatchNorm1d(2)
    average = Average(module, 8.0, ramp_up=None)
    module(torch.tensor([[1.0, 2.0], [3.0, 8.0]]))
    average.update(8)
    assert torch.allclose(average.weights()["running_mean"], module.running_mean / 2)
    assert int(average.weights()["num_batches_tracked"]) == 1


def test_the_average_is_in_the_module_inside_the_block_only():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).bfloat16()
    average = Average(module, 10.0, ramp_up=None)
    with torch.no_grad():
        module[0].weight.add_(1.0)
    average.update(3)
    raw, pointer = weights(module), module[0].weight.data_ptr()
    with average.applied():
        assert torch.equal(module[0].weight, average.weights()["0.weight"].bfloat16())
        assert module[0].weight.data_ptr() == pointer
        assert not same(raw, weights(module))
    assert same(raw, weights(module))


def test_the_raw_weights_come_back_on_an_exception():
    module = nn.Linear(2, 2)
    average = Average(module, 10.0)
    with torch.no_grad():
        module.weight.add_(1.0)
    raw = weights(module)

    def fail():
        with average.applied():
            assert not same(raw, weights(module))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert same(raw, weights(module))


def test_a_restored_average_goes_on_with_its_counter():
    torch.manual_seed(0)
    module = nn.Linear(2, 2)
    one = Average(module, 1000.0, ramp_up=0.1)
    two = Average(module, 1000.0, ramp_up=0.1)
    for step in range(10):
        with torch.no_grad():
            module.weight.normal_()
        if step == 5:
            two.load_state_dict(one.state_dict())
        if step >= 5:
            two.update(8)
        one.update(8)
    assert one.images_seen == two.images_seen == 80
    assert same(one.weights(), two.weights())


def test_copy_to_leaves_the_average_in_a_module():
    module, other = nn.Linear(2, 2), nn.Linear(2, 2)
    average = Average(module, 10.0)
    start = weights(module)
    with torch.no_grad():
        module.weight.add_(1.0)
    average.copy_to(other)
    assert same(start, weights(other))
    assert not same(start, weights(module))
    average.copy_to()
    assert same(start, weights(module))


def test_where_images_are_not_told_half_lives_are_in_steps():
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(0.0)
        average = diffusion.ema.Average(module, half_life=10, ramp_up=None)
        module.weight.fill_(1.0)
    for _ in range(20):
        average.update()
    assert float(average.weights()["weight"]) == pytest.approx(0.75, abs=1e-6)


def test_another_setting_or_network_is_refused():
    state = Average(nn.Linear(2, 2), 10.0, 0.05).state_dict()
    with pytest.raises(UserError, match=r"ema\.half_life: \[20\.0\].*\[10\.0\]"):
        Average(nn.Linear(2, 2), 20.0, 0.05).load_state_dict(state)
    with pytest.raises(UserError, match=r"ema\.ramp_up"):
        Average(nn.Linear(2, 2), 10.0, None).load_state_dict(state)
    with pytest.raises(UserError, match="another network"):
        Average(nn.Linear(2, 3), 10.0, 0.05).load_state_dict(state)
    for half_life in (0.0, float("nan"), "10", None):
        with pytest.raises(UserError, match=r"ema\.half_life"):
            Average(nn.Linear(2, 2), half_life)
    with pytest.raises(UserError, match="module: found a OrderedDict"):
        Average(nn.Linear(2, 2).state_dict(), 10.0)
    average = Average(nn.Linear(2, 2), 10.0)
    for images in (0, -3, 2.5, None):
        with pytest.raises(UserError, match="images: found"):
            average.update(images)
    assert average.images_seen == 0
    for module in (nn.Linear(2, 3), nn.Sequential()):
        with pytest.raises(UserError, match="other names or shapes"):
            average.copy_to(module)


def test_the_callback_updates_once_per_optimiser_step_under_accumulation(tmp_path):
    module = TinyModule()
    run = Run(tmp_path, steps=6, accumulate=3).fit(module)
    assert run.trainer.global_step == 6
    assert run.ema.average.images_seen == 6 * 24


def test_validation_sees_the_average_and_checkpoints_hold_the_raw_weights(tmp_path):
    seen = {}

    class Watching(TinyModule):
        def validation_step(self, batch, batch_idx):
            seen.update(weights(self.network))
            super().validation_step(batch, batch_idx)

    module = Watching()
    run = Run(tmp_path, steps=4, validate_every=4).fit(module)
    assert same(seen, {name: tensor.to(seen[name].dtype) for name, tensor in run.ema.average.weights().items()})
    assert not same(seen, weights(module.network))
    for name in ("last.ckpt", "best.ckpt"):
        stored = torch.load(tmp_path / "checkpoints" / name, weights_only=True)
        assert same(stored["state_dict"], weights(module))
        assert same(stored["weight_average"]["averages"][0], run.ema.average.weights())


def test_an_exception_in_validation_leaves_the_raw_weights(tmp_path):
    kept = {}

    class Failing(TinyModule):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            kept.update(weights(self))

        def validation_step(self, batch, batch_idx):
            raise RuntimeError("fault in validation")

    module = Failing()
    with pytest.raises(RuntimeError, match="fault in validation"):
        Run(tmp_path, steps=4, validate_every=4).fit(module)
    assert same(kept, weights(module))
