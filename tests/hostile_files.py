"""Files that someone may send: with a pickle that runs code, too large, damaged, or of anything at all."""

import io
import os
import pickle
import struct
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from PIL import Image

from diffusion.errors import UserError

FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Hostile:
    """Unpickled, it makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def raw_zip(pickled):
    """What `torch.save` writes, with a pickle of one's own in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


FORMATS = {
    "a pickle": pickle.dumps,
    "torch's archive": lambda hostile: saved({"state_dict": hostile, "model": hostile, "weight_average": hostile}),
    "torch's old format": lambda hostile: _old(hostile),
    "an archive of its own": lambda hostile: raw_zip(pickle.dumps(hostile)),
    "an array of objects": lambda hostile: npz(images=np.array([hostile, hostile], dtype=object)),
}


def _old(content):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def refuses_a_pickle(folder, name, read, kind):
    """A reader tells of a hostile file in one line, and does not run it."""
    (folder / name).write_bytes(FORMATS[kind](Hostile(folder / "executed")))
    with pytest.raises(UserError) as error:
        read(folder / name)
    assert "\n" not in str(error.value)
    assert not (folder / "executed").exists()


def png_of(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=4) | st.just(torch.zeros(2)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["model", "weight_average", "averages", "config", "data", "x"]), inner)
    ),
    max_leaves=6,
)


@st.composite
def mutated(draw, good: bytes):
    """A good file with a few bytes changed, cut out, doubled, or its end cut off."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 3))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        length = draw(st.integers(1, 12))
        way = draw(st.sampled_from(["change", "cut", "insert", "double", "end"]))
        if way == "change":
            data[at] = draw(st.integers(0, 255))
        elif way == "cut":
            del data[at : at + length]
        elif way == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=length))
        elif way == "double":
            data[at:at] = data[at : at + length]
        else:
            del data[at:]
    return bytes(data)


def one_line(read, argument):
    """Whether the file was read, or refused by one line; whatever else is raised comes out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of what they mend
        try:
            read(argument)
        except UserError as error:
            return "\n" not in str(error)
    return True


def _pictures():
    noise = Image.effect_noise((9, 7), 80)
    ramp = np.arange(63, dtype=np.uint16).reshape(7, 9) * 1000
    found = []
    for image, kind, options in (
        (noise, "PNG", {}), (noise.convert("RGBA"), "PNG", {}), (Image.fromarray(ramp), "PNG", {}),
        (noise.convert("P"), "GIF", {}), (noise, "JPEG", {}), (noise, "TIFF", {"compression": "tiff_lzw"}),
        (noise.convert("RGB"), "WEBP", {}), (noise, "BMP", {}), (noise, "PPM", {}),
    ):  # fmt: skip
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        found.append(buffer.getvalue())
    return found


PICTURES = _pictures()
