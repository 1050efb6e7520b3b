"""A run goes on only on the images it was begun on, wherever these are now."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny_configs import digits_arguments

from diffusion.commands.app import command
from diffusion.commands.train.train import train
from diffusion.config import load_config, with_places
from diffusion.data import load_images
from diffusion.models.build import DataFacts

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


def write(root, name, count, start=0, channels=1):
    (root / name).mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        shape = (8, 8) if channels == 1 else (8, 8, 3)
        pixels = np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(root / name / f"{i:03}.png")
    return root


def facts(path):
    images = load_images("folder", path)
    return DataFacts("folder", images.shape, images.levels, images.num_classes, dict(images.provenance))


def test_every_difference_of_the_content_is_named(tmp_path):
    pets = write(write(tmp_path / "pets", "cat", 10), "dog", 10, 20)
    known = facts(pets)
    assert known.differences(facts(shutil.copytree(pets, tmp_path / "elsewhere"))) == []
    assert known.differences(DataFacts.from_json(known.to_json())) == []

    (tmp_path / "elsewhere" / "dog").rename(tmp_path / "elsewhere" / "eel")
    renamed = facts(tmp_path / "elsewhere")
    assert known.differences(renamed)[0] == "classes 0 cat, 1 dog -> 0 cat, 1 eel"
    more = known.differences(facts(write(shutil.copytree(pets, tmp_path / "more"), "dog", 1, 50)))
    assert any(text.startswith("number of train images 16 -> 17") for text in more)
    changed = shutil.copytree(pets, tmp_path / "changed")
    Image.new("L", (8, 8), 9).save(changed / "cat" / "003.png")
    (only,) = known.differences(facts(changed))
    assert "SHA-256 of the" in only
    assert "images" in only
    colour = known.differences(facts(write(write(tmp_path / "colour", "cat", 10, 0, 3), "dog", 10, 20, 3)))
    assert colour[0] == "shape 1 x 8 x 8 -> 3 x 8 x 8"

    pixels = load_images("folder", pets)
    np.savez(tmp_path / "a.npz", images=pixels.train[:, 0].numpy(), labels=np.arange(16) % 2)
    np.savez(tmp_path / "b.npz", images=pixels.train[:, 0].numpy(), labels=np.arange(16) // 8)
    swapped = facts(tmp_path / "a.npz").differences(facts(tmp_path / "b.npz"))
    assert len(swapped) > 0
    assert all("labels" in text for text in swapped), "the same images under other labels"


def run_train(capsys, tmp_path, *more):
    code = command(train, digits_arguments(tmp_path, "data.name=folder", "name=p", "evaluation.enabled=false", *more))
    return code, *capsys.readouterr()


def contents(run):
    return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_run_goes_on_only_on_its_own_images(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(write(tmp_path / "pets", "cat", 10), "dog", 10, 20)
    on = ("data.path=pets", "denoiser.conditional=true")
    code, out, _ = run_train(capsys, tmp_path, *on, "trainer.steps=2")
    assert code == 0
    assert "data: 20 images from" in out
    assert "classes: 2: 0 cat, 1 dog" in out
    run = tmp_path / "runs" / "p-0001"
    kept = json.loads((run / "data.json").read_text())
    assert kept["provenance"]["classes"] == "cat, dog"
    assert f"path: {tmp_path / 'pets'}\n" in (run / "config.yaml").read_text()

    shutil.copytree("pets", "copy")
    shutil.rmtree("pets/dog")
    write(tmp_path / "pets", "ant", 10, 60)
    before = contents(run)
    for resume in ("p-0001", "auto"):  # auto: the run is not at its fourth step
        code, _, err = run_train(capsys, tmp_path, *on, "trainer.steps=4", "--resume", resume, "--resume-changed")
        assert code == 2
        line = err.splitlines()[-1]
        assert "these are not the data that" in line
        assert "classes 0 cat, 1 dog -> 0 ant, 1 cat" in line
        assert "SHA-256 of the train images" in line
        assert contents(run) == before
    shutil.rmtree("pets")
    write(write(tmp_path / "pets", "cat", 10, 0, 3), "dog", 10, 20, 3)
    code, _, err = run_train(capsys, tmp_path, *on, "trainer.steps=4", "--resume", "p-0001", "--resume-changed")
    assert (code, "shape 1 x 8 x 8 -> 3 x 8 x 8" in err) == (2, True)
    (run / "data.json").unlink()  # as older runs: the checkpoint says it
    assert run_train(capsys, tmp_path, *on, "trainer.steps=4", "--resume", "p-0001", "--resume-changed")[0] == 2

    moved = ("data.path=copy", "denoiser.conditional=true", "--resume-changed")
    assert run_train(capsys, tmp_path, *moved, "trainer.steps=4", "--resume", "p-0001")[0] == 0
    shutil.rmtree("pets")
    (tmp_path / "copy").rename(tmp_path / "there")
    code, _, err = run_train(capsys, tmp_path, "data.path=there", *moved[1:], "trainer.steps=5")
    assert (code, "continuing" in err) == (0, True), "what is looked for by itself is found where it was moved"
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["p-0001"]


def test_paths_of_data_are_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = load_config("mnist", ["data.name=folder", "data.path=a/b", "data.cache=~/c"])
    data = with_places(config).data
    assert (data.path, data.cache, data.root) == (f"{tmp_path}/a/b", f"{tmp_path}/home/c", "data")
    assert with_places(load_config("mnist")).data.root == f"{tmp_path}/data"
    assert with_places(with_places(config)) == with_places(config)
    for plain in (load_config("digits"), load_config("toy")):
        assert with_places(plain) == plain, "read from no folder"
