"""What a source says of every row: keys of an .npz, columns of labels.csv, folders of images of the same names."""

import json

import numpy as np
import pytest
import torch
from hostile_files import FORMATS, Hostile, png_of, refuses_a_pickle
from labelled_folders import TABLE, written
from PIL import Image

from diffusion.config import load_config
from diffusion.data import DataNote, load_array, load_images
from diffusion.errors import UserError
from diffusion.models.build import build_data
from diffusion.models.conditions import Conditions, masked, parts_of, rectangles


@pytest.mark.filterwarnings("ignore::diffusion.data.DataNote")
def test_a_folder_with_a_table_and_paired_images(tmp_path):
    names = ("age", "kind", "score", "pose", "depth")
    data = load_images("folder", path=written(tmp_path), columns=names)
    assert data.num_classes == 2, "the folders of classes; that of pairs is none"
    for split in ("train", "validation", "test"):
        images = getattr(data, split)
        of = {name: data.columns[name][split] for name in names}
        number = (images[:, 0, 1, 1].long() - 1) // 7
        age = of["age"].values[:, 0]
        assert torch.equal(torch.isnan(age), number == 3), "an empty entry is not known"
        assert torch.equal(age[number != 3], number[number != 3] + 0.5)
        assert of["kind"].names == ("cat", "dog")
        assert torch.equal(of["kind"].values, (number >= 6).long())
        assert torch.equal(of["score"].values, number % 3)
        assert torch.equal(of["pose"].values, torch.stack((number, -number), 1).double())
        assert (of["depth"].values[:, 0, 2, 2].long() - (255 - 7 * number)).abs().max() <= 2, "of the same names"
        assert of["depth"].levels == 256
    plain = load_images("folder", path=tmp_path)
    assert plain.num_classes == 3, "without being asked for it, the folder is a class as before"


@pytest.mark.filterwarnings("ignore::diffusion.data.DataNote")
def test_keys_of_splits(tmp_path):
    draws = np.random.default_rng(0)
    arrays = {f"{split}_{key}": value for split, n in (("train", 8), ("test", 4)) for key, value in (
        ("x", draws.normal(size=(n, 3))), ("c", np.arange(n) + 0.5), ("kind", np.arange(n) % 2),
        ("map", draws.normal(size=(n, 2, 5))))}  # fmt: skip
    np.savez(tmp_path / "t.npz", **arrays)
    data = load_array(tmp_path / "t.npz", columns=("c", "kind", "map"))
    assert torch.equal(data.columns["c"]["test"].values, torch.arange(4.0, dtype=torch.float64)[:, None] + 0.5)
    assert data.columns["kind"]["train"].size == 2
    assert data.columns["map"]["test"].values.shape == (4, 2, 5)
    with pytest.raises(UserError, match=r"found 'd'; .* has no such array of the train split; it has train_x"):
        load_array(tmp_path / "t.npz", columns=("d",))
    np.savez(tmp_path / "whole.npz", **arrays, d=np.arange(12.0))
    with pytest.raises(UserError, match=r"no such array of the train split; .*, d\. Accepted: train_d$"):
        load_array(tmp_path / "whole.npz", columns=("d",))


@pytest.mark.parametrize(
    ("lines", "names", "message"),
    [
        (TABLE, ("age",), "needs a first line of names"),
        ("file, age ,age\nb/0.png,1,2\n", ("age",), "needs a first line of names, all different"),
        (TABLE + "b/0.png,1\n", ("age",), "line 2 has 2 entries; the first has 6 names"),
        (TABLE + "b/0.png,1,2,3,4,5\n" * 2, ("age",), "line 3 is the second one of b/0.png"),
        (TABLE + "b/0.png,1,2,3,4,5\n", ("age",), "has no line for a/.*; its first is of b/0.png"),
        (
            "file,age\n" + "".join(f"{'ba'[i % 2]}/{i}.png,{'NA' if i == 4 else i / 2}\n" for i in range(12)),
            ("age", "depth"),
            r"b/4\.png has age 'NA'; the others are numbers \(what is not known is left empty\)",
        ),
        (None, ("agee",), "found 'agee'; .* Did you mean 'age'"),
        ("file,age\n" + "".join(f"{i}.png,{'x' if i == 4 else i / 2}\n" for i in range(12)), ("age.",), "found 'age.'"),
        ("\0file,age\n", ("age",), "needs a first line|no readable table"),
    ],
)
@pytest.mark.filterwarnings("ignore::diffusion.data.DataNote")
def test_tables_that_do_not_fit_are_refused_in_a_line(tmp_path, lines, names, message):
    with pytest.raises(UserError, match=message) as error:
        load_images("folder", path=written(tmp_path, lines=lines), columns=names)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore::diffusion.data.DataNote")
def test_pairs_that_are_not_there_or_hostile_are_refused_in_a_line(tmp_path):
    written(tmp_path)
    path = next((tmp_path / "depth" / "a").glob("*"))
    for content, message in ((b"no image", "depth"), (png_of(60_000, 60_000), "depth"), (None, "has no image for a/")):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            load_images("folder", path=tmp_path, columns=("depth",))
        assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore::diffusion.data.DataNote")
def test_of_images_whose_names_are_alike_each_has_its_own_pair_and_line(tmp_path):
    def save(place, value):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.fromarray(np.array([[value, value], [value, 0]], np.uint8)).save(tmp_path / place)

    def refused(names, message):
        with pytest.raises(UserError, match=message) as error:
            load_images("folder", path=tmp_path, columns=names)
        assert "\n" not in str(error.value)

    kept = [f"{i}.png" for i in range(2, 8)]
    for i, place in enumerate(("1.bmp", "1.png", *kept), 1):
        save(place, i)
        save(f"c/{place}", 100 + i)
    (tmp_path / "c/1.aaa.json").write_text("{}")
    (tmp_path / "c/2.json").write_text("{}")
    data = load_images("folder", path=tmp_path, columns=("c",))
    for split in ("train", "validation", "test"):
        images = getattr(data, split)[:, 0, 0, 0]
        assert torch.equal(data.columns["c"][split].values[:, 0, 0, 0].long(), images.long() + 100)
    (tmp_path / "c/1.png").unlink()
    refused(("c",), r"c/1\.bmp: is that of 1\.(bmp and of 1\.png|png and of 1\.bmp); each")
    save("c/1.png", 9)
    (tmp_path / "c/3.png").rename(tmp_path / "c/3.bmp")
    save("c/3.tif", 9)
    refused(("c",), r"c: has 2 images for 3\.png: 3\.bmp, 3\.tif; needs one, or 3\.png itself")

    save("a/2.png", 50)
    (tmp_path / "labels.csv").write_text("file,age\n1.bmp,1.5\n1.png,2.5\n" + "".join(f"{p},0.5\n" for p in kept))
    refused(("age", "c"), r"labels\.csv: 2\.png is the name of 2 images; a/2\.png needs a line of its own")


@pytest.mark.parametrize(("unit", "mean"), [(1e7, 0.0), (1e-7, 3.0), (1e7, -5e9)])
def test_the_scale_of_each_entry_is_its_own_whatever_the_units_of_the_others(tmp_path, unit, mean):
    """Beside an entry in units 1e7 apart, and a constant one, which is left as it is; of channels, too."""
    draws = np.random.default_rng(0)
    c = np.stack([draws.normal(size=40), mean + unit * draws.normal(size=40), np.full(40, 0.1)], 1)
    field = np.repeat(c[:, :, None], 3, 2)
    np.savez(tmp_path / "t.npz", x=draws.normal(size=(40, 2, 3)), c=c, field=field)
    data = load_array(tmp_path / "t.npz", columns=("c", "field"))
    for part in parts_of(("c", "field"), data):
        values = data.columns[part.name]["train"].values.numpy()
        std = values.std((0, *range(2, values.ndim)))
        assert part.std == pytest.approx((std[0], std[1], 1.0), rel=1e-6)


@pytest.mark.parametrize("kind", FORMATS)
def test_no_pickle_is_run_for_a_column(tmp_path, kind):
    refuses_a_pickle(tmp_path, "x.npz", lambda path: load_array(path, columns=("c",)), kind)
    with np.errstate(all="ignore"):
        np.savez(tmp_path / "y.npz", x=np.zeros((4, 2)), c=np.array([Hostile(tmp_path / "run")] * 4, dtype=object))
    with pytest.raises(UserError):
        load_array(tmp_path / "y.npz", columns=("c",))
    assert not (tmp_path / "run").exists()


def test_masks_are_rectangles_of_a_quarter_to_three_quarters():
    known = rectangles((8, 12), 0, torch.arange(500), 3)
    assert known.shape == (500, 1, 8, 12)
    hidden = ~known[:, 0].bool()
    heights, widths = hidden.any(2).sum(1), hidden.any(1).sum(1)
    assert torch.equal(hidden.sum((1, 2)), heights * widths), "all of a rectangle, and no more"
    assert (int(heights.min()), int(heights.max())) == (2, 6)
    assert (int(widths.min()), int(widths.max())) == (3, 9)
    assert bool(hidden.any(0).all()), "every pixel is hidden in some"
    again = rectangles((8, 12), 0, torch.tensor([7, 3]), 3)
    assert torch.equal(again, known[[7, 3]]), "a function of the key"
    assert not torch.equal(rectangles((8, 12), 0, torch.arange(500), 4), known)


def test_functions_of_the_image_are_of_what_the_model_sees(tmp_path):
    """Of mirrored images, where they are; in [-1, 1]; and each key has its own mask."""
    config = load_config(
        "digits", [f"runs={tmp_path}", "denoiser.condition=[downsample:4,mask,label]", "data.flip=true"]
    )
    data = build_data(config)
    assert [str(part) for part in data.facts.parts] == [
        "label (10 classes)", "downsample:4 (1 x 2 x 2 numbers)", "mask (2 x 8 x 8 numbers)"]  # fmt: skip
    rows = torch.arange(5)
    x = data.images.train[rows].flip(-1)
    label, small, field = Conditions(data.facts.parts, data.images).of("train", rows, x, 1, rows, 2, flip=True)
    seen = (2.0 * x.double() + 1.0) / 17.0 - 1.0
    torch.testing.assert_close(small.double(), seen.reshape(5, 1, 2, 4, 2, 4).mean((3, 5)), rtol=0, atol=1e-6)
    torch.testing.assert_close(field.double(), masked(seen, rectangles((8, 8), 1, rows, 2)).double(), rtol=0, atol=1e-6)
    assert torch.equal(label, data.images.train_labels[rows])
    facts = json.loads(data.facts.to_json())
    assert type(data.facts).from_json(json.dumps(facts)) == data.facts


def test_fields_are_mirrored_with_their_images(tmp_path):
    written(tmp_path)
    for path in [*tmp_path.glob("?/*.png"), *tmp_path.glob("depth/?/*.jpg")]:
        ramp = np.tile(np.arange(4, dtype=np.uint8) * 60, (4, 1))
        ramp[0, 0] = int(path.stem)
        Image.fromarray(ramp).save(path, **({"quality": 100} if path.suffix == ".jpg" else {}))
    from diffusion.training.data_module import TrainingBatches

    given = ("data.name=folder", f"data.path={tmp_path}", "data.flip=true", "denoiser.condition=[depth]")
    config = load_config("digits", [*given, "trainer.batch_size=16"])
    batch = TrainingBatches(build_data(config), config).part(0)
    x, (depth,) = batch["x"][:, 0, 2].float(), batch["condition"]
    mirrored = x[:, 0] > x[:, 3]
    assert 0 < int(mirrored.sum()) < 16
    assert torch.equal(depth[:, 0, 2, 0] > depth[:, 0, 2, 3], mirrored)


def test_what_is_left_out_or_numbered_anew_is_told(tmp_path):
    folder = written(tmp_path)
    rows = [line.split(",") for line in (folder / "labels.csv").read_text().splitlines()]
    rows = [rows[0], *([file, age, kind, str(10 + int(score)), *pose] for file, age, kind, score, *pose in rows[1:])]
    (folder / "labels.csv").write_text("\n".join(map(",".join, [*rows, ["gone.png", *rows[1][1:]]])))
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "depth" / "gone.png")
    with pytest.warns(DataNote) as notes:
        data = load_images("folder", path=folder, columns=("score", "depth"))
    told = " ".join(str(note.message) for note in notes)
    assert "labels.csv: 1 of its 13 lines are of no image, e.g. gone.png" in told
    assert "depth: 1 of its 13 images have the name of no image of the data" in told
    assert "0 is 10, 1 is 11, 2 is 12" in told
    assert told.count("of no image, e.g.") == 1
    assert str(data.provenance["notes"]).count("of no image, e.g.") == 1
    np.savez(tmp_path / "t.npz", x=np.eye(20) / 2, stars=np.arange(20) % 5 + 1)
    with pytest.warns(DataNote, match="'stars' holds 5 numbers from 1 to 5"):
        load_array(tmp_path / "t.npz", columns=("stars",))


@pytest.mark.filterwarnings("ignore::diffusion.data.DataNote")
def test_words_among_whole_numbers_are_names_and_told(tmp_path):
    names = [f"{'a' if i % 2 else 'b'}/{i}.png" for i in range(12)]
    lines = "file,grade\n" + "".join(f"{name},{'?' if i == 4 else i % 3}\n" for i, name in enumerate(names))
    data = load_images("folder", path=written(tmp_path, lines=lines), columns=("grade", "depth"))
    assert data.columns["grade"]["train"].names == ("0", "1", "2", "?")
    assert "'grade' holds numbers and words, e.g. ?; all are taken for the names" in str(data.provenance["notes"])


@pytest.mark.filterwarnings("ignore::diffusion.data.DataNote")
def test_paired_images_of_16_bits_are_read_as_those_of_the_data(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 2**12, (2, 12, 4, 4)).astype(np.uint16)
    for place, images in zip((tmp_path, tmp_path / "pair"), pixels, strict=True):
        place.mkdir(exist_ok=True)
        for i, image in enumerate(images):
            Image.fromarray(image).save(place / f"{i}.png")
    with pytest.raises(UserError, match=r"data\.bits=12"):
        load_images("folder", path=tmp_path, columns=("pair",))
    for how, levels, shift in (({"bits": 12}, 256, 4), ({"bits": 12, "levels": "all"}, 4096, 0)):
        data = load_images("folder", path=tmp_path, columns=("pair",), **how)
        column = data.columns["pair"]["train"]
        assert column.levels == levels
        rows = [int(name.removesuffix(".png")) for name in data.train_names]
        assert torch.equal(column.values[:, 0].long(), torch.from_numpy((pixels[1, rows] >> shift).astype(np.int64)))
        field = Conditions((parts_of(("pair",), data)), data).of(
            "train", torch.arange(len(rows)), data.train, 0, torch.arange(len(rows))
        )[0]
        assert float(field.min()) >= -1.0
        assert float(field.max()) <= 1.0


def test_a_table_of_another_separator_and_of_endless_numbers(tmp_path):
    with pytest.raises(
        UserError, match=r"labels\.csv: the entries of its lines are separated by ';'; accepted: commas"
    ):
        load_images("folder", path=written(tmp_path / "a", lines="file;age\n1.png;3\n"), columns=("age",))
    names = [f"{'a' if i % 2 else 'b'}/{i}.png" for i in range(12)]
    lines = "file,id\n" + "".join(f"{name},{'9' * (5000 + i % 2)}\n" for i, name in enumerate(names))
    data = load_images("folder", path=written(tmp_path / "b", lines=lines), columns=("id", "depth"))
    assert data.columns["id"]["train"].size == 2


def test_the_data_are_no_condition_of_themselves(tmp_path):
    np.savez(tmp_path / "t.npz", x=np.eye(20), c=np.eye(20))
    with pytest.raises(UserError, match=r"denoiser\.condition: found 'x'; it is the data of .*t\.npz, which has x, c"):
        load_array(tmp_path / "t.npz", columns=("x",))


@pytest.mark.parametrize("scale", [1e-40, 1e200])
def test_units_beyond_what_networks_compute_in_are_refused(tmp_path, scale):
    np.savez(tmp_path / "t.npz", x=np.eye(20) / 2, c=scale * np.random.default_rng(0).normal(size=20))
    data = load_array(tmp_path / "t.npz", columns=("c",))
    with pytest.raises(UserError, match=r"denoiser\.condition: 'c' has means or deviations beyond 1e-30 to 1e\+30"):
        parts_of(("c",), data)


def test_a_column_called_label_is_the_class_of_images_in_no_folders_of_classes(tmp_path):
    """Where it is asked for; folders of classes come first, and what is no class of each image is told in a line."""
    for i in range(12):
        Image.fromarray(np.full((4, 4), 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
    table = tmp_path / "labels.csv"
    table.write_text(
        "file,label,age\n" + "".join(f"{i}.png,{'cat' if i % 3 else 'dog'},{i + 0.5}\n" for i in range(12))
    )
    options = ("data.name=folder", f"data.path={tmp_path}")
    for asked in ("denoiser.condition=[label]", "denoiser.conditional=true", "denoiser.condition=[age,label]"):
        data = build_data(load_config("digits", [*options, asked])).images
        assert (data.num_classes, data.provenance["classes"]) == (2, "cat, dog")
        assert "passed over" not in str(data.provenance), "labels.csv is read"
        for split in ("train", "validation", "test"):
            number = getattr(data, split)[:, 0, 0, 0] // 20
            assert torch.equal(getattr(data, f"{split}_labels"), (number % 3 == 0).long())
    assert build_data(load_config("digits", [*options])).images.num_classes == 0, "as before, where it is not asked for"

    def told():
        with pytest.raises(UserError) as caught:
            load_images("folder", path=tmp_path, columns=("label",))
        return str(caught.value)

    whole = table.read_text()
    table.write_text(whole.replace("3.png,dog", "3.png,"))
    assert "'label', the class of the data, is empty for 1 of 12 images; fill it in, or call it otherwise" in told()
    table.write_text("file,label\n" + "".join(f"{i}.png,{i / 2}\n" for i in range(12)))
    assert "'label', the class of the data, holds numbers with a point; call it otherwise" in told()
    (tmp_path / "label").mkdir()
    assert "call it otherwise to condition on its images" in told()
    written(tmp_path / "classes", lines="file,label\na/1.png,x\n")
    assert load_images("folder", path=tmp_path / "classes", columns=("label", "depth")).num_classes == 2
