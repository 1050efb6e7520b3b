"""The check of a model: it names what was said wrongly of a network, and has nothing to say of what is right."""

import pytest
import torch
from foreign_networks import CASES, HELD_OUT, LEVELS, LINEAR, SHAPE, Foreign, adopt, eps, images, table
from torch import nn

import diffusion
from diffusion.denoisers.exact import Gaussian
from diffusion.errors import UserError
from diffusion.models.adopt import AdoptedNote
from diffusion.models.check import best_end, check, data_of
from diffusion.schedules import DDPM, VP

# Mistakes of the kinds that DDPM, EDM and flow matching have, in other networks: the same lines of the check name them.
OTHERS = ("improved DDPM", "DDPM, levels from 1", "score_sde sub-VP", "Song's VE", "NCSN++", "rectified flow")
WRONG = [
    pytest.param(name, truth, marks=pytest.mark.slow if name in OTHERS else ())
    for name, case in CASES.items()
    for truth in case.wrong
]


@pytest.mark.parametrize("name", CASES)
def test_the_check_has_nothing_to_say_of_a_convention_adopted_rightly(name):
    found = adopt(CASES[name]).check(HELD_OUT, levels=6)
    assert found.passed, str(found)
    assert found.tried > 15
    assert "nothing wrong on 32 images" in str(found)


def test_the_check_has_nothing_to_say_of_an_exact_denoiser_whatever_the_images():
    """Their mean is that of few draws, which no x_hat near noise can know; a mean that is really off is still named."""
    model = Gaussian(torch.full(SHAPE, 0.2), 0.3, VP())
    for seed in range(30):
        data = 0.2 + 0.3 * torch.randn(32, *SHAPE, generator=torch.Generator().manual_seed(seed))
        found = check(model, data, levels=3)
        assert found.passed, f"{seed}: {found}"
    assert any("range of the data" in line for line in check(model, data + 0.1, levels=3).lines())


@pytest.mark.parametrize(("name", "truth"), WRONG)
def test_the_check_names_what_was_said_wrongly(name, truth):
    # a step of a thousand is seen on many numbers alone
    some, levels = (images(160), 12) if "index one" in truth else (HELD_OUT, 6)
    found = adopt(CASES[name], **CASES[name].wrong[truth]).check(some, levels=levels)
    assert any(truth in better for better in found.better), str(found)
    assert not found.passed
    assert sum("fits better" in line for line in found.lines()) == len(found.better)


def test_the_check_names_linear_betas_that_are_scaled_with_the_number_of_levels():
    """And all that has to be said of the path, the number of levels, too."""
    alphas_cumprod = torch.cumprod(1 - torch.linspace(2.5e-5, 0.005, 4000, dtype=torch.float64), 0)
    path = {"name": "ddpm", "steps": 4000}
    model = diffusion.adopt(Foreign(table(alphas_cumprod), eps), path, "eps", "index", SHAPE, levels=LEVELS)
    better = list(model.check(HELD_OUT, levels=6).better)
    fields = {"betas": "linear", "steps": 4000, "beta_start": 2.5e-5, "beta_end": 0.005}
    assert better[0] == f"path={ {'name': 'ddpm', **fields} }"
    told = diffusion.adopt(model.adopted.network.network, {**path, **fields}, "eps", "index", SHAPE, levels=LEVELS)
    names = [name for name, _ in told.adopted.convention.neighbours()]
    assert "path={'name': 'ddpm', 'betas': 'linear', 'steps': 4000}" in names
    assert better[0] not in names
    assert "path={'name': 'ddpm', 'betas': 'cosine', 'steps': 4000}" in names


def test_an_index_that_is_two_off_is_named_once():
    alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-3, 0.2, 100, dtype=torch.float64), 0)
    network = Foreign(table(alphas_cumprod, first=2), eps)
    model = diffusion.adopt(network, {"alphas_cumprod": alphas_cumprod}, "eps", "index", SHAPE, levels=LEVELS)
    assert list(model.check(HELD_OUT, levels=6).better) == ["an index 2 higher"]


def test_what_does_not_fit_a_network_is_not_counted_as_tried():
    """Nor does a better path that lacks some levels, as here, lead the next round beyond its ends."""

    def network(x, time):
        if not 0.0 <= float(time.min()) <= float(time.max()) <= 1.0:
            raise ValueError("not trained for that")
        return x

    model = diffusion.adopt(network, "flow", "velocity", "t", (2,))
    convention = model.adopted.convention
    data = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    found = model.check(data, levels=4)
    assert "path=" in next(iter(found.better))
    assert 0 < found.tried < len(list(convention.neighbours())) - 3


class Ended(nn.Module):
    """Right up to a log-SNR, and then an answer of the wrong size, as of a network that was not trained there."""

    def __init__(self, network, index):
        super().__init__()
        self.network, self.index = network, index

    def forward(self, x, time):
        answer = self.network(x, time)
        return torch.where((time < self.index)[:, None, None, None], 3.0 + answer, answer)


def test_a_network_that_is_useless_at_the_data_end_is_said_and_ended(capsys):
    case = CASES["DDPM"]
    said = {**case.said, "shape": SHAPE, "levels": LEVELS}
    network = Ended(case.network, 30)
    edge = float(DDPM().log_snr(torch.tensor(31 / 1000, dtype=torch.float64)))
    whole = diffusion.adopt(network, **said)
    with pytest.warns(AdoptedNote, match=r"the noise estimate is worse than predicting zero.*log_snr_max='best'"):
        bad = diffusion.log_likelihood(whole, HELD_OUT, method="elbo", evaluations=16)
    found = whole.check(HELD_OUT, levels=12)
    assert any("is worse than predicting zero" in line and "'best'" in line for line in found.lines())
    model = diffusion.adopt(network, **said, log_snr_max="best", images=HELD_OUT)
    assert "is best on 32 images" in capsys.readouterr().out
    high = float(model.denoiser.schedule.log_snr(torch.tensor(model.denoiser.schedule.t_min).double()))
    assert edge - 0.7 < high < edge + 0.1
    good = diffusion.log_likelihood(model, HELD_OUT, method="elbo", evaluations=16)
    assert good.mean().mean < bad.mean().mean - 1.0
    # the exact network is best to the end of its path
    right = adopt(case)
    assert best_end(right.denoiser, data_of(HELD_OUT, right.dequantizer, SHAPE)) > 8.5


def test_a_check_of_images_that_do_not_fit():
    model = adopt(CASES["DDPM"])
    with pytest.raises(UserError, match=r"images: found shape"):
        model.check(torch.zeros(3, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"images: found 1 at"):
        model.check(HELD_OUT[:1])


class Classes(nn.Module):
    """The right eps for the label that a sample has, 0 or 1: the value of all its pixels."""

    def forward(self, x, time, labels):
        a = LINEAR[time].reshape(-1, 1)
        return (x - a.sqrt() * (labels[:, None] - 0.5)) / (1 - a).sqrt()


def test_a_network_that_needs_a_label_is_checked_on_labelled_images(capsys):
    labels = [0, 1] * 8
    x = torch.tensor(labels)[:, None].expand(16, 3) - 0.5 + 1e-3 * torch.randn(16, 3)
    said = {"path": "ddpm", "predicts": "eps", "time": "index-rounded", "shape": (3,), "labels": 2}
    model = diffusion.adopt(Classes(), **said, images=x, cond=labels, log_snr_max="best")
    printed = capsys.readouterr().out
    assert "is best on 16 images" in printed
    assert "eps error" in printed
    assert max(level.error for level in model.check(x, cond=labels, levels=4).levels) < 0.1
    found = diffusion.log_density(model, x, cond=labels, method="elbo", evaluations=4)
    assert len(found.log_prob) == 16
    some = diffusion.adopt(Classes(), **said, levels=4)
    assert len(some.log_likelihood(torch.ones(2, 3).byte(), cond=[0, 1], method="elbo", evaluations=4).log_prob) == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"levels": "4"}, r"levels: found '4'; must be a whole number"),
        ({"levels": 3.0}, r"levels: found 3\.0; must be a whole number"),
        ({"levels": 1}, r"images: found 32 at 1 noise levels"),
        ({"seed": 0.5}, r"seed: found 0\.5"),
        ({"cond": [0, 1]}, r"cond: found 2 labels for 32 samples"),
        ({"cond": [3] * 32}, r"cond: found 3; the model has the classes 0 to 2"),
    ],
)
def test_what_a_check_refuses(options, told):
    with pytest.raises(UserError, match=told):
        adopt(CASES["DDPM"], labels=3).check(HELD_OUT, **{"cond": 0, **options})


def test_the_check_of_a_model_of_our_own_and_of_one_that_is_not_trained():
    model = diffusion.load("pretrained:digits")
    test = diffusion.data.load_images("digits").test[:24]
    found = model.check(test, levels=6)
    assert found.passed, str(found)
    assert found.tried == 0
    last = next(value for name, value in model.module.named_parameters() if value.ndim == 4 and value.shape[0] <= 17)
    with torch.no_grad():
        last.normal_()
    assert not model.check(test, levels=6).passed
