"""Files as ``torch.save`` writes them, made without torch, and state dictionaries of TD-MPC2.

The pickle is written by Python's own pickler from stand-ins that are called as torch's classes.
"""

import collections
import io
import pickle
import sys
import types
import zipfile

import numpy as np

KINDS = {"f4": "Float", "f8": "Double", "f2": "Half", "u2": "BFloat16", "i8": "Long", "b1": "Bool"}


def _named(module, name, value):
    value.__module__, value.__qualname__ = module, name
    setattr(TORCH[module], name, value)
    return value


TORCH = {name: types.ModuleType(name) for name in ("torch", "torch._utils")}
REBUILD = _named("torch._utils", "_rebuild_tensor_v2", lambda *args: args)
META = _named("torch._utils", "_rebuild_meta_tensor_no_storage", lambda *args: args)
PARAMETER = _named("torch._utils", "_rebuild_parameter", lambda *args: args)
SIZE = _named("torch", "Size", lambda *args: args)
FLOAT32 = _named("torch", "float32", type("float32", (), {}))
DEVICE = _named("torch", "device", lambda *args: args)
STORAGES = {
    kind: _named("torch", f"{name}Storage", type(f"{name}Storage", (), {}))
    for kind, name in KINDS.items()
}


class Storage:
    """Numbers of one record; ``claimed`` of them by the pickle."""

    def __init__(self, numbers, key, claimed=None, kind=None):
        self.numbers, self.key = numbers, key
        self.kind = kind or numbers.dtype.str.lstrip("<>|=")
        self.claimed = len(numbers) if claimed is None else claimed


class Call:
    """The result of calling ``function``, as the pickle describes it."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def view(storage, offset, size, stride):
    return Call(REBUILD, storage, offset, size, stride, False, collections.OrderedDict())


class Pickler(pickle.Pickler):
    def persistent_id(self, x):
        if isinstance(x, Storage):
            return ("storage", STORAGES[x.kind], x.key, "cpu", x.claimed)
        return None


def pickled(value):
    before = {name: sys.modules.get(name) for name in TORCH}
    sys.modules.update(TORCH)
    try:
        out = io.BytesIO()
        Pickler(out, protocol=2).dump(value)
        return out.getvalue()
    finally:
        for name, module in before.items():
            sys.modules.pop(name) if module is None else sys.modules.update({name: module})


def tensors(state):
    """Arrays of ``state`` as contiguous tensors with a storage each, and those storages."""
    out, storages = collections.OrderedDict(), []
    for name, x in state.items():
        if isinstance(x, np.ndarray):
            storages.append(Storage(x.reshape(-1), str(len(storages))))
            stride = tuple(step // x.itemsize for step in np.array(x, order="C").strides)
            x = view(storages[-1], 0, x.shape, stride)
        out[name] = x
    # State dictionaries carry this attribute.
    out._metadata = collections.OrderedDict([("", {"version": 1})])
    return out, storages


def entries(value, storages, order="little", root="agent"):
    """Names and bytes of the archive's entries."""
    swap = {"little": "<", "big": ">"}[order]
    named = {f"{root}/data.pkl": pickled(value), f"{root}/byteorder": order.encode()}
    for x in storages:
        numbers = x.numbers.astype(x.numbers.dtype.newbyteorder(swap))
        named[f"{root}/data/{x.key}"] = numbers.tobytes()
    return named | {f"{root}/version": b"3\n"}


def write(path, named, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in named.items():
            archive.writestr(name, data)
    return path


def save(path, state):
    """``torch.save({"model": state}, path)``."""
    made, storages = tensors(state)
    return write(path, entries({"model": made}, storages))


# ------------------------------------------------------------------------- TD-MPC2


def network(rng, prefix, widths, normed, heads=()):
    out = {}
    for i, (fan_in, fan_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        shapes = {"weight": (fan_out, fan_in), "bias": (fan_out,)}
        if normed or i < len(widths) - 2:
            shapes |= {"ln.weight": (fan_out,), "ln.bias": (fan_out,)}
        for name, shape in shapes.items():
            x = rng.normal(scale=0.4, size=(*heads, *shape))
            out[f"{prefix}.{i}.{name}"] = x.astype(np.float32)
    return out


def state_dict(
    obs, action, *, latent=16, encoder=(16,), mlp=16, heads=3, bins=21, termination=False
):
    """A state dictionary of the present layout, without the copies of the heads."""
    rng, hidden = np.random.default_rng(3), [mlp, mlp]
    both = latent + action
    out = {"log_std_min": np.array(-9), "log_std_dif": np.array(10)}
    out |= network(rng, "_encoder.state", [obs, *encoder, latent], True)
    out |= network(rng, "_dynamics", [both, *hidden, latent], True)
    out |= network(rng, "_reward", [both, *hidden, bins], False)
    if termination:
        out |= network(rng, "_termination", [latent, *hidden, 1], False)
    out |= network(rng, "_pi", [latent, *hidden, 2 * action], False)
    out |= network(rng, "_Qs.params", [both, *hidden, bins], False, (heads,))
    return out | network(rng, "_target_Qs_params", [both, *hidden, bins], False, (heads,))


def with_copies(state):
    """What the present code saves besides, with different versions of tensordict."""
    heads = {k: v for k, v in state.items() if k.startswith("_Qs.params")}
    copies = {k.replace("_Qs.params", "_detach_Qs_params"): v for k, v in heads.items()}
    copies |= {k.replace("_Qs", "_detach_Qs"): v for k, v in heads.items()}
    copies |= {k.replace("_Qs", "_target_Qs"): v for k, v in heads.items()}
    size = tuple(heads["_Qs.params.0.weight"].shape[1:])
    meta = Call(META, FLOAT32, size, (size[1], 1), False)
    copies |= {"_Qs.module.0.weight": meta, "_Qs.params.__batch_size": Call(SIZE, (3,))}
    return state | copies | {"_Qs.params.__device": Call(DEVICE, "cuda", 0)}


def older(state):
    """The layout of the published files: numbered leaves of heads, no bounds of the log-std."""
    out, order = {}, ("weight", "bias", "ln.weight", "ln.bias")
    for name, x in state.items():
        for new, old in (("_Qs.params", "_Qs.params"), ("_target_Qs_params", "_target_Qs.params")):
            if name.startswith(new):
                layer, leaf = name.removeprefix(f"{new}.").split(".", 1)
                name = f"{old}.{4 * int(layer) + order.index(leaf)}"
        if not name.startswith("log_std"):
            out[name] = x
    return out


LAYOUTS = {"present": with_copies, "published": older, "plain": lambda state: state}
