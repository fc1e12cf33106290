"""Agents that TD-MPC2's own code saved, as agents of this package.

``nicklashansen/tdmpc2`` writes ``torch.save({"model": model.state_dict()})``. The layers are those
of :mod:`pomcp_jax.networks`, under other names and transposed: kernels are ``[out, in]``, the first
layer of a network has the kernels of latent and action side by side, and value heads are stacked on
a leading axis, as here. Sizes follow from shapes. Bins, SimNorm's groups, optimiser and settings
are not in such a file: its ``config.yaml`` decides them, and the defaults here are its values.

Two layouts exist. The published files name the leaves of the value heads ``_Qs.params.N``, N = 4
layer + (weight, bias, ln.weight, ln.bias); the present code names them ``_Qs.params.LAYER.NAME``
and adds the bounds of the policy's log-std, and copies of the heads that hold nothing new.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pomcp_jax import config as config_lib
from pomcp_jax import importing_torch, latent_order
from pomcp_jax.actors import AgentParams
from pomcp_jax.config import AgentConfig, WorldModelConfig
from pomcp_jax.importing_torch import TorchFileError
from pomcp_jax.types import Params
from pomcp_jax.world_model import ModelParams

Tensors = dict[str, np.ndarray]
LEAVES = ("weight", "bias", "ln.weight", "ln.bias")
LOG_STD = (-10.0, 2.0)
"""Bounds of the policy's log-std in TD-MPC2's ``config.yaml``, for files without them."""
MANY_ACTIONS = 20
"""Actions from which TD-MPC2 plans with two more iterations."""


class Sizes(NamedTuple):
    """Sizes of an agent's networks, from the shapes of its tensors."""

    observation: int
    action: int
    latent: int
    encoder_width: int
    encoder_layers: int
    mlp_width: int
    num_heads: int
    num_bins: int
    termination: bool


class Source(NamedTuple):
    """A checked file: every tensor is there, of its shape and finite."""

    path: Path
    sizes: Sizes
    log_std: tuple[float, float]
    """Lower and upper bound."""
    tensors: Tensors
    """By the names of the present layout."""


def read(path: Path | str) -> Source:
    """Read and check an agent of TD-MPC2.

    Raises:
      TorchFileError: one line; the file is damaged, holds code, or is no single-task agent that
        observes states.
    """
    state = importing_torch.read(path)
    try:
        tensors = _renamed(_state_dict(state))
        sizes = _sizes(tensors)
        log_std = _log_std(tensors)
        _check(tensors, _shapes(sizes))
    except TorchFileError as error:
        raise TorchFileError(f"{path}: {error}") from None
    return Source(Path(path), sizes, log_std, tensors)


# ------------------------------------------------------------------------- the layout


def _state_dict(state: Any) -> Mapping[Any, Any]:
    inner = state.get("model", state) if type(state) is dict else None
    if type(inner) is not dict or not all(type(name) is str for name in inner):
        raise TorchFileError("is no agent of TD-MPC2: must hold {'model': state_dict}")
    names = " ".join(inner)
    if "_task_emb" in names or "_action_masks" in names:
        raise TorchFileError(
            "is a multi-task agent of TD-MPC2 (_task_emb); only agents of a single task are read"
        )
    if "_encoder.rgb" in names:
        raise TorchFileError(
            "is an agent of TD-MPC2 that observes pixels (_encoder.rgb); only agents that observe"
            " states are read"
        )
    return inner


_COPIES = re.compile(
    r"(_Qs\.module|_detach_Qs_params|_detach_Qs|_target_Qs\.module|_target_Qs\.params\.\d+)\..*"
    r"|.*\.__(batch_size|device)"
)
"""Leaves that repeat others or hold no numbers; they differ between versions of tensordict."""


def _renamed(state: Mapping[str, Any]) -> Tensors:
    """Tensors by the names of the present layout, without copies."""
    tensors: Tensors = {}
    for name, value in state.items():
        old = re.fullmatch(r"(_Qs|_target_Qs)\.params\.([0-9]{1,3})", name)
        if old:
            layer, leaf = divmod(int(old[2]), 4)
            prefix = {"_Qs": "_Qs.params", "_target_Qs": "_target_Qs_params"}[old[1]]
            name = f"{prefix}.{layer}.{LEAVES[leaf]}"
        elif _COPIES.fullmatch(name):
            continue
        if not isinstance(value, np.ndarray):
            raise TorchFileError(f"{name:.80}: holds no tensor")
        tensors[name] = value
    return tensors


def _shape(tensors: Tensors, name: str, axes: int) -> tuple[int, ...]:
    if name not in tensors:
        raise TorchFileError(f"has no {name}: is no agent of TD-MPC2")
    shape = tensors[name].shape
    if len(shape) != axes or 0 in shape:
        raise TorchFileError(f"{name} has the shape {list(shape)}; must have {axes} axes")
    return shape


def _sizes(tensors: Tensors) -> Sizes:
    number = len([k for k in tensors if re.fullmatch(r"_encoder\.state\.[0-9]+\.weight", k)])
    encoder_width, observation = _shape(tensors, "_encoder.state.0.weight", 2)
    latent = _shape(tensors, f"_encoder.state.{max(number - 1, 1)}.weight", 2)[0]
    mlp_width, inputs = _shape(tensors, "_dynamics.0.weight", 2)
    heads = _shape(tensors, "_Qs.params.0.weight", 3)[0]
    num_bins = _shape(tensors, "_reward.2.weight", 2)[0]
    action, group = inputs - latent, WorldModelConfig().simnorm_group
    if action < 1 or latent % group:
        raise TorchFileError(
            f"its latent state has {latent} entries and its dynamics {inputs} inputs; must be a"
            f" multiple of {group}, and more"
        )
    return Sizes(
        observation=observation,
        action=action,
        latent=latent,
        encoder_width=encoder_width,
        encoder_layers=number,
        mlp_width=mlp_width,
        num_heads=heads,
        num_bins=num_bins,
        termination=any(name.startswith("_termination.") for name in tensors),
    )


def _layers(prefix: str, widths: list[int], normed: bool, heads: int = 0) -> dict[str, tuple]:
    """Shapes of a network's leaves; the last layer has a norm if ``normed``."""
    lead = (heads,) if heads else ()
    out: dict[str, tuple] = {}
    for i, (fan_in, fan_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        out[f"{prefix}.{i}.weight"] = (*lead, fan_out, fan_in)
        out[f"{prefix}.{i}.bias"] = (*lead, fan_out)
        if normed or i < len(widths) - 2:
            out |= {f"{prefix}.{i}.ln.{leaf}": (*lead, fan_out) for leaf in ("weight", "bias")}
    return out


def _shapes(sizes: Sizes) -> dict[str, tuple]:
    """Name and shape of every tensor of an agent of these sizes."""
    z, m, k = sizes.latent, [sizes.mlp_width] * 2, sizes.num_bins
    both = z + sizes.action
    hidden = [sizes.encoder_width] * (sizes.encoder_layers - 1)
    heads = [
        _layers(prefix, [both, *m, k], False, sizes.num_heads)
        for prefix in ("_Qs.params", "_target_Qs_params")
    ]
    out = _layers("_encoder.state", [sizes.observation, *hidden, z], True)
    out |= _layers("_dynamics", [both, *m, z], True) | _layers("_reward", [both, *m, k], False)
    out |= _layers("_pi", [z, *m, 2 * sizes.action], False) | heads[0] | heads[1]
    if sizes.termination:
        out |= _layers("_termination", [z, *m, 1], False)
    return out


def _log_std(tensors: Tensors) -> tuple[float, float]:
    """Bounds of the log-std; removes them from ``tensors``."""
    low, width = (tensors.pop(f"log_std_{name}", None) for name in ("min", "dif"))
    if low is None and width is None:
        return LOG_STD
    if low is None or width is None or low.size != 1 or width.size != 1:
        raise TorchFileError("log_std_min and log_std_dif: must be a number each")
    return low.item(), low.item() + width.item()


def _check(tensors: Tensors, shapes: Mapping[str, tuple]) -> None:
    """Compare names, shapes and numbers with those of an agent.

    Raises:
      TorchFileError: names the first that differ.
    """
    wrong = [f"has no {name}" for name in shapes if name not in tensors]
    wrong += [f"{name:.80} is unknown" for name in tensors if name not in shapes]
    wrong += [
        f"{name} has the shape {list(tensors[name].shape)}, must have {list(shape)}"
        for name, shape in shapes.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if not wrong:
        wrong = [
            f"{name} holds numbers that are no finite float32"
            for name, x in tensors.items()
            if not (np.abs(x.astype(np.float64)) <= np.finfo(np.float32).max).all()
        ]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise TorchFileError(f"does not fit: {'; '.join(wrong[:3])}{more}")


# ------------------------------------------------------------------------- our agent


def settings(source: Source, agent: AgentConfig) -> AgentConfig:
    """``agent``, TD-MPC2's preset, with the sizes, bounds and planning iterations of ``source``."""
    sizes = source.sizes
    most = min(2, sizes.num_heads)
    return config_lib.replace(
        agent,
        {
            "world_model.latent_size": sizes.latent,
            "world_model.encoder_width": sizes.encoder_width,
            "world_model.encoder_layers": sizes.encoder_layers,
            "world_model.mlp_width": sizes.mlp_width,
            "world_model.num_heads": sizes.num_heads,
            "world_model.num_bins": sizes.num_bins,
            "world_model.termination": sizes.termination,
            "world_model.log_std_min": source.log_std[0],
            "world_model.log_std_max": source.log_std[1],
            "policy.num_q_heads": most,
            "critic.num_target_heads": most,
            "mppi.iterations": 8 if sizes.action >= MANY_ACTIONS else 6,
        },
    )


def discount(episode_length: int) -> float:
    """[TD-MPC2]'s rule ``clip((L/5 - 1) / (L/5), 0.95, 0.995)`` for episodes of L decisions."""
    share = episode_length / 5.0
    return float(np.clip((share - 1.0) / share, 0.95, 0.995))


def parameters(source: Source, config: WorldModelConfig) -> tuple[AgentParams, Params]:
    """Parameters and target value heads, NumPy arrays of float32, arranged as ``config`` says."""
    sizes = source.sizes
    inputs = sizes.latent, sizes.action

    def network(prefix: str, inputs: tuple[int, ...], layers: int = 3) -> Params:
        return _network(source.tensors, prefix, inputs, layers)

    termination = network("_termination", inputs[:1]) if sizes.termination else None
    model = ModelParams(
        encoder=network("_encoder.state", (sizes.observation,), sizes.encoder_layers),
        dynamics=network("_dynamics", inputs),
        reward=network("_reward", inputs),
        value=network("_Qs.params", inputs),
        termination=termination,
    )
    params = AgentParams(model, network("_pi", inputs[:1]), None)
    # TD-MPC2's groups are contiguous, as those that are arranged for a GPU.
    theirs = config_lib.replace(config, {"arranged_for": "gpu"})
    target = network("_target_Qs_params", inputs)
    index = latent_order.order(theirs, config.arranged_for)
    params = latent_order.arranged(params, theirs, config.arranged_for)
    return params, latent_order.read(target, index)


def _network(tensors: Tensors, prefix: str, inputs: tuple[int, ...], layers: int) -> Params:
    """A network's parameters under our names."""
    out: Params = {}
    for i in range(layers):
        kernel, bias = _leaf(tensors, prefix, i, "weight"), _leaf(tensors, prefix, i, "bias")
        kernel = np.swapaxes(kernel, -1, -2)
        # The first layer has one kernel for each input, the others one in all.
        parts = np.split(kernel, np.cumsum(inputs)[:-1], axis=-2) if i == 0 else [kernel]
        kernels = {f"kernel_{k}": np.ascontiguousarray(x) for k, x in enumerate(parts)}
        layer: Params = kernels | {"bias": bias}
        if f"{prefix}.{i}.ln.weight" in tensors:
            scale = _leaf(tensors, prefix, i, "ln.weight")
            offset = _leaf(tensors, prefix, i, "ln.bias")
            layer = {"linear": layer, "scale": scale, "offset": offset}
        out["out" if i == layers - 1 else f"layer_{i}"] = layer
    return out


def _leaf(tensors: Tensors, prefix: str, layer: int, name: str) -> np.ndarray:
    return tensors[f"{prefix}.{layer}.{name}"].astype(np.float32)
