"""Files of ``torch.save`` read without torch; nothing that a file names is executed.

The format is a ZIP archive without compression: ``NAME/data.pkl``, a pickle, and ``NAME/data/K``,
the bytes of storage K. A pickle is a program for a stack machine. Here it is interpreted, with only
the instructions and names below, so that it can build dictionaries, lists, tuples, numbers, text
and tensors, and nothing else. Memory is bounded by the size of the file.
"""

import math
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MOST_PICKLE = 4 << 20
"""Bytes of the largest pickle; that of a model with a hundred tensors has fifteen thousand."""
MOST_AXES = 8


class TorchFileError(ValueError):
    """A file that cannot be read; the message is one line for the user."""


class Name(NamedTuple):
    """Something of a module that the pickle names, by ``module name``; never imported."""

    text: str


class Storage(NamedTuple):
    """Numbers that tensors are views of."""

    numbers: np.ndarray
    """``[n]``, read-only."""


class NoNumbers(NamedTuple):
    """A tensor of torch's ``meta`` device: sizes alone."""

    size: tuple[int, ...]


class Machine(NamedTuple):
    """State of the interpreter."""

    stack: list[Any]
    marks: list[int]
    """Heights of the stack at the marks that are not closed yet."""
    memo: dict[int, Any]
    storage: Callable[[Any], Storage]
    """From a persistent id."""


def read(path: Path | str) -> Any:
    """The contents of a file that ``torch.save`` wrote; tensors are read-only views, ``bfloat16``
    and ``float16`` as ``float32``.

    Raises:
      TorchFileError: one line; the file is damaged, of another format, or asks for something that
        would have to be executed.
    """
    path = Path(path)
    try:
        if not path.is_file():  # opening a pipe would block
            raise TorchFileError("is a folder" if path.is_dir() else "no such file")
        with zipfile.ZipFile(path) as archive:
            return _contents(archive, path.stat().st_size)
    except TorchFileError as error:
        raise TorchFileError(f"{path}: {error}") from None
    except zipfile.BadZipFile as error:
        text = f"is damaged, or was not written by torch.save of torch >= 1.6 ({error})"
        raise TorchFileError(f"{path}: {_line(text)}") from None
    except (IndexError, KeyError) as error:
        raise TorchFileError(f"{path}: its pickle is damaged ({type(error).__name__})") from None
    # ``zipfile`` and ``pickletools`` raise many kinds for bytes that make no sense.
    except Exception as error:
        raise TorchFileError(f"{path}: cannot be read ({_line(error)})") from None


def _line(text: Any) -> str:
    return " ".join(str(text).split())[:200]


# ------------------------------------------------------------------------- the archive


def _contents(archive: zipfile.ZipFile, size: int) -> Any:
    root = _root(archive.infolist(), size)

    def entry(name: str) -> bytes:
        try:
            return archive.read(f"{root}/{name}")  # checks the CRC
        except KeyError:
            raise TorchFileError(f"holds no {root}/{name:.80}; is damaged") from None

    order = entry("byteorder") if f"{root}/byteorder" in archive.namelist() else b"little"
    if order not in (b"little", b"big"):
        raise TorchFileError(f"byteorder = {order[:20]!r}: must be little or big")
    known: dict[str, bytes] = {}

    def storage(identity: Any) -> Storage:
        kind, key, number = _identity(identity)
        if key not in known:
            known[key] = entry(f"data/{key}")
        return _storage(known[key], kind, number, "<" if order == b"little" else ">", key)

    return interpreted(entry("data.pkl"), storage)


def _root(entries: list[zipfile.ZipInfo], size: int) -> str:
    """Folder of all entries, none of which may be compressed or lead out of it."""
    names = [entry.filename for entry in entries]
    for entry in entries:
        shown = f"{entry.filename!r:.80}"
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise TorchFileError(f"{shown} is compressed, which torch.save never does")
        if entry.flag_bits & 1:
            raise TorchFileError(f"{shown} is encrypted")
        if not entry.filename.isprintable() or {"", "..", "."} & {*entry.filename.split("/")}:
            raise TorchFileError(f"{shown}: is no name that torch.save gives")
    # Entries may overlap, so that a small file would unfold into a large one.
    if len(set(names)) < len(names) or sum(entry.file_size for entry in entries) > size:
        raise TorchFileError("its entries overlap or have the same name")
    roots = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl")]
    if len(roots) != 1 or "/" in roots[0]:
        raise TorchFileError("holds no NAME/data.pkl: was not written by torch.save")
    (pickled,) = (e.file_size for e in entries if e.filename == f"{roots[0]}/data.pkl")
    if pickled > MOST_PICKLE:
        raise TorchFileError(f"its pickle has {pickled} bytes; must be <= {MOST_PICKLE}")
    return roots[0]


# ------------------------------------------------------------------------- numbers

KINDS = {
    "torch FloatStorage": "f4",
    "torch DoubleStorage": "f8",
    "torch HalfStorage": "f2",
    "torch BFloat16Storage": "u2",
    "torch LongStorage": "i8",
    "torch IntStorage": "i4",
}
"""Types of storages; those of bfloat16 are the upper halves of float32."""
DTYPES = tuple(f"torch {name}" for name in "float32 float64 float16 bfloat16 int64 int32".split())
"""Names of types that stand beside tensors without numbers."""


def _identity(identity: Any) -> tuple[str, str, int]:
    """Kind, key and length of a storage, from ``("storage", kind, key, device, length)``."""
    fits = type(identity) is tuple and len(identity) == 5 and identity[0] == "storage"
    if not fits or type(identity[1]) is not Name or not _is_size(identity[4]):
        raise TorchFileError("its pickle names a storage in an unknown way")
    kind, key = identity[1].text, identity[2]
    if kind not in KINDS:
        raise TorchFileError(f"holds numbers of type {kind!r:.60}; must be floats or integers")
    if type(key) is not str or not re.fullmatch("[0-9]{1,9}", key):
        raise TorchFileError(f"its pickle names the storage {key!r:.60}; must be a number")
    return kind, key, identity[4]


def _storage(data: bytes, kind: str, number: int, order: str, key: str) -> Storage:
    dtype = np.dtype(order + KINDS[kind])
    if len(data) != number * dtype.itemsize:
        raise TorchFileError(
            f"storage {key} has {len(data)} bytes; must be {number * dtype.itemsize}"
        )
    numbers = np.frombuffer(data, dtype)
    if kind == "torch BFloat16Storage":
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    elif kind == "torch HalfStorage":
        numbers = numbers.astype(np.float32)
    return Storage(numbers)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48


def _are_sizes(values: Any) -> bool:
    return type(values) is tuple and len(values) <= MOST_AXES and all(map(_is_size, values))


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> np.ndarray:
    """``torch._utils._rebuild_tensor_v2``; what follows the strides is of no use here."""
    fits = type(storage) is Storage and _is_size(offset) and _are_sizes(size) and _are_sizes(stride)
    if not fits or len(size) != len(stride) or len(rest) not in (2, 3):
        raise TorchFileError("its pickle describes a tensor in an unknown way")
    numbers = storage.numbers
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # More elements than numbers: an expanded tensor, a few bytes that claim any memory.
    if count > len(numbers) or (count and last >= len(numbers)):
        raise TorchFileError(
            f"a tensor of shape {list(size)} does not fit its storage of {len(numbers)} numbers"
        )
    steps = [step * numbers.itemsize for step in stride]
    view = np.lib.stride_tricks.as_strided(numbers[offset:], size, steps, writeable=False)
    return view.astype(view.dtype.newbyteorder("="), copy=False)


def _parameter(data: Any, *rest: Any) -> np.ndarray:
    """``torch._utils._rebuild_parameter``."""
    if not isinstance(data, np.ndarray) or len(rest) != 2:
        raise TorchFileError("its pickle describes a parameter in an unknown way")
    return data


def _without_numbers(dtype: Any, size: Any, stride: Any, requires_grad: Any) -> NoNumbers:
    """``torch._utils._rebuild_meta_tensor_no_storage``."""
    if type(dtype) is not Name or dtype.text not in DTYPES or not _are_sizes(size):
        raise TorchFileError("its pickle describes a meta tensor in an unknown way")
    return NoNumbers(size)


def _size(values: Any) -> tuple[int, ...]:
    """``torch.Size``."""
    if not _are_sizes(values):
        raise TorchFileError("its pickle describes a torch.Size in an unknown way")
    return values


def _device(kind: Any, *index: Any) -> str:
    """``torch.device``; a device says nothing about the numbers."""
    return kind if type(kind) is str else ""


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "collections OrderedDict": lambda: {},
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "torch._utils _rebuild_meta_tensor_no_storage": _without_numbers,
    "torch Size": _size,
    "torch device": _device,
}
"""What a pickle may call, replaced by functions of this module."""
NAMES = frozenset([*FUNCTIONS, *KINDS, *DTYPES])


# ------------------------------------------------------------------------- the pickle


def interpreted(data: bytes, storage: Callable[[Any], Storage]) -> Any:
    """The object that a pickle of protocol 2, that of ``torch.save``, describes.

    Args:
      data: the pickle.
      storage: from a persistent id to numbers.

    Raises:
      TorchFileError: an instruction or a name that is not allowed.
      ValueError, IndexError, KeyError: the pickle is damaged.
    """
    machine = Machine([], [], {}, storage)
    for code, argument, _ in pickletools.genops(data):
        if code.name == "STOP":
            break
        if code.name not in INSTRUCTIONS:
            raise TorchFileError(
                f"its pickle has the instruction {code.name}, which torch.save does not write"
            )
        INSTRUCTIONS[code.name](machine, argument)
    return machine.stack.pop()


def _push(machine: Machine, value: Any) -> None:
    machine.stack.append(value)


def _above_mark(machine: Machine) -> list[Any]:
    height = machine.marks.pop()
    items = machine.stack[height:]
    del machine.stack[height:]
    return items


def _global(machine: Machine, name: str) -> None:
    if name not in NAMES:
        raise TorchFileError(
            f"asks for {name.replace(' ', '.')!r:.100}; only tensors of floats and integers in"
            " dictionaries are read, as anything else could run code"
        )
    machine.stack.append(Name(name))


def _reduce(machine: Machine, _: Any) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    if type(function) is not Name or function.text not in FUNCTIONS or type(arguments) is not tuple:
        raise TorchFileError("its pickle calls something that is no function of torch.save")
    try:
        machine.stack.append(FUNCTIONS[function.text](*arguments))
    except TypeError:  # another number of arguments
        raise TorchFileError(f"its pickle calls {function.text} in an unknown way") from None


def _build(machine: Machine, _: Any) -> None:
    # State dictionaries carry versions of their modules as an attribute.
    machine.stack.pop()
    if type(machine.stack[-1]) is not dict:
        raise TorchFileError("its pickle sets attributes of something that is no dictionary")


def _put_items(machine: Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if type(target) is not dict or len(items) % 2:
        raise TorchFileError("its pickle sets items of something that is no dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Text and numbers only: the hash of a nested tuple may take for ever.
        if type(key) not in (str, int):
            raise TorchFileError(f"its pickle has a key of type {type(key).__name__}; must be text")
        target[key] = value


def _put_item(machine: Machine, _: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _put_items(machine, [key, value])


def _append(machine: Machine, items: list[Any]) -> None:
    if type(machine.stack[-1]) is not list:
        raise TorchFileError("its pickle appends to something that is no list")
    machine.stack[-1].extend(items)


def _tuple(number: int) -> Callable[[Machine, Any], None]:
    def push(machine: Machine, _: Any) -> None:
        items = [machine.stack.pop() for _ in range(number)]
        machine.stack.append(tuple(items[::-1]))

    return push


INSTRUCTIONS: Mapping[str, Callable[[Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "NONE": lambda machine, _: _push(machine, None),
    "NEWTRUE": lambda machine, _: _push(machine, True),
    "NEWFALSE": lambda machine, _: _push(machine, False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"), _push),
    "EMPTY_DICT": lambda machine, _: _push(machine, {}),
    "EMPTY_LIST": lambda machine, _: _push(machine, []),
    "EMPTY_TUPLE": lambda machine, _: _push(machine, ()),
    "TUPLE": lambda machine, _: _push(machine, tuple(_above_mark(machine))),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "APPEND": lambda machine, _: _append(machine, [machine.stack.pop()]),
    "APPENDS": lambda machine, _: _append(machine, _above_mark(machine)),
    "SETITEM": _put_item,
    "SETITEMS": lambda machine, _: _put_items(machine, _above_mark(machine)),
    **dict.fromkeys(
        ("BINPUT", "LONG_BINPUT"),
        lambda machine, index: machine.memo.update({index: machine.stack[-1]}),
    ),
    **dict.fromkeys(
        ("BINGET", "LONG_BINGET"), lambda machine, index: _push(machine, machine.memo[index])
    ),
    "GLOBAL": _global,
    "REDUCE": _reduce,
    "BUILD": _build,
    "BINPERSID": lambda machine, _: _push(machine, machine.storage(machine.stack.pop())),
}
"""What torch.save writes; the other instructions of pickles are refused."""
