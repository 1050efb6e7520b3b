"""`python -m diffusion quality`: figures are kept and found again, copies are caught, unlike references are refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_runs import make_run
from PIL import Image
from tiny_configs import digits_config

import diffusion
from diffusion.commands import records
from diffusion.commands.features import FeatureCache, choose_extractor
from diffusion.commands.quality import quality
from diffusion.commands.quality.arguments import parse_quality_arguments
from diffusion.commands.quality.candidates import _labels, load_candidate
from diffusion.commands.quality.quality import Reference, _question
from diffusion.data import load_images, pictures
from diffusion.errors import UserError
from diffusion.likelihood import Dequantizer
from diffusion.metrics import ClassifierFeatures, QualityReference
from diffusion.models.load import DiffusionModel
from diffusion.numerics.random import FIXED_ORDER, fixed_subset

# Lightning's own: it uses a deprecated class of PyTorch (tests/training/tiny_training.py has the same mark).
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
RUN = Path("runs/digits-0001")
SCALE = RUN / "evaluations" / "quality" / "scale"
QUICK = ("--samples", "24", "--sampler", "ddim", "--steps", "2", "--wandb", "off")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "cache"


def kept(folder=RUN / "evaluations" / "quality"):
    return sorted(folder.glob("*.json"))


def save_digits(path, images):
    """Digits as sample.py writes them: 8 bits for the eye."""
    np.savez(path, images=pictures.to_bytes(Dequantizer(17).center(images))[:, 0].numpy())


def test_a_run_is_measured_once_and_its_figures_are_found_again(diffusion_command, cache):
    code, out, _ = diffusion_command("quality", "digits-0001", *QUICK)
    assert code == 0
    (path,) = kept()
    record = json.loads(path.read_text())
    data = load_images("digits")
    assert record["question"]["reference"]["sha256"] == data.provenance["train_sha256"]
    assert record["question"]["settings"]["steps"] == 2
    assert record["nfe"] == 2
    assert all(word in out for word in ("digits-0001", "test set", "noise", f"stored in: {path}"))
    with Image.open(path.with_name(f"{path.stem}-closest.png")) as picture:
        assert picture.size == (10 * 66 - 2, 4 * 66 - 2)
    assert records.read_all(RUN) == [], "likelihoods are kept apart"
    written = path.stat().st_mtime_ns
    assert diffusion_command("quality", "digits-0001", *QUICK)[1] == out
    assert path.stat().st_mtime_ns == written
    assert diffusion_command("quality", "digits-0001", *QUICK, "--again")[1] == out, "keyed noise: the same figures"
    assert path.stat().st_mtime_ns > written
    assert len(list(cache.rglob("*.safetensors"))) == 1
    diffusion_command("quality", "digits-0001", *QUICK, "--seed", "1", "--no-scale")
    assert len(kept()) == 2, "another question"
    path.write_text("{}")
    code, _, err = diffusion_command("quality", "digits-0001", *QUICK)
    assert code == 2
    assert "quality --again replaces it" in err


def test_what_is_for_scale_is_kept_as_the_same_images_of_a_file_are(diffusion_command, monkeypatch):
    """The test images, and the same in a file of their own; found again, nothing is measured."""
    out = diffusion_command("quality", "digits-0001", *QUICK)[1]
    scale = {record["name"]: record for record in (json.loads(p.read_text()) for p in kept(SCALE))}
    assert set(scale) == {"test set", "noise"}
    images = load_images("digits").test
    save_digits("held-out.npz", images[fixed_subset(len(images), 24)])
    assert diffusion_command("quality", "held-out.npz", "--data", "digits", "--no-scale", *QUICK[-2:])[0] == 0
    (path,) = kept(Path("evaluations/held-out/evaluations/quality"))
    found = json.loads(path.read_text())["figures"]
    for name in ("fid", "kid", "precision", "recall", "coverage"):
        assert scale["test set"]["figures"][name] == pytest.approx(found[name], rel=1e-6)
    assert "near_training_pixels" in found
    assert "near_training_pixels" not in scale["test set"]["figures"], "they are what it is measured by"
    monkeypatch.setattr(QualityReference, "measure", None)
    assert diffusion_command("quality", "digits-0001", *QUICK)[1] == out
    rows = quality.kept(parse_quality_arguments(["digits-0001", *QUICK]))
    assert [(row.name, row.samples, row.figures["fid"]) for row in rows[1:]] == [
        (name, 24, scale[name]["figures"]["fid"]) for name in ("test set", "noise")
    ]


def test_runs_stand_in_one_table(diffusion_command):
    code, out, _ = diffusion_command("quality", "digits-0001", "digits-0002", *QUICK, "--no-scale")
    assert code == 0
    assert "digits-0001" in out
    assert "digits-0002" in out
    assert "noise" not in out
    assert out.splitlines()[-1].endswith(" tradeoff digits-0001"), "the next command"


@pytest.fixture
def conditional(place):
    make_run(Path("runs"), digits_config(place, "denoiser.conditional=true", "name=conditional"))
    return "conditional-0001"


def test_classes_are_drawn_in_the_proportion_of_the_reference(conditional):
    """Of 24 samples each class has its share of the training images to within one; they are those of their labels."""
    argv = [conditional, *QUICK, "--label", "reference", "--guidance", "2"]
    found = load_candidate(conditional, parse_quality_arguments(argv))
    counts = np.array(found.question["classes"])
    share = np.bincount(found.data.train_labels.numpy(), minlength=10) / len(found.data.train)
    assert counts.sum() == 24
    assert np.abs(counts - 24 * share).max() < 1.0
    drawn, nfe = found.draw(torch.device("cpu"), lambda *_: None)
    assert nfe == 4, "two steps, guided"
    model = found.subject.model
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    x = diffusion.sample(model, 24, sampler="ddim", steps=2, label=labels, guidance=2.0)
    assert torch.equal(drawn, model.dequantizer.quantize(x))
    plain = diffusion.sample(model, 24, sampler="ddim", steps=2)
    assert not torch.equal(drawn, model.dequantizer.quantize(plain))


def test_a_network_that_needs_labels_is_asked_with_them():
    def network(x, t, labels):
        return 0.5 * x * (1 + labels.reshape(-1, 1, 1, 1))

    model = diffusion.adopt(network, path="vp", predicts="x", time="t", shape=(1, 8, 8), levels=17, labels=10)
    data = load_images("digits")
    with pytest.raises(UserError, match="--label: the network needs one of every sample; --label reference draws all"):
        _labels(model, None, data, "train", 8)
    chosen, counts = _labels(model, "reference", data, "test", 720)
    assert counts["classes"] == (2 * data.test_labels.bincount(minlength=10)).tolist()
    assert chosen["label"].bincount(minlength=10).tolist() == counts["classes"]
    assert _labels(model, "3", data, "test", 4)[1]["classes"][3] == 4


def test_one_class_and_a_variance_are_other_questions(conditional, diffusion_command):
    argv = ("quality", conditional, "--samples", "8", "--steps", "2", "--no-scale", "--wandb", "off")
    asked = [("--sampler", "ancestral", "--variance", which, "--label", "3") for which in ("upper", "lower")]
    for more in asked:
        assert diffusion_command(*argv, *more)[0] == 0
    questions = [
        json.loads(path.read_text())["question"] for path in kept(Path(f"runs/{conditional}/evaluations/quality"))
    ]
    assert {question["settings"]["variance"] for question in questions} == {"lower", "upper"}
    assert all(question["classes"] == [0, 0, 0, 8, 0, 0, 0, 0, 0, 0] for question in questions)
    for more, told in (
        (("digits-0001", "--label", "3"), "--label: found '3'; runs/digits-0001/model.safetensors was trained without"),
        ((conditional, "--label", "11"), "--label: found 11; the model has the classes 0 to 9"),
        ((conditional, "--guidance", "2"), "--guidance: steers towards a class; give --label too"),
        ((conditional, "--sampler", "ddim", "--variance", "upper"), "variance: "),
    ):
        code, out, err = diffusion_command("quality", *more, "--wandb", "off")
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert told in err


def test_copies_are_called_by_their_files(place, diffusion_command):
    """The sample and the training image, where they are files: with the split's and without the wrapping folders."""
    images = pictures.to_bytes(Dequantizer(17).center(load_images("digits").train[:40]))[:, 0].numpy()
    for i, pixels in enumerate(images):
        for folder in ([f"set/{'odd' if i % 2 else 'even'}"] if i < 32 else []) + (["drawn"] if i >= 24 else []):
            Path(folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(f"{folder}/{i}.png")
    ClassifierFeatures((1, 8, 8), 256, 2, "mine").save("mine.safetensors", {})
    code, out, _ = diffusion_command(
        "quality", "drawn", "--data", "set", "--features", "mine.safetensors", "--no-scale"
    )
    assert code == 0
    data = load_images("folder", "set")
    expected = {name for name in data.train_names if int(Path(name).stem) >= 24}
    assert expected
    (path,) = kept(Path("evaluations/drawn/evaluations/quality"))
    copies = json.loads(path.read_text())["copies"]
    assert {copy["file"] for copy in copies if copy["exact"]} == expected
    assert all(Path(copy["file"]).name == copy["name"] for copy in copies if copy["exact"])
    assert any(f"{Path(name).name} = {name}" in out for name in expected)


def test_copies_of_training_images_in_a_file_are_caught(place, diffusion_command):
    data = load_images("digits")
    save_digits("copies.npz", data.train[:50])
    code, out, _ = diffusion_command("quality", "copies.npz", "--data", "digits", "--no-scale")
    assert code == 0
    assert "100.0 ± " in out
    out = " ".join(out.split())
    assert "copies.npz: 50 of 50 samples are training images to the bit: sample 0 = train image 0, sample 1 =" in out
    assert "... (45 more in its record)" in out
    assert "corrected: withheld for copies.npz (50): fewer than 4 times the 64 features" in out
    (path,) = kept(Path("evaluations/copies/evaluations/quality"))
    record = json.loads(path.read_text())
    figures = record["figures"]
    assert (figures["copies_exact"], figures["copies_near"], figures["fid_corrected"]) == (50, 0, None)
    assert sorted(copy["image"] for copy in record["copies"]) == list(range(50))
    with Image.open(path.with_name(f"{path.stem}-closest.png")) as picture:
        assert picture.size == (10 * 66 - 2, 6 * 66 - 2), "copies above the nearest by pixels and by features"
        assert json.loads(picture.text["copies"]) == record["copies"]
    assert figures["near_training_pixels"] == figures["near_training_features"] == 1.0
    expected = QualityReference.of(
        data.train, choose_extractor("digits", data, False), "digits", "train", 17, data.test
    ).measure(data.train[:50])
    assert figures["fid"] == pytest.approx(expected.frechet.value, rel=1e-9), "levels survive the way through bytes"


def test_the_data_may_be_a_runs(place):
    data = load_images("digits")
    save_digits("some.npz", data.test[:20])
    found = load_candidate("some.npz", parse_quality_arguments(["some.npz", "--data", "digits-0001", "--samples", "9"]))
    images, nfe = found.draw(torch.device("cpu"), lambda *_: None)
    assert torch.equal(images, data.test[:20][fixed_subset(20, 9)])
    assert (found.data.name, found.count, nfe) == ("digits", 9, 0.0)


def test_unlike_figures_are_refused_before_anything_is_drawn(place, diffusion_command):
    data = load_images("digits")
    save_digits("a.npz", data.test[:20])
    np.savez("other.npz", images=np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8))
    for argv, words in (
        (["digits-0001", "--data", "digits"], "--data: digits-0001 is a model"),
        (["a.npz"], "--data: a.npz holds images"),
        (["a.npz", "--data", "digts"], "Did you mean 'digits'"),
        (["a.npz", "--data", "digits", "--steps", "3"], "--steps: a.npz holds images"),
        (["a.npz", "--data", "digits", "--samples", "21"], "a.npz holds 20 images"),
        (["a.npz", "--data", "mnist-like.zip"], "--data: found 'mnist-like.zip'"),
        (["a.npz", "--data", "other.npz"], "Inception weights are not at"),
        (["digits-0001", "a.npz", "--data", "digits"], "unlike numbers of samples (1000, 20)"),
        (["digits-0001", "a.npz", "--data", "other.npz", "--samples", "20"], "unlike data (digits, folder)"),
        (["a.npz", "--data", "digits", "--features", "mnst"], "Did you mean 'mnist'"),
        (["a.npz", "--data", "digits", "--features", "mnist"], r"'mnist' is of images (1, 28, 28)"),
        (["digits-0001", "--prior", "normal"], "--prior: digits-0001 is of family 'diffusion'"),
        (["no-such-run"], "there is no such run"),
    ):
        code, out, err = diffusion_command("quality", *argv)
        assert (code, out) == (2, ""), argv
        assert words in err, err
        assert err.count("\n") == 1
    save_digits("b.npz", data.test[:21])
    code, _, err = diffusion_command("quality", "a.npz", "b.npz", "--data", "digits")
    assert code == 2
    assert "unlike numbers of samples (20, 21)" in err
    assert not Path("evaluations").exists()
    assert not (RUN / "evaluations").exists()


def test_features_of_ones_own_are_taken_and_told_apart(place, diffusion_command):
    np.savez("other.npz", images=np.random.default_rng(0).integers(0, 256, (80, 8, 8), dtype=np.uint8))
    data = load_images("folder", path="other.npz")
    np.savez("fake.npz", images=np.random.default_rng(1).integers(0, 200, (30, 8, 8), dtype=np.uint8))
    for seed in (0, 1):
        torch.manual_seed(seed)
        ClassifierFeatures(data.shape, 256, 2, "mine").save(f"mine-{seed}.safetensors", {})
        argv = ("fake.npz", "--data", "other.npz", "--features", f"mine-{seed}.safetensors", "--no-scale")
        assert diffusion_command("quality", *argv)[0] == 0
    found = [json.loads(path.read_text()) for path in kept(Path("evaluations/fake/evaluations/quality"))]
    assert len({record["question"]["reference"]["extractor_sha256"] for record in found}) == 2


def test_a_cache_that_is_damaged_or_of_something_else_is_none(cache):
    data = load_images("digits")
    made = QualityReference.of(data.train[:9], choose_extractor(None, data, False), "digits", "train", 17)
    store = FeatureCache()
    assert store.read(made.provenance) is None
    store.write(made.provenance, made.features)
    assert torch.equal(store.read(made.provenance), made.features)
    (path,) = cache.rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert store.read(made.provenance) is None


def test_inception_is_for_what_has_no_network_of_its_own():
    data = load_images("digits", size=16)
    with pytest.raises(UserError, match="Inception weights are not at"):
        choose_extractor(None, data, False)


def test_the_summary_goes_to_wandb_once(diffusion_command):
    argv = ("quality", "digits-0001", *QUICK[:-2], "--wandb", "offline", "--no-scale")
    assert "W&B run" in diffusion_command(*argv)[1]
    (record,) = (RUN / "evaluations" / "quality").glob("*/wandb/offline-run-*/*.wandb")
    content = record.read_bytes()
    for word in (b"quality/fid", b"quality/kid_sem", b"quality/coverage", b"quality/near_training_pixels"):
        assert word in content, word
    assert list(record.parent.glob("files/media/images/quality/closest*.png"))
    assert "W&B run" not in diffusion_command(*argv)[1], "once is enough"


def test_a_folder_in_class_order_has_the_figures_of_a_shuffled_one(place, diffusion_command):
    data = load_images("digits")
    by_class = data.test[data.test_labels.argsort(stable=True)]
    save_digits("ordered.npz", by_class)
    save_digits("shuffled.npz", by_class[torch.randperm(360, generator=torch.Generator().manual_seed(0))])
    found = []
    for name in ("ordered", "shuffled"):
        code, out, _ = diffusion_command("quality", f"{name}.npz", "--data", "digits", "--no-scale")
        assert (code, "withheld" in out) == (0, False)
        (path,) = kept(Path(f"evaluations/{name}/evaluations/quality"))
        record = json.loads(path.read_text())
        assert record["question"]["order"] == FIXED_ORDER
        found.append(record["figures"])
    ordered, shuffled = found
    assert ordered["copies_exact"] == ordered["copies_near"] == 0
    for name, value in ordered.items():
        assert value == pytest.approx(shuffled[name], rel=1e-3, abs=1e-6), name
    assert ordered["fid_sem"] < 0.6
    assert abs(ordered["fid_corrected"]) < 1.5


def test_a_place_that_takes_no_figures_is_told_before_anything_is_drawn(diffusion_command, monkeypatch):
    (RUN / "evaluations").write_text("")  # in the way of the folder
    monkeypatch.setattr(DiffusionModel, "sample", None)
    code, out, err = diffusion_command("quality", "digits-0002", "digits-0001", *QUICK)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert "digits-0001/evaluations/quality: results cannot be stored there (Not a directory)" in err
    assert not Path("runs/digits-0002/evaluations").exists()


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("empty", "--data", "digits"), "empty: no image found in empty; "),
        (("digits.npz", "--data", "empty"), "--data: no image found in empty; "),
        (("digits-0001", "--data", "empty"), "--data: "),
        (("digits-0001", "--samples", "5"), "--samples: found 5; at least 6 are needed"),
        (("digits.npz", "--data", "digits"), "digits.npz: found 4; at least 6 are needed"),
    ],
)
def test_images_that_are_not_there_or_too_few_are_told_by_what_was_written(diffusion_command, argv, told):
    Path("empty").mkdir()
    save_digits("digits.npz", load_images("digits").test[:4])
    code, out, err = diffusion_command("quality", *argv, "--wandb", "off")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"error: {told}"), err


def test_a_table_that_is_kept_needs_no_features(place, diffusion_command, monkeypatch):
    save_digits("copies.npz", load_images("digits").train[:8])
    argv = ("quality", "copies.npz", "--data", "digits", "--no-scale")
    out = diffusion_command(*argv)[1]
    monkeypatch.setattr(Reference, "get", None)
    assert diffusion_command(*argv)[1] == out
    assert "corrected: withheld for copies.npz (8): fewer than 4 times the 64 features" in out
    (path,) = kept(Path("evaluations/copies/evaluations/quality"))
    with Image.open(path.with_name(f"{path.stem}-closest.png")) as picture:
        assert picture.size == (8 * 66 - 2, 6 * 66 - 2), "each sample above its pair, however few"
    record = json.loads(path.read_text())
    del record["features"]  # of earlier versions
    path.write_text(json.dumps(record))
    assert "fewer than 4 times the features" in diffusion_command(*argv)[1]


def test_which_copies_count_depends_on_the_model_alone(place):
    data = load_images("digits")
    save_digits("a.npz", data.test[:8])
    options = parse_quality_arguments(["a.npz", "--data", "digits"])
    plain = load_candidate("a.npz", options)
    reference = Reference(data, choose_extractor("digits", data, False), options, torch.device("cpu"))
    asked = [_question(replace(plain, mirrored=mirrored), reference)[0] for mirrored in (False, True)]
    assert [question["mirrored_copies"] for question in asked] == [False, True]
    made = QualityReference.of(data.train, reference.extractor, "digits", "train", 17)
    turned = data.train[:8].flip(-1)
    assert [len(made.counting(mirrored).measure(turned).copies) for mirrored in (False, True, False)][1] == 8
    assert len(made.counting(True).counting(False).measure(turned).copies) < 8
