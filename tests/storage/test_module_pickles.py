"""Pickles of modules with their source: read without it, whatever is in them."""

import os
import pickle
import pickletools
import struct
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from hostile_files import FORMATS, FUZZ, Hostile, mutated, one_line, refuses_a_pickle
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from published_files import edm_pickle

from diffusion.errors import UserError
from diffusion.storage.module_pickles import read_pickled

ARGUMENTS = {"img_resolution": 8, "model_type": "SongUNet"}
WEIGHTS = {"model.a.weight": torch.arange(6.0).reshape(2, 3), "model.a.freqs": torch.ones(4), "b": torch.zeros(2)}


def ema(path):
    return read_pickled(path, "ema")


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_what_is_in_one(tmp_path, protocol):
    (tmp_path / "x.pkl").write_bytes(edm_pickle("Net", ARGUMENTS, WEIGHTS, tmp_path / "executed", protocol))
    found = ema(tmp_path / "x.pkl")
    assert (found.class_name, found.arguments) == ("Net", ARGUMENTS)
    assert found.tensors.keys() == WEIGHTS.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in WEIGHTS.items())
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_no_pickle_is_executed(tmp_path, kind):
    refuses_a_pickle(tmp_path, "x.pkl", ema, kind)


def test_code_beside_a_network_is_not_run(tmp_path):
    arguments = {"augment_pipe": Hostile(tmp_path / "executed"), "size": 8}
    (tmp_path / "x.pkl").write_bytes(edm_pickle("Net", arguments, WEIGHTS, tmp_path / "source"))
    assert ema(tmp_path / "x.pkl").arguments["size"] == 8
    assert os.listdir(tmp_path) == ["x.pkl"]


def text(string):
    return b"X" + struct.pack("<I", len(string)) + string.encode()


def storage(head=b"", size=4, numbers=bytes(16), numel=4):
    """A storage of `torch.save`'s old format, with opcodes in front of its head."""
    pid = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"J" + struct.pack("<i", numel)
    parts = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {})]
    parts += [b"\x80\x02" + head + pid + b"NtQ.", pickle.dumps(["0"], 2), struct.pack("<q", size) + numbers]
    return b"".join(parts)


def tensor(content, shape=4, stride=1):
    loaded = b"ctorch.storage\n_load_from_bytes\n(B" + struct.pack("<I", len(content)) + content + b"tR"
    view = b"K\x00(J" + struct.pack("<i", shape) + b"t(J" + struct.pack("<i", stride) + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + loaded + view + b"\x89ccollections\nOrderedDict\n)RtR"


def network(entry, before=b""):
    """A pickle of a network with one parameter."""
    state = b"}" + text("_parameters") + b"}" + text("w") + entry + b"ss"
    meta = b"}(" + text("class_name") + text("Net") + text("state") + state + b"u"
    made = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n(" + meta + b"tR"
    return b"\x80\x02" + before + b"}" + text("ema") + made + b"s."


def test_what_is_written_opcode_by_opcode_is_read(tmp_path):
    (tmp_path / "x.pkl").write_bytes(network(tensor(storage())))
    assert torch.equal(ema(tmp_path / "x.pkl").tensors["w"], torch.zeros(4))


ORDERED = b"ccollections\nOrderedDict\n"
FAR = b"Nr" + struct.pack("<I", 2**24) + b"0"
# The bytes of one storage, which 900 are made of; a state of 2,000 entries, of 2,000 objects.
LONG = storage(size=2000, numbers=bytes(8000), numel=2000)
LOADS = b"B" + struct.pack("<I", len(LONG)) + LONG + b"q\x010ctorch.storage\n_load_from_bytes\nq\x020"
LOADS += b"(" + 900 * b"h\x02h\x01\x85R" + b"l0"
STATE = b"}(" + b"".join(text(str(n)) + b"N" for n in range(2000)) + b"uq\x010"
MADE = b"}" + text("state") + b"h\x01sq\x020ctorch_utils.persistence\n_reconstruct_persistent_obj\nq\x030"
NESTED = b")" + 60 * b"q\x010h\x01h\x01\x86"  # a tuple of 2^60 entries
HOSTILE = {
    "copies of one storage": (network(tensor(storage()), LOADS), "copy more than"),
    "copies of one state, of objects of the file": (
        network(tensor(storage()), STATE + MADE + b"(" + 2000 * b"h\x03h\x02\x85R" + b"l0"),
        "copy more than",
    ),
    "copies of one state, set in objects": (
        network(tensor(storage()), STATE + b"cos\nsystem\nq\x020(" + 2000 * b"h\x02)\x81h\x01b" + b"l0"),
        "copy more than",
    ),
    "a key of tuples in each other twice": (network(tensor(storage()), b"}" + NESTED + b"Ns0"), "a tuple of"),
    "the same in a storage": (network(tensor(storage(b"}" + NESTED + b"Ns0"))), "a tuple of"),
    "a key of tuples in each other without end": (
        network(tensor(storage()), b"})" + 200_000 * b"\x85" + b"Ns0"),
        "101 deep",
    ),
    "an index of the memo beyond the pickle": (
        network(tensor(storage()), b"Nr" + struct.pack("<I", 2**24) + b"0"),
        "index",
    ),
    "such an index in a storage": (network(tensor(storage(b"Nr" + struct.pack("<I", 2**24) + b"0"))), "kept at index"),
    "a storage of more numbers than it has": (network(tensor(storage(size=2**40))), "a storage of"),
    "a storage of fewer": (network(tensor(storage(numbers=bytes(8)))), "a storage of"),
    "a class in a storage": (network(tensor(storage(b"cos\nsystem\n0"))), "os.system in a storage"),
    "a tensor outside of its storage": (network(tensor(storage(), shape=5)), "impossible shape"),
    "an expanded tensor": (network(tensor(storage(), shape=4 * 2**20, stride=0)), "impossible shape"),
    "a long dictionary that is copied": (network(tensor(storage()), ORDERED + b"(](" + b"N" * 9 + b"etR0"), "_Fields"),
    "a dictionary with attributes": (
        network(tensor(storage()), ORDERED + b")R}" + text("a") + b"Nsb0"),
        "with attributes",
    ),
    "a reference to outside": (network(tensor(storage()), b"NQ0"), "outside of the file"),
    "a tensor that grows": (network(tensor(storage()) + b"(" + b"NNNtb"), "changed after it is made"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_small_file_takes_little_memory(tmp_path, kind):
    content, told = HOSTILE[kind]
    (tmp_path / "x.pkl").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=told) as error:
            ema(tmp_path / "x.pkl")
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    assert "x.pkl" in str(error.value)
    assert "\n" not in str(error.value)


def test_classes_of_the_reader_cannot_be_changed_by_a_file(tmp_path):
    """The state of what `find_class` gives is set by an operation of its own, also where that is a class."""
    names = (
        ORDERED,
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n",
    )
    for name in (*names, b"ctorch.storage\n_load_from_bytes\n", b"cos\nsystem\n"):
        for state in (b"}" + text("w") + b"Ns", b"N}" + text("__setitem__") + b"Ns\x86"):
            (tmp_path / "x.pkl").write_bytes(network(tensor(storage()), name + state + b"b0"))
            one_line(ema, tmp_path / "x.pkl")
    (tmp_path / "x.pkl").write_bytes(network(tensor(storage())))
    assert torch.equal(ema(tmp_path / "x.pkl").tensors["w"], torch.zeros(4))


def test_random_bytes_and_mutated_files(tmp_path):
    whole = edm_pickle("Net", ARGUMENTS, WEIGHTS, tmp_path / "executed")
    assert "GLOBAL" in {operation.name for operation, _, _ in pickletools.genops(network(tensor(storage())))}

    @FUZZ
    @given(st.sampled_from([whole, network(tensor(storage()))]).flatmap(mutated))
    def fuzz(data):
        (tmp_path / "x.pkl").write_bytes(data)
        one_line(ema, tmp_path / "x.pkl")

    fuzz()
    assert not (tmp_path / "executed").exists()
