"""Data to noise and back: closed forms, the round trip of every deterministic sampler, and the variance between."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from laws import F64, FIXED_STEP
from made_runs import make_run
from tiny_configs import digits_config, toy_config

import diffusion
from diffusion.commands.app import command, sample
from diffusion.data import pictures
from diffusion.denoisers.exact import Gaussian, GaussianMixture
from diffusion.errors import UserError
from diffusion.models.build import DataFacts
from diffusion.samplers import DDIM, ODE, Adams, Ancestral, ExponentialSDE, SASolver
from diffusion.sampling.encode import slerp
from diffusion.schedules import EDM, Cosine, Rectified

MODEL = Gaussian(torch.tensor([0.3, -0.2], dtype=F64), torch.tensor([0.5, 0.9], dtype=F64), Cosine())
BOTH_WAYS = [*FIXED_STEP, ODE(tolerance=1e-5), ExponentialSDE(eta=0.0), SASolver(eta=0.0)]


def rms(x):
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize("sampler", BOTH_WAYS, ids=str)
def test_gaussian_data_have_the_noise_of_the_closed_form_and_come_back(sampler):
    """The flow of N(m, c^2) is affine; an error of 60 steps is of the order of the solver, on both ways."""
    x = MODEL.draw(16, seed=1)
    x_1 = diffusion.encode(MODEL, x, sampler, steps=60)
    alpha, sigma = MODEL.schedule(torch.tensor(MODEL.schedule.t_max, dtype=F64))
    truth = alpha * MODEL.mean + torch.sqrt((alpha * MODEL.std) ** 2 + sigma**2) / MODEL.std * (x - MODEL.mean)
    allowed = 0.06 if sampler.order == 1 else 0.004
    assert rms(x_1 - truth) < allowed
    assert rms(diffusion.sample(MODEL, 16, sampler, steps=60, noise=x_1) - x) < allowed


@pytest.mark.parametrize("schedule", [EDM(), Rectified()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("grid", ["log-snr", [0.9, 0.6, 0.3, 0.1, 0.01]])
def test_any_grid_is_walked_back(schedule, grid):
    """Also one that does not end in clean data: its last time is then where encoding starts."""
    model = Gaussian(torch.zeros(2, dtype=F64), 0.7, schedule)
    options = {"sampler": ODE("rk4"), "grid": grid} | ({"steps": 20} if isinstance(grid, str) else {})
    x = model.draw(8, seed=2)
    back = diffusion.sample(model, 8, noise=diffusion.encode(model, x, **options), **options)
    assert rms(back - x) < 5e-3


def test_a_mixture_comes_back():
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=F64)
    model = GaussianMixture(means, torch.tensor([0.1, 0.2], dtype=F64), Cosine())
    x = model.draw(64, seed=3)
    for sampler, allowed in ((ODE(tolerance=1e-5), 3e-3), (Adams(), 2e-2)):
        x_1 = diffusion.encode(model, x, sampler, steps=50, batch_size=40)
        assert rms(diffusion.sample(model, 64, sampler, steps=50, noise=x_1) - x) < allowed
        assert abs(float(x_1.std()) - 1) < 0.15


def test_what_has_no_way_back_is_refused():
    x = MODEL.draw(2)
    for sampler in ("ancestral", Ancestral(), DDIM(1.0)):
        with pytest.raises(UserError, match=r"sampler: \w+ draws noise"):
            diffusion.encode(MODEL, x, sampler)
    with pytest.raises(UserError, match=r"x: found .*\(2, 3\); needs floats of shape \(n, 2\)"):
        diffusion.encode(MODEL, torch.zeros(2, 3))
    with pytest.raises(UserError, match="encode: found a str"):
        diffusion.encode("model", x)
    with pytest.raises(UserError, match="n: found 1"):
        diffusion.interpolate(MODEL, x[0], x[1], n=1)
    with pytest.raises(UserError, match="strength, log_snr: give one"):
        diffusion.edit(MODEL, x, strength=0.5, log_snr=0.0)


def test_the_arc_keeps_the_variance_and_meets_its_ends():
    a, b = torch.randn(2, 500, 64, dtype=F64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(slerp(a, b, 0.0), a)
    assert torch.allclose(slerp(a, b, 1.0), b)
    for u in (0.25, 0.5):
        assert abs(float(slerp(a, b, u).square().mean()) - 1) < 0.02
    assert abs(float(torch.lerp(a, b, 0.5).square().mean()) - 0.5) < 0.02, "what the arc is there to avoid"
    share = torch.linspace(0, 1, 500, dtype=F64)
    assert torch.allclose(slerp(a, b, share)[250:251], slerp(a[250:251], b[250:251], float(share[250])))


def test_the_arc_between_equals_is_a_point():
    a = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(slerp(a, a, 0.3), a, atol=1e-5)
    assert torch.allclose(slerp(a, 2.0 * a, 0.5), 1.5 * a, atol=1e-5)


ENDS = {
    "independent": lambda a, other: other,
    "opposite": lambda a, other: -a,
    "opposite but for rounding": lambda a, other: -a * (1 + 2 * torch.finfo(a.dtype).eps),
    "nearly opposite": lambda a, other: 1e-5 * other - a,
    "nearly opposite, and longer": lambda a, other: 1e-4 * other - 2 * a,
    "equal": lambda a, other: a,
    "nearly equal": lambda a, other: a + 1e-5 * other,
    "longer": lambda a, other: 3 * a,
    "zero": lambda a, other: 0 * a,
    "one far longer": lambda a, other: 1e6 * other,
}


@pytest.mark.parametrize("dims", [2, 3, 64, 3072])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("ends", ENDS)
def test_the_arc_is_as_long_as_its_ends_and_meets_them_to_the_bit(ends, dtype, dims):
    pairs, generator = 200 if dims < 64 else 10, torch.Generator().manual_seed(1)
    a, other = torch.randn(2, pairs, dims, dtype=F64, generator=generator).to(dtype)
    b = ENDS[ends](a, other)
    lengths = torch.stack((a, b)).double().norm(dim=2)
    low, high, rounding = lengths.amin(0), lengths.amax(0), 64 * torch.finfo(dtype).eps
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)
    for u in (1e-7, 0.1, 0.5, 0.8, 1 - 1e-7):
        x = slerp(a, b, u)
        assert x.dtype == dtype
        assert bool((x.double().norm(dim=1) <= high * (1 + rounding)).all())
        assert bool((x.double().norm(dim=1) >= low * (1 - rounding)).all())
        if "opposite" not in ends:  # of the many arcs between opposite ends, those there and back may be two
            torch.testing.assert_close(x, slerp(b, a, 1 - u), rtol=1e-4, atol=1e-5 * float(high.max()))


@pytest.mark.parametrize("dims", [2, 3, 64])
@pytest.mark.parametrize("ends", ["independent", "opposite", "nearly opposite"])
def test_what_lies_between_normals_has_their_variance(ends, dims):
    """Over 40,000 pairs; 42,711 was seen in the plane by the formula without care for opposite ends."""
    a, other = torch.randn(2, 40_000, dims, dtype=F64, generator=torch.Generator().manual_seed(2))
    for u in (0.2, 0.5, 0.7):
        between = slerp(a, ENDS[ends](a, other), u)
        assert abs(float(between.square().mean()) - 1) < 0.05
        assert float(between.mean(0).abs().max()) < 0.03


def test_the_arc_goes_on_evenly():
    """The angle from a grows with the share, also where the ends are opposite."""
    a, other = torch.randn(2, 50, 16, dtype=F64, generator=torch.Generator().manual_seed(3))
    for b in (other, -a, -a + 1e-6 * other):
        theta = torch.acos(torch.cosine_similarity(a, b).clamp(-1, 1))
        for u in (0.25, 0.5, 0.75):
            cos = torch.cosine_similarity(a, slerp(a, b, u))
            torch.testing.assert_close(cos, torch.cos(u * theta), rtol=1e-6, atol=1e-6)


def test_what_is_no_pair_of_ends_is_refused():
    a = torch.randn(3, 2)
    for b, u, message in (
        (a[:2], 0.5, r"a, b: found .*\(3, 2\) .*\(2, 2\); both need floats of one shape"),
        (a.long(), 0.5, "a, b: found .*int64"),
        (a, torch.zeros(2), r"u: found shape \(2,\); needs one number, or one for each of 3 rows"),
    ):
        with pytest.raises(UserError, match=message):
            slerp(a, b, u)


def test_between_data_whose_noises_are_opposite_lie_data():
    """Data that mirror each other about the mean, which a Gaussian's flow keeps."""
    model = Gaussian(torch.zeros(2, dtype=F64), 0.5, Cosine())
    x = model.draw(1, seed=7)[0]
    strip = diffusion.interpolate(model, x, -x, n=5, sampler="adams", steps=20)
    torch.testing.assert_close(strip.norm(dim=1), x.norm().expand(5), rtol=0.01, atol=0.0)


def test_interpolants_of_gaussian_data_have_the_data_s_variance():
    """The mean over many pairs: linear interpolation of the noises would have half the variance in the middle."""
    model = Gaussian(torch.zeros(64, dtype=F64), 0.5, Cosine())
    x = model.draw(40, seed=4)
    middles = torch.stack(
        [diffusion.interpolate(model, *pair, n=3, sampler=Adams(), steps=15)[1] for pair in x.split(2)]
    )
    assert abs(float(middles.std()) / 0.5 - 1) < 0.06
    ends = diffusion.interpolate(model, x[0], x[1], n=3, sampler=Adams(), steps=40)[[0, 2]]
    assert rms(ends - x[:2]) < 2e-3


def test_edits_go_as_far_as_their_strength():
    x = MODEL.draw(1, seed=5)[0]
    near, far = (diffusion.edit(MODEL, x, strength=s, n=200, sampler="ancestral", steps=40) for s in (0.05, 0.9))
    assert rms(near - x) < 0.15 < rms(far - x)
    assert abs(float((far.std(0) / MODEL.std).mean()) - 1) < 0.15, "far enough, they are samples"
    assert torch.equal(near[:1], diffusion.edit(MODEL, x, strength=0.05, sampler="ancestral", steps=40))
    data = MODEL.draw(3, seed=6)
    each = diffusion.edit(MODEL, data, log_snr=8.0, sampler="ddim", eta=0.5, steps=40)
    assert rms(each - data) < 0.1


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a run of digits and two images."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs", digits_config(tmp_path), DataFacts("digits", (1, 8, 8), 17, 10))
    for name, x in (("a", torch.linspace(-0.8, 0.8, 64)), ("b", torch.linspace(0.8, -0.8, 64))):
        x = pictures.to_bytes(x.reshape(1, 1, 8, 8))[0].numpy()
        pictures.save(Path(f"{name}.png"), pictures.from_bytes(x))


def run_sample(capsys, line):
    code = command(sample, [*line.split(), "--device", "cpu"])
    found = capsys.readouterr()
    return code, found.out, found.err


def test_images_are_encoded_on_the_command_line(here, capsys):
    code, out, err = run_sample(capsys, "--encode a.png b.png --sampler adams --steps 6 --out noise.npz")
    assert (code, err) == (0, "")
    assert "back again: off by " in out
    assert "2 images, sampler adams, NFE 6 there, 6 back, " in out
    with np.load("noise.npz") as arrays:
        noise, record = torch.from_numpy(arrays["noise"]), json.loads(str(arrays["record"]))
    assert noise.shape == (2, 1, 8, 8)
    assert record["settings"]["encode"] == ["a.png", "b.png"]
    assert math.isfinite(float(noise.sum()))


def test_a_strip_is_drawn_and_drawn_again_from_itself(here, capsys):
    line = "--interpolate a.png b.png --n 5 --sampler ddim --steps 4 --out strip.png"
    code, out, _ = run_sample(capsys, line)
    assert code == 0
    assert "5 pictures, sampler ddim, NFE 4 a path, " in out
    code, out, _ = run_sample(capsys, "--from strip.png")
    assert code == 0
    assert "the same pixels as strip.png" in out


def test_an_image_is_varied_and_the_picture_drawn_again(here, capsys):
    line = "--edit a.png --strength 0.4 --n 3 --sampler ancestral --steps 6 --out edits.png"
    code, out, err = run_sample(capsys, line)
    assert (code, err) == (0, "")
    assert "NFE 4" in out, "the level and the 3 of the 6 times below it"
    code, out, _ = run_sample(capsys, "--from edits.png")
    assert "the same pixels as edits.png" in out


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--strength 0.4", "--strength: needs --edit"),
        ("--edit a.png --strength 1", "error: --strength: found 1.0"),
        ("--interpolate a.png b.png --n 1", "error: --n: found 1"),
        ("--sampler heun --option s_churn=-1.5", "error: --option s_churn: found -1.5"),
        ("--dtype float16", "--dtype: "),
        ("--edit none.png", "--edit: none.png does not exist"),
        ("--edit a.png --inpaint a.png --mask b.png", "--edit: not with --inpaint"),
        ("--encode a.png --out x.png", "--encode writes x.npz"),
        ("--encode a.png --sampler ancestral", "draws noise"),
        ("--encode a.png --interpolate a.png b.png", "use only one of them"),
        ("--interpolate a.png b.png --out x.npz", "--interpolate writes x.png"),
        ("--interpolate a.png b.png --edit a.png", "--interpolate: not with --edit"),
    ],
)
def test_what_does_not_go_together_is_refused(here, capsys, line, says):
    code, _, err = run_sample(capsys, line)
    assert code == 2
    assert says in err


def test_points_have_no_images_to_encode(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs", toy_config(tmp_path), DataFacts("two-moons", (2,), None, 0))
    code, _, err = run_sample(capsys, "--encode a.png")
    assert code == 2
    assert "--encode: " in err
