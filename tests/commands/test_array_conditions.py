"""Functions of arrays as conditions: means of blocks, masks and luma of signals, images and volumes of real numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conditional_runs import QUICK, N, measured_alike, run, sampled, trained
from tiny_configs import TOY

from diffusion.commands.evaluate.given import given_to
from diffusion.commands.sample.record import SampleRecord
from diffusion.commands.subjects import images_of, load_data_of, load_subject
from diffusion.config import load_config
from diffusion.errors import UserError
from diffusion.models import conditions
from diffusion.models.build import build_data
from diffusion.models.conditions import Conditions, rectangles
from diffusion.models.load import load
from diffusion.networks.parts import PartEmbedding

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
OFFSET, SCALE = 5e4, 100.0
SETTINGS = (
    *(option for option in TOY if not option.startswith("network.")), "data.name=array", "data.path=x.npy", "name=a",
    "network.base_channels=4", "network.multipliers=[1]", "network.blocks=1", "network.attention=[]",
    "sampling.sampler=ddim", "evaluation.enabled=false", "trainer.steps=2", "optimizer.decay=constant",
)  # fmt: skip


def saved(*shape):
    x = OFFSET + SCALE * np.random.default_rng(0).normal(size=(N, *shape))
    np.save("x.npy", x)
    return x


def settings(*parts):
    return ["--config", "ar1", *SETTINGS, f"denoiser.condition=[{','.join(parts)}]"]


@pytest.mark.parametrize("shape", [(2, 8), (3, 4, 8), (1, 4, 2, 4)])
def test_they_are_of_the_rows_in_their_units_and_scaled_by_the_training_part(here, shape):
    saved(*shape)
    names = ["downsample:2", "mask", *(["grey"] if len(shape) == 3 else [])]
    data = build_data(load_config("ar1", settings(*names)[2:]))
    rows = torch.arange(4)
    x = data.array.train[rows]
    small, field, *grey = Conditions(data.facts.parts, data.array).of("train", rows, x, 1, rows, 2)
    blocks = x
    for axis in range(2, x.ndim):
        blocks = blocks.unflatten(axis, (-1, 2)).mean(axis + 1)
    torch.testing.assert_close(small, blocks, rtol=1e-12, atol=0)
    known = rectangles(shape[1:], 1, rows, 2).expand(4, shape[0], *shape[1:]) > 0
    assert torch.equal(field[:, :-1][known], x[known])
    assert torch.equal(field[:, -1:] > 0, known[:, :1])
    assert 0 < int((~known).sum()) < known.numel()
    seen = [PartEmbedding(part, 4).scaled(c) for part, c in zip(data.facts.parts[:2], (small, field), strict=True)]
    assert float(seen[1][:, :-1][~known].abs().max()) < 1e-3, "what is hidden is the mean, zero as networks see it"
    train = data.array.train[:]
    mean, std = train.transpose(0, 1).flatten(1).mean(1), train.transpose(0, 1).flatten(1).std(1, correction=0)
    assert data.facts.parts[1].mean == pytest.approx([*mean.tolist(), 0.0])
    assert data.facts.parts[1].std == pytest.approx([*std.tolist(), 1.0])
    assert float(seen[0].abs().max()) < 10.0
    for luma in grey:
        weights = torch.tensor([0.299, 0.587, 0.114], dtype=x.dtype).reshape(3, 1, 1)
        torch.testing.assert_close(luma, (weights * x).sum(1, keepdim=True), rtol=1e-12, atol=0)


def test_the_scale_is_that_of_all_rows_where_they_are_sorted(here, monkeypatch):
    monkeypatch.setattr(conditions, "_SCALED_BY", 64 * 16)
    x = np.repeat(np.linspace(-1.0, 1.0, 500), 16).reshape(500, 2, 8)
    np.save("x.npy", x)
    (part,) = build_data(load_config("ar1", settings("downsample:2")[2:])).facts.parts
    assert part.mean == pytest.approx([0.0, 0.0], abs=0.25)
    assert part.std == pytest.approx([x.std()] * 2, rel=0.25)


def test_a_run_on_signals_goes_through_the_commands_and_resumes_to_the_bit(here, capsys):
    saved(2, 8)
    asked = settings("downsample:2", "mask")
    assert trained(*asked) == 0, capsys.readouterr().err
    assert "condition: downsample:2 (2 x 4 numbers), mask (3 x 8 numbers)" in capsys.readouterr().out
    assert trained(*asked, "trainer.steps=1", "--resume", "never") == 0
    assert trained(*asked, "--resume", "a-0002", "--resume-changed") == 0
    model, resumed = load("runs/a-0001"), load("runs/a-0002")
    state = model.module.state_dict()
    assert all(torch.equal(state[name], value) for name, value in resumed.module.state_dict().items())

    few = ("--images", "5", "--draws", "2", "--wandb", "off", "--device", "cpu")
    assert run("evaluate", "a-0001", "--method", "elbo", *few) == 0, capsys.readouterr().err
    assert "I(x; downsample:2, mask) by elbo: " in capsys.readouterr().out

    whole = OFFSET + SCALE * np.arange(16.0).reshape(2, 8) / 16
    np.save("whole.npy", whole)
    np.save("small.npy", whole.reshape(2, 4, 2).mean(-1))
    np.save("filled.npy", np.arange(8) < 3)
    drawn = {}
    for name, given in {"whole": "whole.npy", "small": "small.npy"}.items():
        assert sampled("--run", "a-0001", "--condition", f"downsample:2={given}", *QUICK, "--out", f"{name}-s.npy") == 0
        drawn[name] = np.load(f"{name}-s.npy")
    np.testing.assert_allclose(drawn["whole"], drawn["small"], rtol=0, atol=1e-3 * SCALE)
    masking = ("--run", "a-0001", "--condition", "mask=whole.npy", "--mask", "filled.npy", *QUICK)
    assert sampled(*masking, "--out", "m.png") == 0, capsys.readouterr().err
    known = torch.from_numpy(np.arange(8) >= 3)
    mean = torch.tensor(model.facts.parts[1].mean[:2], dtype=torch.float64)[:, None]
    field = torch.cat((torch.where(known, torch.from_numpy(whole), mean), known[None].double()))
    wanted = model.sample(4, steps=2, sampler="ddim", cond={"mask": field[None]})
    assert sampled(*masking, "--out", "m.npy") == 0
    np.testing.assert_allclose(np.load("m.npy"), wanted.numpy(), rtol=0, atol=1e-3 * SCALE)
    assert len(SampleRecord.read("m.png").images["condition"]) == 1
    assert sampled("--from", "m.png", "--out", "again.png") == 0
    assert "the same pixels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("mask=whole.npy",), "needs --mask, x.npy that is not 0 where whole.npy is to be filled in"),
        (("mask=whole.npy", "--mask", "short.npy"), "--mask: short.npy is 3; needs 8, not 0 somewhere"),
        (("mask=whole.npy", "--mask", "zeros.npy"), "--mask: zeros.npy is 8; needs 8, not 0 somewhere"),
        (("mask=whole.npy", "--mask", "none.npy"), "--mask: none.npy does not exist"),
        (
            ("mask=odd.npy",),
            "odd.npy is 3 x 4; 'mask' takes 2 x 8 numbers next to --mask, or 3 x 8, of which the last is 1 "
            "where the others are known, else 0",
        ),
        (("mask=odd.npy", "--mask", "short.npy"), "odd.npy is 3 x 4; 'mask' takes 2 x 8 numbers next to --mask"),
        (("downsample:2=odd.npy",), "downsample:2 (2 x 4 numbers): found shape (1, 3, 4)"),
        (("downsample:2=x.png",), "has numbers of its own units; found 'x.png', accepted: an array, x.npy"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(here, capsys, given, told):
    saved(2, 8)
    from made_runs import make_run

    config = load_config("ar1", settings("downsample:2", "mask")[2:])
    make_run(here / "runs", config, build_data(config).facts)
    for name, shape in (("whole", (2, 8)), ("odd", (1, 3, 4)), ("short", 3), ("zeros", 8)):
        np.save(f"{name}.npy", np.ones(shape) * (name != "zeros"))
    Path("x.png").write_bytes(b"")
    (name,) = [path.name for path in Path("runs").iterdir()]
    assert sampled("--run", name, "--condition", *given, *QUICK, "--out", "a.npy") == 2
    err = capsys.readouterr().err
    assert told in err, err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("shape", "part", "told"),
    [
        ((2, 8), "downsample:3", "factor: 3 does not divide an image of 8 pixels"),
        ((3, 8), "grey", "found 'grey', which is of colour images; 'array' has the shape (3, 8)"),
        ((2, 4, 4), "grey", "found 'grey': "),
        ((3,), "downsample:2", "found 'downsample:2', which is of images, signals and volumes; 'array' has the shape"),
        ((1,), "mask", "found 'mask', which is of images, signals and volumes, and of vectors of two or more entries"),
    ],
)
def test_data_without_such_a_function_are_refused_in_a_line(here, shape, part, told):
    saved(*shape)
    with pytest.raises(UserError) as error:
        build_data(load_config("ar1", settings(part)[2:]))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_mask_of_a_table_hides_entries_at_random(here, capsys):
    """From one to all but one, each as often; in the table's units, with their means in place of what is hidden."""
    saved(4)
    config = load_config("table", [*TOY, "data.path=x.npy", "name=a", "denoiser.condition=[mask]"])
    data = build_data(config)
    train, rows = data.array.train[:], torch.arange(4000)
    x = train[rows % len(train)]
    (given,) = Conditions(data.facts.parts, data.array).of("train", rows, x, 1, rows, 2)
    values, known = given[:, :4], given[:, 4:] > 0
    assert torch.equal(values[known], x[known])
    torch.testing.assert_close(values[~known], train.mean(0).expand(4000, 4)[~known], rtol=1e-12, atol=0)
    hidden = (~known).sum(1)
    assert torch.bincount(hidden, minlength=5)[[0, 4]].tolist() == [0, 0]
    assert (torch.bincount(hidden)[1:4] / 4000 - 1 / 3).abs().max() < 4 * (2 / 9 / 4000) ** 0.5
    assert ((~known).double().mean(0) - 0.5).abs().max() < 0.04, "every entry alike"
    from made_runs import make_run

    run_folder = make_run(here / "runs", config, data.facts)
    np.save("gap.npy", np.array([0, 1, 0, 1]))
    row = OFFSET + SCALE * np.arange(4.0)
    asked = ("--run", str(run_folder), "--mask", "gap.npy", *QUICK)
    assert sampled(*asked, "--condition", f"mask={','.join(map(str, row))}", "--out", "s.npy") == 0
    gap = torch.tensor([0.0, 1.0, 0.0, 1.0])
    filled = torch.where(gap > 0, torch.tensor(data.facts.parts[0].mean[:4]).double(), torch.from_numpy(row))
    wanted = load(run_folder).sample(4, steps=2, sampler="ddim", cond={"mask": torch.cat((filled, 1.0 - gap))[None]})
    np.testing.assert_allclose(np.load("s.npy"), wanted.numpy(), rtol=0, atol=1e-3 * SCALE)
    for given, told in (
        ((), "needs --mask, x.npy that is not 0"),
        (("mask=1,2",), "1,2 is 2; 'mask' takes 4 numbers next to --mask, or 8, of which the last 4 are 1 where"),
        (("--mask", "s.npy"), "s.npy is 4 x 4; needs 4"),
    ):
        value, given = (given, ()) if "mask=1,2" in given else (("mask=1,2,3,4",), given)
        assert sampled("--run", str(run_folder), "--condition", *value, *given, *QUICK, "--out", "no.npy") == 2
        err = capsys.readouterr().err
        assert told in err, err


def test_draws_of_a_known_density_have_no_conditions(here):
    with pytest.raises(UserError, match=r"^denoiser\.condition: found mask; draws of 'gaussians' have none; .*array"):
        load_config("toy", ["denoiser.condition=[mask]"])


def test_several_processes_measure_what_one_does_under_the_conditions_of_arrays(here):
    """Keys of an .npz of every kind, and functions of the row, whichever process takes it."""
    draws = np.random.default_rng(0)
    columns = {
        "labels": draws.choice(["cat", "dog"], N),
        "age": draws.normal(5, 3, N),
        "map": draws.normal(size=(N, 2, 2, 2)),
    }
    np.savez("x.npz", x=draws.normal(size=(N, 1, 4, 4)).astype(np.float16), **columns)
    config = load_config("ar1", [*settings("label", "age", "map", "downsample:2", "mask")[2:], "data.path=x.npz"])
    from made_runs import make_run

    run_folder = make_run(here / "runs", config, build_data(config).facts)

    alone = measured_alike(str(run_folder), 5, 2)
    assert alone.estimate.protocol["condition"] == "its age, downsample:2, label, map, mask"


def test_the_order_of_the_parts_makes_no_other_condition(here):
    """The same conditions of the same images have one digest and are told alike, in whatever order they were named."""
    from conditional_runs import table

    found = []
    for parts in ("c,kind", "kind,c"):
        assert trained(*table()[:-2], f"denoiser.condition=[{parts}]", "evaluation.enabled=false", "trainer.steps=1",
                       f"name={parts[0]}", "ema.half_life=10") == 0  # fmt: skip
        subject = load_subject(f"{parts[0]}-0001", "runs", points=True)
        data = load_data_of(subject)
        images, identity = images_of(data, "test", 5)
        own = given_to(subject.model, data, images, identity, None)
        stated = [given_to(subject.model, data, images, identity, asked)
                  for asked in (["c=1,2", "kind=dog"], ["kind=dog", "c=1,2"])]  # fmt: skip
        assert stated[0].requested == stated[1].requested
        found.append([(given.digest, given.in_words) for given in (own, *stated)])
    assert found[0] == found[1]
    assert found[0][0][1] == "its c, kind"
    assert found[0][1] == found[0][2]
