"""`train.py --from` a model of another project: its own network and conventions, its own figures at step 0."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_configs import digits_arguments

import diffusion
from diffusion.commands.dispatch import main
from diffusion.config import Config, TrainerConfig, adopting, dump_config, load_config, parse_train_arguments, preflight
from diffusion.errors import UserError
from diffusion.models.adopt import AdoptedModel
from diffusion.models.build import DataFacts
from diffusion.models.formats import openai, score_sde
from diffusion.storage import runs, tensor_files
from diffusion.training.fit import fit

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))  # the files that other projects write
from published_files import Stored, edm_pickle, song_checkpoint

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{name}")
    for name in ("DeprecationWarning", "FutureWarning", "diffusion.models.adopt.AdoptedNote")
]
SONG = {
    "img_resolution": 8, "img_channels": 3, "model_type": "SongUNet", "model_channels": 16, "channel_mult": [1, 2],
    "num_blocks": 1, "attn_resolutions": [4], "augment_dim": 2,
}  # fmt: skip
OURS = {"channels": 3, "image_size": 8, "base_channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [4]}
GUIDED = {
    "image_size": 8, "num_channels": 32, "num_res_blocks": 1, "attention_resolutions": "4", "channel_mult": "1,2",
    "learn_sigma": True, "resblock_updown": True,
}  # fmt: skip
SETTINGS = (
    "device=cpu", "logging.wandb=off", "trainer.batch_size=8", "trainer.log_every=1", "trainer.validate_every=0",
    "trainer.sample_every=0", "trainer.steps=4", "optimizer.lr=1e-3", "optimizer.warmup=2", "sampling.n=4",
    "optimizer.decay=constant", "evaluation.baselines=false", "sampling.steps=3", "evaluation.images=1",
    "evaluation.elbo_draws=4", "evaluation.tolerance=1e-2",
)  # fmt: skip


def edm(folder, name="edm.pkl", case="edm-ddpmpp-cond", **changes):
    path = folder / name
    arguments = {**SONG, **({"label_dim": 3} if case.endswith("cond") else {}), **changes}
    kind = "EDMPrecond" if case.startswith("edm") else "VPPrecond"
    path.write_bytes(edm_pickle(kind, arguments, Stored(case).weights, folder / "executed"))
    return path


def song(folder, monkeypatch):
    name = "vp/cifar10_ddpmpp_continuous"
    options, conventions = score_sde.CONFIGURATIONS[name]
    monkeypatch.setitem(score_sde.CONFIGURATIONS, name, ({**options, **OURS}, conventions))
    monkeypatch.setattr(score_sde, "SIZE", 8)
    path = folder / name / "checkpoint_8.pth"
    path.parent.mkdir(parents=True)
    song_checkpoint(path, Stored("song-ddpmpp").weights)
    return path


def guided(folder, monkeypatch):
    monkeypatch.setitem(openai.CONFIGURATIONS, "mine", GUIDED)
    torch.save(Stored("guided-legacy").weights, folder / "mine.pt")
    return folder / "mine.pt"


def pipeline(folder, scheduler="DDPMScheduler", out_channels=3, network=None, **said):
    from diffusers_pipelines import PLAIN, network_of, save  # skips without diffusers
    import diffusers  # isort: skip

    options = {
        "sample_size": 8,
        "out_channels": out_channels,
        "block_out_channels": (32, 64),
        "down_block_types": (PLAIN, PLAIN),
        "norm_num_groups": 8,
        **(network or {}),
    }
    save(folder / "pipeline", network_of(options), getattr(diffusers, scheduler)(**said))
    return folder / "pipeline"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Sixty random images of three classes."""
    path = tmp_path_factory.mktemp("images") / "images.npz"
    draws = np.random.default_rng(0)
    np.savez(path, images=draws.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), labels=np.arange(60) % 3)
    return path


def arguments(source, images, folder, *overrides):
    return ["--from", str(source), f"runs={folder / 'runs'}", f"data.path={images}", "name=on", *SETTINGS, *overrides]


def config(*given):
    return parse_train_arguments(arguments(*given)).config


@pytest.mark.parametrize("kind", ["diffusers", "edm", "score_sde", "openai"])
def test_step_0_has_the_figures_of_the_source_to_the_bit(kind, images, tmp_path, monkeypatch):
    makers = {
        "diffusers": lambda: pipeline(tmp_path),
        "edm": lambda: edm(tmp_path, case="vp-ddpmpp"),
        "score_sde": lambda: song(tmp_path, monkeypatch),
        "openai": lambda: guided(tmp_path, monkeypatch),
    }
    source, said = makers[kind](), []
    done = fit(config(source, images, tmp_path, "trainer.steps=2"), report=said.append)
    before, start, after = (diffusion.load(path) for path in (source, done.run / runs.START, done.run))
    assert type(start) is type(after) is AdoptedModel
    assert (start.step, after.step) == (0, 2)
    held_out = done.data.images.test[:1]
    methods = {"elbo": {"evaluations": 2}, **({"ode": {"solver": "heun2", "steps": 3}} if kind == "edm" else {})}
    for method, options in methods.items():
        found = diffusion.log_likelihood(start, held_out, method=method, **options).log_prob
        assert torch.equal(found, diffusion.log_likelihood(before, held_out, method=method, **options).log_prob)
    draw = {"sampler": "ddim", "steps": 3}
    assert torch.equal(start.sample(2, **draw), before.sample(2, **draw))
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(0.5)
    with torch.no_grad():
        assert torch.equal(start.denoiser(x, t), before.denoiser(x, t))
        assert not torch.equal(after.denoiser(x, t), before.denoiser(x, t))
    assert "starting from" in said[1]
    assert "by its own conventions" in said[1]
    last = diffusion.load(done.run / runs.CHECKPOINTS / "last.ckpt")
    for name, value in after.module.state_dict().items():
        assert torch.equal(last.module.state_dict()[name], value)


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        ("DDPMScheduler", {"variance_type": "fixed_large"}),
        ("DDPMScheduler", {"variance_type": "learned_range", "out_channels": 6}),
        ("DDIMScheduler", {"set_alpha_to_one": False, "steps_offset": 1}),
    ],
)
def test_how_the_source_is_drawn_is_not_how_the_run_is(scheduler, said, images, tmp_path):
    """The sampler of a run is its own, which takes no variance of ancestral steps and goes to the data end."""
    source = pipeline(tmp_path, scheduler, **said)
    theirs = diffusion.load(source)
    assert theirs.variance in ("upper", "learned") or theirs.ends_at_level
    run = fit(config(source, images, tmp_path, "trainer.steps=2", "trainer.sample_every=1")).run
    for model in (diffusion.load(run), diffusion.load(run / runs.START)):
        settings = model.sampling_settings({})
        assert (settings["sampler"], settings["steps"], settings["grid"]) == ("abm", 3, "shifted")
        assert "variance" not in settings
        assert "variance" not in model.sampling_settings({"sampler": "ancestral"})
    out = tmp_path / "x.png"
    assert main(["sample", "--run", str(run), "--n", "2", "--device", "cpu", "--out", str(out)]) == 0
    assert out.is_file()


def test_the_same_command_continues_when_the_source_is_gone(images, tmp_path):
    source = edm(tmp_path, case="vp-ddpmpp")
    half = fit(config(source, images, tmp_path / "a", "trainer.steps=2"))
    whole = fit(config(source, images, tmp_path / "b"))
    given = config(source, images, tmp_path / "a")
    source.unlink()
    done = fit(given, half.run)
    found, expected = (diffusion.load(fitted.run).module.state_dict() for fitted in (done, whole))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    named = parse_train_arguments(["--resume", str(half.run)]).config
    assert (named.family, named.trainer.start) == ("adopted", str(source))


def test_a_run_of_it_is_a_source_again(images, tmp_path):
    first = fit(config(edm(tmp_path, case="vp-ddpmpp"), images, tmp_path, "trainer.steps=1"))
    second = fit(parse_train_arguments(["--from", str(first.run), "trainer.steps=1"]).config)
    before, start = diffusion.load(first.run), diffusion.load(second.run / runs.START)
    assert torch.equal(start.sample(2, steps=3), before.sample(2, steps=3))


def test_classes_the_same_others_and_none(images, tmp_path):
    """Another number of classes gets a new embedding, and without a label the model is the same."""
    needed, optional = edm(tmp_path), edm(tmp_path, "optional.pkl", label_dropout=0.1)
    with pytest.raises(UserError, match=r"^trainer\.start: .* needs a label of every sample; give denoiser"):
        fit(config(needed, images, tmp_path))
    said = []
    done = fit(config(needed, images, tmp_path, "denoiser.conditional=true", "trainer.steps=1"), report=said.append)
    assert "none is dropped" in said[1]
    before, start = diffusion.load(needed), diffusion.load(done.run / runs.START)
    assert torch.equal(start.sample(2, steps=3, label=2), before.sample(2, steps=3, label=2))

    done = fit(config(optional, images, tmp_path, "trainer.steps=1"), report=said.append)
    assert "its 3 classes are left out" in said[3]
    before, start = diffusion.load(optional), diffusion.load(done.run / runs.START)
    assert start.denoiser.num_classes == 0
    assert torch.equal(start.sample(2, steps=3), before.sample(2, steps=3))

    with np.load(images) as found:
        np.savez(tmp_path / "five.npz", images=found["images"], labels=np.arange(60) % 5)
    for source, classes in ((optional, 3), (edm(tmp_path, "none.pkl", "vp-ddpmpp"), 0)):
        given = config(source, tmp_path / "five.npz", tmp_path, "denoiser.conditional=true", "trainer.steps=1")
        done = fit(given, report=said.append)
        assert f"labels: {classes} classes in its training, 5 now: a new label embedding" in said[-1]
        before, start = diffusion.load(source), diffusion.load(done.run / runs.START)
        assert torch.equal(start.sample(2, steps=3), before.sample(2, steps=3))
        assert start.sample(2, steps=3, label=4).shape == (2, 3, 8, 8)

    with np.load(images) as found:
        np.savez(tmp_path / "plain.npz", images=found["images"])
    for source in (optional, needed):
        with pytest.raises(UserError, match=r"^denoiser\.conditional: the data 'folder' have no labels"):
            fit(config(source, tmp_path / "plain.npz", tmp_path, "denoiser.conditional=true"))
    with pytest.raises(UserError, match=r"needs a label of every sample, and 'folder' has none"):
        fit(config(needed, tmp_path / "plain.npz", tmp_path))


@pytest.mark.parametrize("classes", [None, 7])
def test_a_library_network_gets_a_new_label_embedding(classes, images, tmp_path):
    """Of a network without classes the last row stands for none, by which it is the function that it was."""
    library = {"resnet_time_scale_shift": "scale_shift", "num_class_embeds": classes}
    before = diffusion.load(pipeline(tmp_path, "DDIMScheduler", network=library))
    assert before.known.network == "diffusers"
    data = DataFacts("folder", (3, 8, 8), 256, 3)
    known, notes = before.known.for_data(data, conditional=True)
    assert f"labels: {classes or 0} classes in its training, 3 now: a new label embedding" in notes
    start = known.model("start")
    found = start.sample(2, sampler="ddim", steps=2, label=2)
    assert bool(found.isfinite().all())
    if classes is None:
        assert torch.equal(start.sample(2, sampler="ddim", steps=2), before.sample(2, sampler="ddim", steps=2))
    else:
        assert len(known.weights["class_embedding.weight"]) == 3
        with pytest.raises(UserError, match="needs a label of every sample; give denoiser"):
            before.known.for_data(data, conditional=False)


def test_a_library_transformer_gets_new_label_embeddings_in_every_block(tmp_path):
    import diffusers
    from diffusers_pipelines import network_of, save

    options = {"sample_size": 8, "patch_size": 4, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8,
               "in_channels": 3, "out_channels": 3, "num_embeds_ada_norm": 7, "norm_num_groups": 1}  # fmt: skip
    save(tmp_path, network_of(options), diffusers.DDIMScheduler())
    before = diffusion.load(tmp_path)
    assert before.known.network == "diffusers"
    data = DataFacts("folder", (3, 8, 8), 256, 3)
    known, _ = before.known.for_data(data, conditional=True)
    changed = [name for name, value in known.weights.items() if value is not before.known.weights[name]]
    assert len(changed) == 2
    assert all(len(known.weights[name]) == 4 for name in changed)
    start = known.model("start")
    assert torch.equal(start.sample(2, sampler="ddim", steps=2), before.sample(2, sampler="ddim", steps=2))
    with pytest.raises(UserError, match="needs a label of every sample, and 'folder' has none"):
        before.known.for_data(replace(data, num_classes=0), conditional=False)


def test_a_run_of_it_goes_to_the_hub_and_back_to_diffusers(images, tmp_path, capsys):
    run = fit(config(pipeline(tmp_path), images, tmp_path, "trainer.steps=1", "evaluation.enabled=false")).run
    trained, draw = diffusion.load(run), {"sampler": "ddim", "steps": 2}
    for to, step in (("hub", 1), ("diffusers", 0)):
        assert main(["export", str(run), "--to", to, str(tmp_path / to)]) == 0
        back = diffusion.load(tmp_path / to)
        assert back.step == step
        assert torch.equal(back.sample(2, **draw), trained.sample(2, **draw))
    assert "class_labels" not in capsys.readouterr().out, "the data have classes, the network has none"


def test_other_sizes_and_levels_are_said_or_refused(images, tmp_path):
    source = edm(tmp_path, case="vp-ddpmpp")
    draws, said = np.random.default_rng(0), []
    for name, shape in (("wide", (60, 8, 12, 3)), ("odd", (60, 7, 7, 3)), ("grey", (60, 8, 8))):
        np.savez(tmp_path / f"{name}.npz", images=draws.integers(0, 256, shape, dtype=np.uint8))
    done = fit(config(source, tmp_path / "wide.npz", tmp_path, "trainer.steps=1"), report=said.append)
    assert "size: (8, 8) in its training, (8, 12) now" in said[1]
    assert diffusion.load(done.run).sample(1, steps=2).shape == (1, 3, 8, 12)
    for name, told in (("odd", "or sides that are multiples of 2"), ("grey", "takes data of 3 channels and 2 sides")):
        with pytest.raises(UserError, match=rf"^trainer\.start: .*edm\.pkl .*{told}") as error:
            fit(config(source, tmp_path / f"{name}.npz", tmp_path))
        assert "\n" not in str(error.value)
    np.save(tmp_path / "real.npy", draws.normal(size=(60, 3, 8, 8)))
    with pytest.raises(UserError, match="takes images of levels, and 'array' has real numbers"):
        fit(config(source, tmp_path / "real.npy", tmp_path, "data.name=array"))


def test_factors_are_kept_beside_a_converted_file(images, tmp_path):
    source = edm(tmp_path, case="vp-ddpmpp")
    with pytest.raises(UserError, match=r"trainer\.lora: .* python -m diffusion convert .*edm\.pkl OUT\.safetensors"):
        fit(config(source, images, tmp_path, "trainer.lora=2"))
    assert main(["convert", str(source), str(tmp_path / "ours.safetensors")]) == 0
    given = config(tmp_path / "ours.safetensors", images, tmp_path, "trainer.lora=2")
    half = fit(given.replace(trainer=given.trainer.replace(steps=2)))
    done = fit(given, half.run)
    whole = fit(given)
    names = tensor_files.read_model(done.run / runs.MODEL)[0]
    assert names
    assert all(name.endswith((".up", ".down")) for name in names)
    found, expected, base = (diffusion.load(path) for path in (done.run, whole.run, source))
    x = found.sample(2, steps=3)
    assert torch.equal(x, expected.sample(2, steps=3))
    assert not torch.equal(x, base.sample(2, steps=3))
    assert main(["convert", str(done.run), str(tmp_path / "merged.safetensors")]) == 0
    assert torch.equal(diffusion.load(tmp_path / "merged.safetensors").sample(2, steps=3), x)


def test_the_command_line_and_the_call(images, tmp_path, capsys):
    source = edm(tmp_path, case="vp-ddpmpp")
    assert main(["train", *arguments(source, images, tmp_path, "trainer.steps=1", "evaluation.enabled=false")]) == 0
    assert "by its own conventions" in " ".join(capsys.readouterr().out.split())
    run = tmp_path / "runs" / "on-0001"
    measured = ["evaluate", str(run), "--images", "1", "--method", "elbo", "--draws", "2", "--wandb", "off"]
    assert main(measured) == 0
    assert main(["sample", "--run", str(run), "--steps", "2", "--n", "1", "--out", str(tmp_path / "x.png")]) == 0
    assert "adopted" in capsys.readouterr().out

    with pytest.raises(UserError, match=r"data\.path: found null; must be the images"):
        parse_train_arguments(["--from", str(source)])
    with pytest.raises(UserError, match=r"network\.base_channels: .*edm\.pkl, which another project made, says"):
        parse_train_arguments(["--config", "digits", "--from", str(source), "network.base_channels=8"])
    with pytest.raises(UserError, match=r"network\.base_channels: found 8; family 'adopted' does not take it"):
        parse_train_arguments(arguments(source, images, tmp_path, "network.base_channels=8"))
    mixed = parse_train_arguments(["--config", "digits", "--from", str(source)]).config
    assert (mixed.family, mixed.optimizer) == ("adopted", load_config("digits").optimizer)
    assert not {"network:", "schedule:"} & set(dump_config(mixed).split())
    assert adopting(mixed) == mixed
    data = {"name": "folder", "path": str(images)}
    trainer = {"start": str(source), "steps": 1, "batch_size": 4, "validate_every": 0, "sample_every": 0}
    options = {"data": data, "trainer": trainer, "logging": {"wandb": "off"}, "device": "cpu"}
    model = diffusion.train("digits", runs=str(tmp_path / "called"), **options)
    assert type(model) is AdoptedModel
    with pytest.raises(UserError, match=r"trainer\.start: family 'adopted' trains a model of another project"):
        preflight.check_start(Config(family="adopted"))


def test_models_of_ours_keep_their_own_family(tmp_path):
    own = fit(parse_train_arguments(digits_arguments(tmp_path, "trainer.steps=1")).config)
    assert parse_train_arguments(["--from", str(own.run)]).config.family == "diffusion"
    with pytest.raises(UserError, match="is a model of ours; leave out family=adopted"):
        fit(Config(family="adopted", runs=str(tmp_path), device="cpu", trainer=TrainerConfig(start=str(own.run))))


def test_a_file_of_such_a_run_that_says_other_things_is_refused_in_a_line(images, tmp_path):
    source = edm(tmp_path, case="vp-ddpmpp")
    assert main(["convert", str(source), str(tmp_path / "ours.safetensors")]) == 0
    weights, metadata = tensor_files.read_model(tmp_path / "ours.safetensors")
    text, facts = dump_config(config(source, images, tmp_path)), json.loads(metadata["data"])
    metadata.pop("config")
    path, damaged = tmp_path / "run.safetensors", {"data": json.dumps({**facts, "shape": [3, 9, 9]})}
    tensor_files.save_model(path, weights, text, metadata)
    assert diffusion.load(path).config.trainer.start == str(source)
    for changes, told in (
        (damaged, "are not of the same shape and levels"),
        ({"known": "{}"}, "what it says of its network is damaged"),
        ({"low_rank": "{}"}, "what it says of its base is damaged"),
        ({"known": None}, "its network is of another project, which nothing here says"),
    ):
        entries = {name: value for name, value in {**metadata, **changes}.items() if value is not None}
        tensor_files.save_model(path, weights, text, entries)
        with pytest.raises(UserError, match=told) as error:
            diffusion.load(path)
        assert "\n" not in str(error.value)
