"""`train-classifier` and `train-features`: what they write is read back, and is what they have trained."""

import argparse

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.commands.app import command
from diffusion.commands.dispatch import main
from diffusion.commands.train.labelled_data import labelled
from diffusion.data import load_images
from diffusion.errors import UserError
from diffusion.metrics import ClassifierFeatures
from diffusion.models import noisy_classifier
from diffusion.networks import NoisyImageClassifier
from diffusion.storage import tensor_files

KINDS = {"train-classifier": noisy_classifier.load, "train-features": ClassifierFeatures.load}


@pytest.mark.parametrize("name", KINDS)
def test_a_network_is_trained_written_and_read_back(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)

    def train(file, *more):
        before = torch.get_rng_state()
        assert command(main, [name, "digits", "--out", file, *more]) == 0
        assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers are moved"
        return KINDS[name](file)

    seeds = (("a", "3"), ("b", "3"), ("c", "4"))
    few = [train(f"{file}.safetensors", "--steps", "3", "--seed", seed) for file, seed in seeds]
    ours, again, unlike = (module.state_dict() for module in few)
    assert all(torch.equal(ours[key], again[key]) for key in ours)
    assert any(not torch.equal(ours[key], unlike[key]) for key in ours)

    capsys.readouterr()
    network, data = train("d.safetensors", "--steps", "80"), load_images("digits")
    assert "d.safetensors" in capsys.readouterr().out
    assert not network.training
    labels = data.test_labels
    if name == "train-classifier":
        accuracy, _ = noisy_classifier.by_noise_level(network, data.test, labels, data.levels, [8.0])[8.0]
    else:
        accuracy = float((network.logits(data.test).argmax(1) == labels).float().mean())
    assert accuracy > 0.5, "ten classes: 0.1 is what an untrained one has"
    _, metadata = tensor_files.read("d.safetensors", "any", "about")
    assert '"steps": 80' in metadata["about"]


def test_the_classifier_of_noisy_images_takes_even_channels():
    with pytest.raises(UserError, match="base_channels: 5 does not work; accepted: even whole numbers from 2 on"):
        NoisyImageClassifier((1, 8, 8), 10, base_channels=5)


def write_images(folder, count):
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["folder"], "--path: found none; "),
        (["folder", "--path", "empty"], "--path: no image found in empty; "),
        (["folder", "--path", "one"], "--path: 1 to split: too few samples"),
        (["folder", "--path", "unlabelled"], "DATA: the data 'folder' have no labels (folders of classes, or"),
        (["folder", "--path", "absent"], "--path: absent does not exist"),
        (["digits", "--path", "unlabelled"], "--path: digits come with scikit-learn"),
        (["mnist", "--root", "unlabelled"], "--root: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_data_that_cannot_be_learnt_are_told_by_the_option_that_names_them(
    tmp_path, monkeypatch, capsys, name, argv, told
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "one", 1)
    write_images(tmp_path / "unlabelled", 12)
    code = command(main, [name, *argv, "--out", "x.safetensors", "--steps", "2"])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"error: {told}"), err
    assert not list(tmp_path.glob("*.safetensors"))


def test_classes_may_be_the_column_label_of_labels_csv(tmp_path):
    write_images(tmp_path / "x", 12)
    lines = "".join(f"{i}.png,{'cat' if i % 3 else 'dog'}\n" for i in range(12))
    (tmp_path / "x" / "labels.csv").write_text(f"file,label\n{lines}")
    data, (_, labels), _ = labelled(argparse.Namespace(data="folder", path=tmp_path / "x", root="data", size=None))
    assert data.num_classes == 2
    assert sorted(labels.unique().tolist()) == [0, 1]
