"""Weights of files that others wrote: found, named plainly, and nothing of the file run."""

import io
import os
import pickle
import struct
import tracemalloc
import zipfile

import pytest
import torch
from hostile_files import FORMATS, FUZZ, Hostile, mutated, one_line, raw_zip, saved
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from diffusion import read_weights
from diffusion.errors import UserError

REBUILD = vars(torch)["_utils"]._rebuild_tensor_v2


class Block(nn.Module):
    """What a file holds as a whole is of a class that its reader need not have."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.width = 3


NET = Block()
STATE = NET.state_dict()
AVERAGE = {name: value + 1 if value.is_floating_point() else value for name, value in STATE.items()}


def behind(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []}
SHADOW = [value.detach() + 1 for value in NET.parameters()]
OF_SHADOW = {name: AVERAGE[name] if "running" not in name else value for name, value in STATE.items()}
FILES = {
    "a state dict": (STATE, STATE),
    "of several GPUs": (behind("module.", STATE), STATE),
    "of several wrappers": ({"state_dict": behind("module._orig_mod.model.", STATE)}, STATE),
    "a checkpoint": ({"model": STATE, "optimizer": OPTIMIZER, "step": 3}, STATE),
    "a checkpoint with its average": ({"model": STATE, "ema": AVERAGE, "opt": OPTIMIZER, "args": {"lr": 0.1}}, AVERAGE),
    "an average in its own checkpoint": ({"state_dict": STATE, "model_ema": {"module": AVERAGE, "n": 2}}, AVERAGE),
    "an average beside the model": ({**behind("online_model.", STATE), **behind("ema_model.", AVERAGE)}, AVERAGE),
    "averages in the order of the parameters": (
        {"model": behind("module.", STATE), "ema": {"decay": 0.9, "num_updates": 7, "shadow_params": SHADOW}},
        OF_SHADOW,
    ),
    "a training checkpoint of this package": (
        {"state_dict": STATE, "weight_average": {"averages": [AVERAGE], "half_lives": [2]}, "model": {"config": "x"}},
        AVERAGE,
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_weights_are_found(tmp_path, kind):
    content, expected = FILES[kind]
    torch.save(content, tmp_path / "x.pt")
    same(read_weights(tmp_path / "x.pt"), expected)
    Block().load_state_dict(read_weights(tmp_path / "x.pt"))


def test_safetensors_and_the_old_format(tmp_path):
    save_file(behind("module.", STATE), tmp_path / "x.safetensors")
    found = read_weights(tmp_path / "x.safetensors")
    assert found.keys() == STATE.keys()
    torch.save({"model": STATE}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    same(read_weights(tmp_path / "x.pth"), STATE)


def test_a_prefix(tmp_path):
    both = {**behind("model.diffusion_model.", STATE), **behind("vae.", AVERAGE)}
    torch.save({"state_dict": both}, tmp_path / "x.pt")
    same(read_weights(tmp_path / "x.pt", "state_dict.model.diffusion_model."), STATE)
    with pytest.raises(UserError, match=r"prefix 'state_dict\.vea\.'.*Did you mean 'state_dict\.vae\."):
        read_weights(tmp_path / "x.pt", "state_dict.vea.")


def test_a_whole_module_is_read_without_its_class(tmp_path, monkeypatch):
    torch.save({"model": NET, "ema": NET.double(), "epoch": 3}, tmp_path / "x.pt")
    NET.float()
    ran = []
    monkeypatch.setattr(Block, "__setstate__", lambda self, state: ran.append(state), raising=False)
    found = read_weights(tmp_path / "x.pt")
    assert {name: value.float().tolist() for name, value in found.items()} == {
        name: value.float().tolist() for name, value in STATE.items()
    }
    assert not ran
    torch.save(NET, tmp_path / "y.pt")
    assert read_weights(tmp_path / "y.pt").keys() == STATE.keys()


def test_averages_that_do_not_go_with_the_weights_in_one_way(tmp_path):
    twice = {"a": torch.zeros(2), "b": torch.zeros(2)}
    torch.save({"model": twice, "ema": {"shadow_params": [torch.ones(2)]}}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="in one way alone; prefix="):
        read_weights(tmp_path / "x.pt")
    same(read_weights(tmp_path / "x.pt", "model."), twice)
    torch.save({"ema": {"shadow_params": [torch.ones(2)]}}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="averages without names"):
        read_weights(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n", "is a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html><head><title>Sign in</title>", "is a web page"),
        (b"<HTML><body>404</body></HTML>", "is a web page"),
        (b"", "not a file of torch.save"),
        (b"abc" * 100, "a text file, which begins .abcabc"),
        (b"\x01bc" * 100, "refused|not a file of torch.save"),
        (saved({"epoch": 3, "names": ["a"]}), "holds no weights"),
        (saved([1, 2]), "holds no weights"),
    ],
)
def test_what_is_no_file_of_weights(tmp_path, content, told):
    for name in ("x.pt", "x.bin"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=told) as error:
            read_weights(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such file"):
        read_weights(tmp_path / "y.pt")
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_weights(tmp_path / "x.safetensors")
    assert "\n" not in str(error.value)


class Running:
    """Code that a pickle asks for: on reduction, on a state, on a call."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,), {"a": 1}


@pytest.mark.parametrize("kind", FORMATS)
def test_no_pickle_is_executed(tmp_path, kind):
    for name in ("x.pt", "x.ckpt", "x.safetensors"):
        (tmp_path / name).write_bytes(FORMATS[kind](Hostile(tmp_path / "executed")))
        assert one_line(read_weights, tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_code_beside_a_module_is_not_run(tmp_path):
    torch.save({"model": NET, "hook": Running(tmp_path / "executed")}, tmp_path / "x.pt")
    assert read_weights(tmp_path / "x.pt").keys() == STATE.keys()
    assert not (tmp_path / "executed").exists()


def archive(*arguments):
    """An archive whose pickle makes a tensor of a storage of four numbers with these arguments."""

    class Storage:
        pass

    class Tensor:
        def __reduce__(self):
            return REBUILD, (Storage(), *arguments)

    class Pickler(pickle._Pickler):
        def persistent_id(self, thing):
            return ("storage", torch.FloatStorage, "0", "cpu", 4) if isinstance(thing, Storage) else None

    buffer, content = io.BytesIO(), io.BytesIO()
    Pickler(content, protocol=2).dump({"model": {"w": Tensor(), "shell": NET}})
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("archive/data.pkl", content.getvalue())
        made.writestr("archive/version", "3\n")
        made.writestr("archive/data/0", bytes(16))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "arguments",
    [
        (0, (10**12,), (1,), False, {}),
        (0, (10**9,), (0,), False, {}),
        (0, (4,), (10**9,), False, {}),
        (3, (4,), (1,), False, {}),
        (-1, (2,), (1,), False, {}),
    ],
)
def test_tensors_outside_of_their_storage(tmp_path, arguments):
    (tmp_path / "x.pt").write_bytes(archive(*arguments))
    with pytest.raises(UserError):
        read_weights(tmp_path / "x.pt")


def text(string):
    return b"X" + struct.pack("<I", len(string)) + string.encode()


def integer(number):
    return b"J" + struct.pack("<i", number)


def storage(key="0"):
    """The opcodes of a storage of four numbers."""
    return b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + integer(4) + b"tQ"


def view(size=4, stride=1, offset=0):
    """The opcodes of offset, size and stride."""
    return integer(offset) + b"(" + integer(size) + b"t(" + integer(stride) + b"t"


def tensor(**shape):
    made = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage() + view(**shape)
    return made + b"\x89ccollections\nOrderedDict\n)RtR"


UNKNOWN = b"cfoo\nBar\n0"  # torch's own reader refuses the class
PLAIN = b"}" + text("w") + tensor() + b"s"


def opcodes(path, content):
    """Write an archive with a pickle of these opcodes and a storage of four numbers."""
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("archive/data.pkl", b"\x80\x02" + content + b".")
        made.writestr("archive/version", "3\n")
        made.writestr("archive/data/0", bytes(16))


def test_what_is_written_opcode_by_opcode_is_read(tmp_path):
    for content in (PLAIN, UNKNOWN + PLAIN):
        opcodes(tmp_path / "x.pt", content)
        same(read_weights(tmp_path / "x.pt"), {"w": torch.zeros(4)})


LONG = text("k" * 1001)
# A list of 2,000 pairs, which 2,000 dictionaries are made of.
COPIES = (
    b"](" + b"".join(integer(n) + integer(n) + b"\x86" for n in range(2000)) + b"eq\x010"
    b"ccollections\nOrderedDict\nq\x020(" + 2000 * b"h\x02h\x01\x85R" + b"l0"
)  # fmt: skip
# A tuple with 2^60 entries, where each of two is the same.
TUPLES = b")" + 60 * b"q\x010h\x01h\x01\x86"
HOSTILE = {
    "copies of one list": (COPIES + PLAIN, "copy more than"),
    "a key of tuples in each other twice": (
        UNKNOWN + b"}" + TUPLES + b"Ns0" + PLAIN,
        "a tuple of",
    ),
    "the same in pairs of a dictionary": (
        b"ccollections\nOrderedDict\n(]" + TUPLES + b"N\x86atR0" + PLAIN,
        "a tuple of",
    ),
    "copies that torch's own reader refuses": (UNKNOWN + COPIES + PLAIN, "copy more than"),
    "an index of the memo beyond the pickle": (UNKNOWN + b"}r" + struct.pack("<I", 2**22) + PLAIN[1:], "kept at index"),
    "the same in text": (UNKNOWN + b"}p4194304\n" + PLAIN[1:], "kept at index"),
    "a tensor that grows": (
        UNKNOWN + b"}" + text("w") + tensor() + b"(" + storage() + view(2**20) + b"tbs",
        "changed after it is made",
    ),
    "a storage that grows": (
        UNKNOWN + b"}" + text("w") + storage() + b"(" + storage() + view(2**20) + b"tbs",
        "changed after it is made",
    ),
    "a tensor whose entries are set": (UNKNOWN + b"}" + text("w") + tensor() + integer(0) + integer(1) + b"ss", "x.pt"),
    "a long name": (b"}" + LONG + tensor() + b"s", "a name of 1001 characters"),
    "a long name around others": (UNKNOWN + b"}" + LONG + PLAIN + b"s", "a name of 1001 characters"),
    "an expanded tensor": (b"}" + text("w") + tensor(size=2**29, stride=0) + b"s", "more numbers than the file stores"),
    "an expanded tensor of a list": (
        b"}" + text("model") + PLAIN + b"s" + text("shadow_params") + b"]" + tensor(size=5, stride=0) + b"as",
        "do not go with",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_small_file_takes_little_memory(tmp_path, kind):
    content, told = HOSTILE[kind]
    opcodes(tmp_path / "x.pt", content)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=told) as error:
            read_weights(tmp_path / "x.pt")
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    assert "x.pt" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_expanded_averages_without_names(tmp_path):
    torch.save({"model": {"w": torch.zeros(9)}, "shadow_params": [torch.zeros(1).expand(9)]}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="'w' of shape \\(9,\\) has more numbers"):
        read_weights(tmp_path / "x.pt")


@pytest.mark.parametrize("head", [b"", UNKNOWN])
def test_views_of_one_storage_share_it(tmp_path, head):
    opcodes(tmp_path / "x.pt", head + b"}(" + b"".join(text(f"w{i}") + tensor() for i in range(200)) + b"u")
    found = read_weights(tmp_path / "x.pt")
    assert len(found) == 200
    assert len({value.untyped_storage().data_ptr() for value in found.values()}) == 1


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize("weight", [torch.zeros(4, device="meta"), torch.eye(2).to_sparse()])
def test_tensors_without_numbers_of_their_own(tmp_path, weight):
    torch.save({"w": weight}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="'w' is no dense tensor"):
        read_weights(tmp_path / "x.pt")


def test_shells_in_shells_are_not_followed_where_dictionaries_belong(tmp_path):
    """Three ways down at each of 40 levels have no end, though none has an entry."""
    content = b"cfoo\nBar\n)Rq\x00"
    for _ in range(40):
        fields = b"".join(text(name) + b"h\x00" for name in ("_parameters", "_buffers", "_modules"))
        content += b"0cfoo\nBar\n)R}(" + fields + b"ubq\x00"
    opcodes(tmp_path / "x.pt", content)
    with pytest.raises(UserError, match="holds no weights"):
        read_weights(tmp_path / "x.pt")


def test_entries_that_lie_in_each_other(tmp_path):
    """Both records of the archive's directory are of the same bytes."""
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as made:
        made.writestr("archive/data.pkl", b"\x80\x02" + UNKNOWN + PLAIN + b".")
        made.writestr("archive/data/0", bytes(2000))
        made.filelist += [made.filelist[-1]] * 9
    with pytest.raises(UserError, match="entries are larger than the file"):
        read_weights(tmp_path / "x.pt")


def test_dictionaries_without_an_end(tmp_path):
    around: dict[str, object] = {}
    around |= {str(i): around for i in range(10)}
    torch.save({"model": around, "code": Running(tmp_path / "executed")}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="in no known way"):
        read_weights(tmp_path / "x.pt")


def test_an_archive_that_is_compressed(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("archive/data.pkl", pickle.dumps({"a": 1}))
        made.writestr("archive/data/0", bytes(10**7))
    with pytest.raises(UserError, match="compressed"):
        read_weights(tmp_path / "x.pt")


def test_random_bytes_and_mutated_files(tmp_path):
    @FUZZ
    @given(st.sampled_from([saved({"ema": AVERAGE}), saved(NET), raw_zip(b"\x80\x02}.")]).flatmap(mutated))
    def fuzz(data):
        (tmp_path / "x.pt").write_bytes(data)
        one_line(read_weights, tmp_path / "x.pt")

    fuzz()


def test_a_text_is_called_a_text(tmp_path):
    for name in ("config.json", "model.pt", "model.safetensors"):
        (tmp_path / name).write_text('{"width": 3}\n' + "é" * 600, encoding="utf-8")
        with pytest.raises(UserError, match=r"is a text file, which begins '\{\"width\": 3\}', not weights") as error:
            read_weights(tmp_path / name)
        assert name in str(error.value)


def test_containers_that_are_made_of_others_are_read(tmp_path):
    """An OrderedDict of a list, as Python 2 wrote it; and the format before zip archives."""
    pair = text("w") + tensor() + b"\x86"
    opcodes(tmp_path / "x.pt", b"ccollections\nOrderedDict\n](" + pair + b"e\x85R")
    same(read_weights(tmp_path / "x.pt"), {"w": torch.zeros(4)})
    torch.save(STATE, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    same(read_weights(tmp_path / "old.pt"), STATE)


def test_a_prefix_is_a_text(tmp_path):
    torch.save({"a.weight": torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="prefix: found 3; must be what names begin with"):
        read_weights(tmp_path / "x.pt", 3)
