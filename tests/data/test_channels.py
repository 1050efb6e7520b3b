"""Files with all their channels: opacity, the bands of a TIFF, and 16 bits in colour, against what was written."""

import sys
import warnings

import numpy as np
import pytest
import tifffile
import torch
from made_runs import make_run
from PIL import Image
from tiny_configs import digits_config

from diffusion.commands.app import command, sample
from diffusion.commands.demo.images import kept_sample
from diffusion.data import DataNote, load_images
from diffusion.data.files.channels import has_opacity, upright
from diffusion.data.files.raw_images import OPACITY
from diffusion.errors import UserError
from diffusion.models.build import build_data

N = 12


def values(channels, dtype=np.uint8, top=None, shape=(6, 7)):
    top = np.iinfo(dtype).max if top is None else top
    return np.random.default_rng(0).integers(0, top + 1, (N, *shape, channels)).astype(dtype)


def folder(tmp_path, rows, write, ending):
    (tmp_path / "images").mkdir()
    for i, row in enumerate(rows):
        write(tmp_path / "images" / f"{i:03d}.{ending}", row)
    return tmp_path / "images"


def bands(path, row):
    tifffile.imwrite(path, row, planarconfig="contig", photometric="minisblack")


def png(path, row):
    Image.fromarray(row[..., 0] if row.shape[2] == 1 else row).save(path)


def rows_of(images):
    """All images in the order of their names: splits are found by value."""
    return {tuple(x.flatten().tolist()) for part in (images.train, images.validation, images.test) for x in part}


def expected(rows):
    return {tuple(torch.from_numpy(row.astype(np.int64)).permute(2, 0, 1).flatten().tolist()) for row in rows}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_opacity_is_kept_on_request(channels, tmp_path):
    path = folder(tmp_path, rows := values(channels), png, "png")
    images = load_images("folder", path, channels="all", cache=tmp_path / "cache")
    assert images.shape == (channels, 6, 7)
    assert rows_of(images) == expected(rows)
    seen = load_images("folder", path, cache=tmp_path / "cache")  # not what was cached
    assert seen.shape[0] == (1 if channels < 3 else 3)
    if channels == 4:
        white = rows[..., :3] * (rows[..., 3:] / 255.0) + 255.0 - rows[..., 3:]
        assert float(seen.train.double().mean()) == pytest.approx(white.mean(), abs=4)


def test_opacity_is_that_of_files_that_are_kept(tmp_path):
    path = folder(tmp_path, values(4), png, "png")
    (path / "000.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="skipped"):
        images = load_images("folder", path, channels="all", unreadable="skip")
    assert OPACITY in images.provenance

    def gone():
        raise OSError

    assert not has_opacity(gone)


def test_a_sample_that_is_kept_on_the_page_has_all_its_channels(tmp_path):
    for channels, mode in ((1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")):
        with Image.open(kept_sample(torch.rand(channels, 8, 8) * 2.0 - 1.0, tmp_path)) as image:
            assert (image.mode, image.size) == (mode, (8, 8))


@pytest.mark.parametrize(("dtype", "planar"), [(np.uint8, "contig"), (np.uint16, "separate")])
def test_all_bands_of_a_tiff(dtype, planar, tmp_path):
    def write(path, row):
        stored = row if planar == "contig" else row.transpose(2, 0, 1)
        tifffile.imwrite(path, stored, planarconfig=planar, photometric="minisblack", compression="zlib")

    path = folder(tmp_path, rows := values(7, dtype), write, "tif")
    deep = {} if dtype == np.uint8 else {"levels": "all"}
    images = load_images("folder", path, channels="all", **deep)
    assert (images.shape, images.levels) == ((7, 6, 7), 256 if dtype == np.uint8 else 65_536)
    assert rows_of(images) == expected(rows)
    if deep:
        high = load_images("folder", path, channels="all")
        assert rows_of(high) == expected(rows >> 8)
    with pytest.raises(UserError, match=r"000\.tif: cannot be read .*7 bands; data\.channels=all reads them"):
        load_images("folder", path)


def test_colour_tiffs_of_16_bits_are_read_whole_and_upright(tmp_path):
    rows = values(3, np.uint16)

    def write(path, row):
        extra = [(274, 3, 1, 6, False)]  # its rows are columns, from the right
        tifffile.imwrite(path, row, photometric="rgb", extratags=extra)

    images = load_images("folder", folder(tmp_path, rows, write, "tif"), levels="all")
    assert images.levels == 65_536
    assert rows_of(images) == expected([np.rot90(row, -1) for row in rows])


def test_upright_undoes_what_pillow_undoes():
    x = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    for orientation in range(1, 9):
        image = Image.fromarray(x[..., 0])
        exif = Image.Exif()
        exif[274] = orientation
        turned = Image.open(_saved(image, exif))
        from PIL import ImageOps

        assert np.array_equal(np.asarray(ImageOps.exif_transpose(turned)), upright(x, orientation)[..., 0])


def _saved(image, exif):
    import io

    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    return buffer


@pytest.mark.parametrize("channels", [2, 4])
def test_samples_with_opacity_are_pictures_with_it(channels, tmp_path, monkeypatch, capsys):
    """Read, drawn, written and read again; bands that are no opacity are no pictures."""
    monkeypatch.chdir(tmp_path)
    path = folder(tmp_path, values(channels, shape=(8, 8)), png, "png")
    (tmp_path / "bands").mkdir()
    for i, row in enumerate(values(channels, shape=(8, 8))):
        bands(tmp_path / "bands" / f"{i}.tif", row)
    for name, source in (("seen", path), ("bands", tmp_path / "bands")):
        config = digits_config(tmp_path, "data.name=folder", f"data.path={source}", "data.channels=all", f"name={name}")
        facts = build_data(config).facts
        assert ("opacity" in facts.provenance) == (name == "seen")
        run = make_run(tmp_path / "runs", config, facts)
        draw = ("--run", str(run), "--n", "2", "--steps", "2", "--device", "cpu", "--out")
        assert command(sample, [*draw, f"{name}-out"]) == (0 if name == "seen" else 2), capsys.readouterr().err
        assert command(sample, [*draw, f"{name}.npz"]) == 0
    with np.load("seen.npz") as arrays, Image.open("seen-out/000001.png") as image:
        assert image.mode == ("LA" if channels == 2 else "RGBA")
        assert np.array_equal(np.asarray(image), arrays["images"][1])
    assert command(sample, ["--from", "seen-out/000001.png", "--out", "again.png"]) == 0
    assert "the same pixels" in capsys.readouterr().out


def test_data_of_12_bits_are_said(tmp_path):
    path = folder(tmp_path, rows := values(5, np.uint16, 4095), bands, "tif")
    with pytest.raises(UserError, match=r"data\.bits=12 takes 0 to 4095"):
        load_images("folder", path, channels="all", levels="all")
    images = load_images("folder", path, channels="all", levels="all", bits=12)
    assert images.levels == 4096
    assert rows_of(images) == expected(rows)
    np.save(tmp_path / "x.npy", rows)
    with pytest.raises(UserError, match=r"no value above 40\d\d of 65535: data\.bits=12 takes 0 to 4095"):
        load_images("folder", tmp_path / "x.npy", levels="all")
    assert load_images("folder", tmp_path / "x.npy", levels="all", bits=12).levels == 4096
    with pytest.warns(DataNote, match=r"no value above 40\d\d of 65535: the images are dark"):
        assert load_images("folder", tmp_path / "x.npy", levels="all", bits=16).levels == 65536


def test_what_does_not_go_is_one_line(tmp_path, monkeypatch):
    path = folder(tmp_path, values(4), png, "png")
    png(path / "zzz.png", values(3)[0])
    with pytest.raises(UserError, match=r"differ in channels: .*000\.png has 4, .*zzz\.png has 3"):
        load_images("folder", path, channels="all")
    (path / "zzz.png").unlink()
    whole = tmp_path / "bands"
    whole.mkdir()
    for name, row in zip("acde", values(6), strict=False):
        bands(whole / f"{name}.tif", row)
    (whole / "b.tif").write_bytes((whole / "a.tif").read_bytes()[:-60])
    with pytest.raises(UserError, match=r"b\.tif: cannot be read as an image"):
        load_images("folder", whole, channels="all")
    (whole / "b.tif").unlink()
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UserError, match="tifffile, which is not installed; "):
        load_images("folder", whole, channels="all")
    with pytest.raises(UserError, match=r"data\.channels: 'every' is not known"), warnings.catch_warnings():
        load_images("folder", path, channels="every")
