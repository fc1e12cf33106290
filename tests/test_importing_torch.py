"""Files of ``torch.save`` read without torch: nothing else is built or called."""

import os
import zipfile

import numpy as np
import pytest
import torch_files as files

from pomcp_jax import importing_torch
from pomcp_jax.importing_torch import TorchFileError


def saved(tmp_path, value, storages, **options):
    return files.write(tmp_path / "a.pt", files.entries(value, storages, **options))


def test_views_share_a_storage(tmp_path):
    """Offsets and strides in elements, as ``t()[1:]`` and ``[..., 1]`` have them."""
    numbers = np.arange(24, dtype=np.float32)
    storage = files.Storage(numbers, "7")
    value = {
        "whole": files.view(storage, 0, (4, 6), (6, 1)),
        "turned": files.view(storage, 1, (5, 4), (1, 6)),
        "column": files.view(storage, 2, (2, 2), (12, 6)),
        "number": files.view(storage, 23, (), ()),
        "none": files.view(storage, 24, (0, 3), (3, 1)),
        "parameter": files.Call(
            files.PARAMETER, files.view(storage, 0, (2,), (1,)), True, None
        ),
    }  # fmt: skip
    read = importing_torch.read(saved(tmp_path, value, [storage]))
    square = numbers.reshape(4, 6)
    expected = {
        "whole": square,
        "turned": square.T[1:],
        "column": square.reshape(2, 2, 6)[:, :, 2],
        "number": numbers[23],
        "none": np.zeros((0, 3)),
        "parameter": numbers[:2],
    }
    for name, x in expected.items():
        np.testing.assert_array_equal(read[name], x)
    with pytest.raises(ValueError, match="read-only"):
        read["whole"][0, 0] = 1.0


@pytest.mark.parametrize("order", ["little", "big"])
def test_kinds_of_numbers_and_both_byte_orders(tmp_path, order):
    x = np.array([1.5, -0.25, 1024.0])
    upper = (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    arrays = [x.astype("f4"), x.astype("f8"), x.astype("f2"), upper, np.array([3, -4, 2**40])]
    storages = [files.Storage(a, str(i)) for i, a in enumerate(arrays)]
    value = [files.view(s, 0, (3,), (1,)) for s in storages]
    read = importing_torch.read(saved(tmp_path, value, storages, order=order))
    assert [a.dtype for a in read] == ["f4", "f8", "f4", "f4", "i8"]
    for a in read[:4]:
        np.testing.assert_array_equal(a, x)
    np.testing.assert_array_equal(read[4], arrays[4])


def test_plain_values_are_read(tmp_path):
    value = {"a": [1, -2, 3.5, None, True], 7: ("text", ()), "b": {}, "large": 2**70}
    assert importing_torch.read(saved(tmp_path, value, [])) == value


STORAGE = files.Storage(np.zeros(6, np.float32), "0")
SECRET = files.Storage(np.zeros(6, np.float32), "../../../secret")
BOOLEANS = files.Storage(np.zeros(6, bool), "0")
PICKLES = {
    "code": (files.Call(os.system, "touch pwned"), r"asks for 'posix.system'; .* could run code"),
    "eval": ({"model": files.Call(eval, "1")}, r"asks for '__builtin__.eval'"),
    "size": (files.view(STORAGE, 0, (7,), (1,)), r"shape \[7\] does not fit .* of 6 numbers"),
    "offset": (files.view(STORAGE, 5, (2,), (1,)), "does not fit its storage"),
    "stride": (files.view(STORAGE, 0, (2, 2), (5, 2)), "does not fit its storage"),
    "negative": (files.view(STORAGE, 0, (2,), (-1,)), "a tensor in an unknown way"),
    "expanded": (files.view(STORAGE, 0, (10**6, 10**6), (0, 0)), "does not fit its storage"),
    "bool size": (files.view(STORAGE, 0, (True,), (1,)), "a tensor in an unknown way"),
    "no storage": (files.view("text", 0, (1,), (1,)), "a tensor in an unknown way"),
    "key": (files.view(SECRET, 0, (1,), (1,)), r"names the storage '../../../secret'"),
    "kind": (
        files.view(BOOLEANS, 0, (1,), (1,)),
        "asks for 'torch.BoolStorage'; only",
    ),
    "claim": (
        files.view(files.Storage(np.zeros(6, np.float32), "0", claimed=8), 0, (1,), (1,)),
        "storage 0 has 24 bytes; must be 32",
    ),
    "missing": (
        files.view(files.Storage(np.zeros(1, np.float32), "5"), 0, (1,), (1,)),
        "holds no agent/data/5",
    ),
    "tuple key": ({("a",): 1}, "a key of type tuple; must be text"),
    "arguments": (files.Call(files.SIZE, 1, 2), "calls torch Size in an unknown way"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_other_pickles_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    value, message = PICKLES[name]
    storages = [STORAGE] if name != "kind" else [BOOLEANS]
    path = saved(tmp_path, value, storages)
    with pytest.raises(TorchFileError, match=message) as error:
        importing_torch.read(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt"]


RAW = {
    "an instruction": (b"\x80\x02K\x012.", "the instruction DUP, which torch.save does not write"),
    "protocol 4": (b"\x80\x04\x8c\x01a.", "the instruction SHORT_BINUNICODE"),
    "empty": (b"", "cannot be read"),
    "no stop": (b"\x80\x02K\x01", "cannot be read"),
    "empty stack": (b"\x80\x02.", "its pickle is damaged"),
    "unknown memo": (b"\x80\x02h\x05.", "its pickle is damaged"),
    "no mark": (b"\x80\x02u.", "its pickle is damaged"),
    "attributes of a number": (b"\x80\x02K\x01K\x02b.", "sets attributes of something"),
    "a call of a number": (b"\x80\x02K\x01)R.", "calls something that is no function"),
    "a long number": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "cannot be read"),
}


@pytest.mark.parametrize("name", RAW)
def test_damaged_pickles_are_refused(tmp_path, name):
    data, message = RAW[name]
    path = files.write(tmp_path / "a.pt", {"a/data.pkl": data})
    with pytest.raises(TorchFileError, match=message):
        importing_torch.read(path)


def archive(tmp_path, change):
    """A good file's entries after ``change``."""
    named = files.entries({"x": files.view(STORAGE, 0, (6,), (1,))}, [STORAGE])
    change(named)
    return files.write(tmp_path / "a.pt", named)


ARCHIVES = {
    "leads out": (lambda named: named.update({"agent/../../x": b"1"}), "no name that torch.save"),
    "absolute": (lambda named: named.update({"/etc/x": b"1"}), "no name that torch.save"),
    "no pickle": (lambda named: named.pop("agent/data.pkl"), "holds no NAME/data.pkl"),
    "two pickles": (lambda named: named.update({"b/data.pkl": b"N."}), "holds no NAME/data.pkl"),
    "byte order": (lambda named: named.update({"agent/byteorder": b"middle"}), "must be little or"),
    "large pickle": (
        lambda named: named.update({"agent/data.pkl": bytes(importing_torch.MOST_PICKLE + 1)}),
        "its pickle has 4194305 bytes; must be <= 4194304",
    ),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_other_archives_are_refused(tmp_path, name):
    change, message = ARCHIVES[name]
    with pytest.raises(TorchFileError, match=message):
        importing_torch.read(archive(tmp_path, change))


def test_a_compressed_file_is_not_unpacked(tmp_path):
    """A megabyte of zeros in a thousand bytes: what is read never exceeds the file."""
    named = {"a/data.pkl": b"\x80\x02N.", "a/data/0": bytes(1 << 20)}
    path = files.write(tmp_path / "a.pt", named, zipfile.ZIP_DEFLATED)
    with pytest.raises(TorchFileError, match="is compressed, which torch.save never does"):
        importing_torch.read(path)


def test_every_truncation_is_noticed(tmp_path):
    whole = archive(tmp_path, lambda named: None).read_bytes()
    path = tmp_path / "cut.pt"
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(TorchFileError, match="is damaged, or was not written by torch.save"):
            importing_torch.read(path)


def test_flipped_bytes_are_noticed_or_read_as_they_are(tmp_path):
    """Wherever a byte differs, the result is the same numbers or one line."""
    whole, path, refused = archive(tmp_path, lambda named: None).read_bytes(), tmp_path / "b.pt", 0
    for place in range(0, len(whole), 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            read = importing_torch.read(path)
        except TorchFileError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            np.testing.assert_array_equal(read["x"], STORAGE.numbers)
    assert refused > 50


@pytest.mark.parametrize("kind", ["missing", "folder", "text"])
def test_no_archive(tmp_path, kind):
    path = tmp_path / "a.pt"
    if kind == "folder":
        path.mkdir()
    if kind == "text":
        path.write_text("weights")
    message = {"missing": "no such file", "folder": "is a folder", "text": "not written by torch"}
    with pytest.raises(TorchFileError, match=message[kind]):
        importing_torch.read(path)
