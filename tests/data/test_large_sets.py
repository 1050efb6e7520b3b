"""Sets of many files: tar shards, a cache of decoded images, files that are skipped; always the same splits."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.data import load_images
from diffusion.data.files import decoded_cache
from diffusion.data.files.image_files import load_files
from diffusion.errors import UserError

# Images of one value each, and .json files in shards: told, and not what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore::diffusion.data.DataNote")


def png(value: int, mode: str = "L", size: tuple[int, int] = (3, 2)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, value if mode == "L" else (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def folder_of(root: Path, count: int = 40) -> Path:
    root.mkdir(exist_ok=True)
    for i in range(count):
        (root / f"{i:03d}.png").write_bytes(png(i))
    return root


def values(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_shards_with_classes_and_splits(tmp_path: Path) -> None:
    value = 0
    for split, count in (("train", 2), ("test", 1)):
        for number in range(count):
            members = {}
            for i in range(5):
                members |= {
                    f"{i:06d}.png": png(value),
                    f"{i:06d}.cls": str(7 * (i % 2)).encode(),
                    f"{i:06d}.json": b"{}",
                }
                value += 1
            shard(tmp_path / f"{split}-{number:06d}.tar", members)
    data = load_images("folder", tmp_path, validation=2)
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 2, 5)
    assert values(data.test) == [10, 12, 14, 11, 13], "sorted by name: by class first"
    assert data.num_classes == 2
    for images, labels in ((data.train, data.train_labels), (data.test, data.test_labels)):
        assert labels is not None
        assert labels.tolist() == [value % 5 % 2 for value in values(images)]
    assert data.provenance["classes"] == "0, 7"


def test_one_shard_without_classes_is_a_pool(tmp_path: Path) -> None:
    raw = load_files(shard(tmp_path / "pictures.tar", {f"{i}.png": png(i) for i in range(4)}))
    assert (values(raw.images), raw.labels, raw.parts) == ([0, 1, 2, 3], None, {"train": range(4)})
    several = tmp_path / "several"
    for number in range(2):
        shard(several / f"{number:04d}.tar", {"a.png": png(number)})  # the same key in each
    raw = load_files(several)
    assert (values(raw.images), raw.labels, len(set(raw.keys))) == ([0, 1], None, 2)
    folders = shard(tmp_path / "folders.tar", {"cat/1.png": png(1), "dog/1.png": png(2)})
    assert load_files(folders).class_names == ("cat", "dog")


def _link(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name, kind in (("a.png", tarfile.SYMTYPE), ("b.png", tarfile.LNKTYPE), ("c.png", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/hostname"
            archive.addfile(member)


def test_what_a_shard_may_not_hold(tmp_path: Path) -> None:
    for name in ("../a.png", "/a.png", "x/../../a.png"):
        with pytest.raises(UserError, match=r"absolute path or '\.\.'"):
            load_files(shard(tmp_path / "s.tar", {"ok.png": png(1), name: png(2)}))
    with pytest.raises(UserError, match="a class is a whole number"):
        load_files(shard(tmp_path / "s.tar", {"1.png": png(1), "1.cls": b"cat"}))
    _link(tmp_path / "links.tar")
    with pytest.raises(UserError, match="no image found"):  # links and devices are none
        load_files(tmp_path / "links.tar")
    good = shard(tmp_path / "s.tar", {f"{i}.png": png(i) for i in range(3)}).read_bytes()
    for bad in (b"no tar", good[:1000], b"\x1f\x8b" + good):
        (tmp_path / "bad.tar").write_bytes(bad)
        with pytest.raises(UserError, match=r"bad\.tar") as error:
            load_files(tmp_path / "bad.tar")
        assert "\n" not in str(error.value)


def test_a_file_that_is_no_image_is_named_refused_or_skipped(tmp_path: Path) -> None:
    folder_of(tmp_path / "set")
    whole = load_images("folder", tmp_path / "set")
    (tmp_path / "set" / "017.png").write_bytes(b"not a picture")
    (tmp_path / "set" / "030.png").write_bytes(png(30)[:40])
    with pytest.raises(UserError, match=r"017\.png: cannot be read"):
        load_images("folder", tmp_path / "set")
    with pytest.warns(UserWarning, match=r"2 file\(s\) skipped; the first: .*\.png"):
        data = load_images("folder", tmp_path / "set", unreadable="skip")
    assert data.provenance["skipped"] == 2
    for split in ("train", "validation", "test"):  # nothing else moves to another split
        expected = [value for value in values(getattr(whole, split)) if value not in (17, 30)]
        assert values(getattr(data, split)) == expected
    with pytest.raises(UserError, match=r"data\.unreadable"):
        load_images("folder", tmp_path / "set", unreadable="ignore")
    for path in (tmp_path / "set").iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="none of the 40 images can be read"):
        load_images("folder", tmp_path / "set", unreadable="skip")


def same(ours, theirs) -> None:
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(ours, split), getattr(theirs, split))
    assert ours.provenance == theirs.provenance


def test_the_cache_is_of_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    root = folder_of(tmp_path / "set")
    (root / "020.png").write_bytes(png(20, "RGB"))  # what was read before it is grey
    direct = load_images("folder", root)
    same(load_images("folder", root, cache=cache), direct)
    with monkeypatch.context() as patch:
        patch.setattr(decoded_cache, "decode_all", lambda *_: pytest.fail("decoded again"))
        mapped = load_images("folder", root, cache=cache)
    same(mapped, direct)
    assert mapped.train.untyped_storage().data_ptr() == mapped.test.untyped_storage().data_ptr(), "views, not copies"
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".npy"]
    mapped.train.zero_()  # reaches no file
    same(load_images("folder", root, cache=cache), direct)

    (root / "003.png").write_bytes(png(99))
    changed = load_images("folder", root, cache=cache)
    assert 99 in values(torch.cat((changed.train, changed.validation, changed.test)))
    same(load_images("folder", root, cache=cache, size=2), load_images("folder", root, size=2))
    for path in cache.glob("*.json"):
        path.write_text("[")
    for path in cache.glob("*.npy"):
        path.write_bytes(path.read_bytes()[:200])
    same(load_images("folder", root, cache=cache), load_images("folder", root))
    (root / "005.png").write_bytes(b"nothing")
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 file"):
            skipped = load_images("folder", root, unreadable="skip", cache=cache)
        assert 5 not in values(torch.cat((skipped.train, skipped.validation, skipped.test)))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache: .* cannot be written"):
        load_images("folder", root, unreadable="skip", cache=tmp_path / "file" / "below")


def test_every_mode_and_size_by_explicit_resize_and_crop(tmp_path: Path) -> None:
    ramp = np.arange(35, dtype=np.uint16).reshape(5, 7) * 1000
    pictures = {
        "grey": Image.fromarray((ramp >> 8).astype(np.uint8)), "sixteen": Image.fromarray(ramp),
        "colour": Image.new("RGB", (9, 4), (1, 2, 3)), "alpha": Image.new("RGBA", (4, 9), (1, 2, 3, 0)),
    }  # fmt: skip
    for name, image in pictures.items():
        image.save(tmp_path / f"{name}.png")
    with pytest.raises(UserError, match=r"data\.size="):
        load_files(tmp_path)
    raw = load_files(tmp_path, size=4)  # in the order of the names: alpha, colour, grey, sixteen
    assert raw.images.shape == (4, 3, 4, 4)
    assert raw.images[0].eq(255).all(), "transparent is white"
    assert raw.images[1, :, 0, 0].tolist() == [1, 2, 3]
    assert torch.equal(raw.images[2], raw.images[3]), "16 bits by their high byte"
