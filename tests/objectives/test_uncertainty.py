"""A learned weighting: what it converges to is known for Gaussians, and the loss of a run is made with it."""

import math
from pathlib import Path

import pytest
import torch
from tiny_configs import digits_config, toy_config

import diffusion
from diffusion.denoisers import exact
from diffusion.errors import UserError
from diffusion.models.build import build_data, build_objective
from diffusion.objectives import Objective, Uncertainty, time_distribution
from diffusion.schedules import Cosine
from diffusion.storage.checkpoint_files import read_checkpoint
from diffusion.training.modules.build import build_module


@pytest.mark.parametrize("times", ["log-snr", "log-normal"])
def test_it_becomes_the_logarithm_of_the_error_of_a_gaussian(times):
    """u = log sigmoid(lambda + log c^2), wherever times are drawn, and whatever their distribution."""
    torch.manual_seed(0)
    path, std = Cosine(log_snr_min=-8.0, log_snr_max=8.0), 0.7
    model = exact.Gaussian(torch.zeros(64), torch.tensor(std), path)
    learned = Uncertainty()
    objective = Objective(learned, time_distribution(times, *(() if times == "log-snr" else (0.0, 1.0))))
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.03)
    generator = torch.Generator().manual_seed(0)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / 400)
        x = std * torch.randn(256, 64, generator=generator)
        optimizer.zero_grad()
        objective(model, x, generator=generator).mean().backward()
        optimizer.step()
    log_snr = torch.linspace(-6, 6, 25) if times == "log-snr" else torch.linspace(-3, 3, 13)
    expected = torch.nn.functional.logsigmoid(log_snr + 2 * math.log(std))
    with torch.no_grad():
        assert float((learned(log_snr) - expected).abs().max()) < 0.12
        assert float((learned(log_snr) - expected).abs().mean()) < 0.04


@pytest.mark.quick
def test_the_loss_and_its_gradients_are_the_formula():
    torch.manual_seed(0)
    learned = Uncertainty()
    log_snr = torch.linspace(-3, 3, 7)
    assert torch.equal(learned(log_snr), torch.zeros(7))  # the plain error, to begin with
    with torch.no_grad():
        learned.linear.weight.normal_()
    u, error = learned(log_snr), torch.rand(7, requires_grad=True)
    loss = learned.loss(log_snr, error)
    torch.testing.assert_close(loss, error / u.exp() + u)
    loss.sum().backward()
    torch.testing.assert_close(error.grad, (-u).exp())
    of_x = Uncertainty(of_x=True)  # of x_hat, whose error is exp(-lambda) times that of eps_hat
    torch.testing.assert_close(of_x.loss(log_snr, error.detach()), error.detach() * (-log_snr).exp())


def test_a_run_trains_it_and_keeps_it_out_of_the_model(tmp_path):
    config = toy_config(tmp_path, "objective.weighting=learned")
    model = diffusion.train(config, resume="never")
    run = Path(model.source).parent
    assert not [name for name in model.module.state_dict() if "uncertainty" in name]
    state = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert float(state["uncertainty.linear.weight"].abs().max()) > 0.0
    module = build_module(config, build_data(config).facts, {})
    names = {id(parameter) for parameter in module.trained.parameters()}
    assert names == {id(parameter) for parameter in module.parameters()}


@pytest.mark.quick
def test_what_does_not_go_with_it_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"objective\.weighting: found 'learned'; schedule\.name 'learned' takes elbo"):
        digits_config(tmp_path, "objective.weighting=learned", "schedule.name=learned")
    config = toy_config(tmp_path, "objective.weighting=learned", "objective.time=log-normal")
    module = build_module(config, build_data(config).facts, {})
    assert isinstance(build_objective(config, module.denoiser).weighting, Uncertainty)
