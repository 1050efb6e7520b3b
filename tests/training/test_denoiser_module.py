"""The step of training: its gradient does not depend on how the batch is cut, nor its draws on any state."""

import math

import pytest
import torch
from tiny_configs import digits_config, toy_config

from diffusion.config import OptimizerConfig
from diffusion.data import load_toy
from diffusion.errors import UserError
from diffusion.models.build import Data, DataFacts, build_denoiser, build_dequantizer, build_objective
from diffusion.schedules.schedule import log_snr_ends
from diffusion.training.data_module import TrainingBatches, ValidationBatches
from diffusion.training.modules.denoiser import VALIDATION_BINS, VALIDATION_DRAWS, DenoiserModule
from diffusion.training.optimizers import learning_rate_factor

MOONS = Data(DataFacts("gaussians", (2,), None, 0), toy=load_toy("gaussians"))
FACTS = DataFacts("digits", (1, 8, 8), 17, 10)


def make_module(config, facts=MOONS.facts):
    torch.manual_seed(0)
    denoiser = build_denoiser(config, facts)
    with torch.no_grad():  # networks start at zero: the loss would not depend on anything
        for parameter in denoiser.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    module = DenoiserModule(denoiser, build_objective(config, denoiser), config, build_dequantizer(facts), {})
    module.is_logged = lambda: False  # there is no trainer
    return module


def gradient(module, parts) -> list[torch.Tensor]:
    """The gradient that Lightning accumulates: each part's loss divided by the number of parts."""
    module.zero_grad()
    for part in parts:
        (module.training_step(part, 0) / len(parts)).backward()
    return [parameter.grad.clone() for parameter in module.denoiser.parameters()]


@pytest.mark.parametrize("stratified", ["true", "false"])
@pytest.mark.parametrize(("accumulate", "world_size"), [(2, 1), (1, 2), (2, 2)])
def test_the_gradient_is_the_same_however_the_batch_is_cut(tmp_path, accumulate, world_size, stratified):
    settings = ("trainer.batch_size=16", f"objective.stratified={stratified}")
    whole = toy_config(tmp_path, *settings)
    expected = gradient(make_module(whole), [TrainingBatches(MOONS, whole).part(3)])
    config = toy_config(tmp_path, *settings, f"trainer.accumulate={accumulate}")
    parts = [
        TrainingBatches(MOONS, config, 0, rank, world_size).part(3 * accumulate + micro)
        for rank in range(world_size)
        for micro in range(accumulate)
    ]
    found = gradient(make_module(config), parts)
    assert max(float(value.abs().max()) for value in expected) > 1e-2
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6, rtol=1e-5)


def test_a_step_draws_nothing_from_a_state(tmp_path):
    """Dropout and all: whatever was drawn before, step 5 is step 5; and step 6 is another."""
    config = toy_config(tmp_path, "network.dropout=0.5", "trainer.accumulate=2")
    module = make_module(config).train()
    batches = TrainingBatches(MOONS, config)
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        losses.append([float(module.training_step(batches.part(k), k).detach()) for k in (10, 11, 12)])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 3
    masks = []
    for part in (0, 1):
        batch = batches.part(0)
        module.training_step({**batch, "slice": part}, 0)
        masks.append(torch.rand(4))  # where the generator of dropout is
    assert not torch.equal(*masks), "the parts of a batch have masks of their own"


def test_labels_are_hidden_one_by_one_at_the_given_rate(tmp_path):
    module = make_module(digits_config(tmp_path, "denoiser.conditional=true"), FACTS)
    n = 20_000
    batch = {"labels": torch.arange(n) % 10, "positions": torch.arange(n)}

    def hidden(batch, step, dropout):
        return module.labels(batch["labels"], step, batch["positions"], dropout)

    labels = hidden(batch, 4, 0.1)
    null = labels == 10
    assert abs(float(null.float().mean()) - 0.1) < 3 * math.sqrt(0.09 / n)
    assert torch.equal(labels[~null], batch["labels"][~null])
    assert torch.equal(hidden(batch, 4, 0.1), labels)
    assert not torch.equal(hidden(batch, 5, 0.1), labels)
    assert torch.equal(hidden(batch, 4, 0.0), batch["labels"])
    assert bool((hidden(batch, 4, 1.0) == 10).all())
    part = {name: value[100:200] for name, value in batch.items()}
    assert torch.equal(hidden(part, 4, 0.1), labels[100:200]), "by position in the global batch"
    assert make_module(digits_config(tmp_path), FACTS).labels(None, 4, batch["positions"], 0.1) is None


def test_what_the_denoiser_learns_are_levels_spread_over_their_bins(tmp_path):
    x, positions = torch.arange(17, dtype=torch.uint8).reshape(17, 1, 1, 1).expand(-1, 1, 8, 8), torch.arange(17)
    centre = (2 * x.double() + 1) / 17 - 1
    module = make_module(digits_config(tmp_path), FACTS)
    spread = module.clean(x, 0, 3, positions).double()
    assert float((spread - centre).abs().max()) <= 1 / 17 + 1e-6
    assert float((spread - centre).std()) == pytest.approx(2 / 17 / math.sqrt(12), rel=0.05)
    module = make_module(digits_config(tmp_path, "objective.dequantize=false"), FACTS)
    assert torch.equal(module.clean(x, 0, 3, positions), module.clean(x, 1, 4, positions))
    points = torch.randn(4, 2)
    assert make_module(toy_config(tmp_path)).clean(points, 0, 0, positions[:4]) is points


def validate(module, batches) -> torch.Tensor:
    module.eval()
    module.on_validation_epoch_start()
    with torch.no_grad():
        for i in range(len(batches)):
            module.validation_step(batches[i], i)
    return module._sums.clone()


def test_validation_has_fixed_times_and_noises(tmp_path):
    """The same value at each call, for every seed of the run, and however the data are batched or shared."""
    module = make_module(toy_config(tmp_path))
    first = validate(module, ValidationBatches(MOONS, 500))
    torch.manual_seed(7)
    assert torch.equal(validate(module, ValidationBatches(MOONS, 500)), first)
    other = make_module(toy_config(tmp_path, "seed=5"))
    assert torch.equal(validate(other, ValidationBatches(MOONS, 500)), first)
    shared = sum(validate(module, ValidationBatches(MOONS, 77, rank, 3)) for rank in range(3))
    assert torch.allclose(shared, first, rtol=1e-5)
    with torch.no_grad():
        next(module.denoiser.parameters()).add_(0.1)
    assert not torch.equal(validate(module, ValidationBatches(MOONS, 500)), first)


def test_validation_spreads_the_times_over_the_path(tmp_path):
    """Uniform in log-SNR, every bin gets its share; the bins' errors add up to the elbo-weighted loss."""
    module = make_module(toy_config(tmp_path, "objective.weighting=elbo", "objective.time=log-snr"))
    sums = validate(module, ValidationBatches(MOONS, 512))
    errors, counts = sums[2:].chunk(2)
    draws = 2048 * VALIDATION_DRAWS
    assert float(counts.sum()) == draws
    assert float(counts.max() - counts.min()) <= 0.02 * draws / VALIDATION_BINS
    assert float(sums[1]) == draws
    low, high = log_snr_ends(module.denoiser.schedule)
    assert high > low
    assert float(sums[0]) == pytest.approx(float(errors.sum()), rel=1e-3)


@pytest.mark.parametrize("decay", ["constant", "cosine"])
def test_the_learning_rate_rises_linearly_and_falls_as_half_a_cosine(decay):
    options = OptimizerConfig(warmup=10, decay=decay)
    factors = [learning_rate_factor(step, options, 100) for step in range(101)]
    assert 0 < factors[0] <= 0.1
    fall = [1.0 if decay == "constant" else math.cos(math.pi * step / 200) ** 2 for step in range(101)]
    assert factors == pytest.approx([min(1, (step + 1) / 10) * f for step, f in enumerate(fall)])
    assert learning_rate_factor(0, OptimizerConfig(warmup=0), 100) == 1.0


def test_the_optimizer_holds_every_weight_once_with_the_configured_settings(tmp_path):
    module = make_module(toy_config(tmp_path, "optimizer.betas=[0.8, 0.95]", "optimizer.weight_decay=0.1"))
    made = module.configure_optimizers()
    (group,) = made["optimizer"].param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in module.denoiser.parameters()}
    assert (group["betas"], group["weight_decay"]) == ((0.8, 0.95), 0.1)
    assert group["lr"] == pytest.approx(1e-3 * 0.5), "the first step of a warmup of two"
    assert made["lr_scheduler"]["interval"] == "step"


def test_times_that_are_not_on_the_path_are_refused_before_there_is_a_run(tmp_path):
    config = toy_config(tmp_path, "objective.time=log-normal", "objective.time_mean=1e9")
    with pytest.raises(UserError, match=r"objective\.time_mean: found 1e\+09"):
        make_module(config)
