"""Order of the latent state's entries: agents arranged for a CPU and for a GPU, one in another.

Both have the same groups of SimNorm in other places (:func:`pomcp_jax.maths.simnorm`): for a GPU
group g is contiguous, as in [TD-MPC2]; for a CPU its entries are L/group apart. A permutation of
all layers that make or read a latent turns one into the other: same predictions, same actions.
"""

from typing import Any

import jax
import numpy as np

from pomcp_jax.actors import AgentParams
from pomcp_jax.config import WorldModelConfig
from pomcp_jax.types import Params


def order(config: WorldModelConfig, arranged_for: str) -> np.ndarray:
    """``[L]``: where the entries of a latent of ``config`` are in one of the other arrangement.

    Entry i of the latent that ``arranged_for`` asks for is entry ``order[i]`` of the other.
    """
    size, group = config.latent_size, config.simnorm_group
    if arranged_for == config.arranged_for:
        return np.arange(size)
    # Member j of group g of G is entry ``g group + j`` for a GPU, ``j G + g`` for a CPU.
    shape = (size // group, group) if config.arranged_for == "gpu" else (group, size // group)
    return np.arange(size).reshape(shape).T.reshape(-1)


def _taken(x: Any, index: np.ndarray, axis: int) -> np.ndarray:
    return np.take(np.asarray(x), index, axis=axis)


def _made(layer: Params, index: np.ndarray) -> Params:
    """A layer with norm that makes latents, with its outputs in another order."""
    linear = {name: _taken(x, index, -1) for name, x in layer["linear"].items()}
    return {"linear": linear} | {k: _taken(layer[k], index, -1) for k in ("scale", "offset")}


def read(network: Params, index: np.ndarray) -> Params:
    """A network whose first input is a latent, for latents in another order."""
    layer = network["layer_0"]
    kernel = _taken(layer["linear"]["kernel_0"], index, -2)
    first = layer | {"linear": layer["linear"] | {"kernel_0": kernel}}
    return network | {"layer_0": first}


def arranged(params: AgentParams, config: WorldModelConfig, arranged_for: str) -> AgentParams:
    """``params``, in the order of ``config``, in the order of an agent that is ``arranged_for``.

    Leaves become NumPy arrays; leading axes are those of ``params``.
    """
    index = order(config, arranged_for)
    params = jax.tree.map(np.asarray, params)
    model = params.model
    dynamics = read(model.dynamics, index)
    return AgentParams(
        model._replace(
            encoder=model.encoder | {"out": _made(model.encoder["out"], index)},
            dynamics=dynamics | {"out": _made(dynamics["out"], index)},
            reward=read(model.reward, index),
            value=read(model.value, index),
            termination=None if model.termination is None else read(model.termination, index),
        ),
        read(params.policy, index),
        None if params.prior is None else read(params.prior, index),
        params.moments,
    )
