"""The latent world model of TD-MPC2 as pure functions of parameters.

``encode``, ``step`` (dynamics and reward), ``continues``, ``values`` and ``policy``
take any leading shape. Sources: [TD-MPC2] arXiv 2310.16828, section 3.1, and
``common/world_model.py`` of its repository.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pomcp_jax import maths, networks
from pomcp_jax.config import WorldModelConfig
from pomcp_jax.maths import Bins
from pomcp_jax.networks import MLP
from pomcp_jax.types import Key, Params

Bound = Float[Array, ""] | float


class ModelParams(NamedTuple):
    """Everything but the actors; ``value`` has a leading axis of heads."""

    encoder: Params
    dynamics: Params
    reward: Params
    value: Params
    termination: Params | None


class Networks(NamedTuple):
    """The modules of a configuration: static, cheap to rebuild, without parameters."""

    encoder: MLP
    dynamics: MLP
    reward: MLP
    value: MLP
    termination: MLP
    policy: MLP


def build(config: WorldModelConfig, action_size: int) -> Networks:
    """The networks of ``config`` for actions of size A."""
    on_gpu = config.arranged_for == "gpu"
    simnorm = functools.partial(maths.simnorm, group=config.simnorm_group, contiguous=on_gpu)
    mlp = functools.partial(MLP, dtype=jnp.dtype(config.compute_dtype), two_pass=on_gpu)
    zeros = networks.zeros_init
    width = config.mlp_width
    # TD-MPC2 counts the output layer as well, and never goes below one hidden layer.
    encoder_hidden = (config.encoder_width,) * max(config.encoder_layers - 1, 1)
    return Networks(
        encoder=mlp(encoder_hidden, config.latent_size, simnorm),
        dynamics=mlp((width, width), config.latent_size, simnorm),
        # Reward and value heads start at zero, so that early targets are zero too.
        reward=mlp((width, width), config.num_bins, final_init=zeros),
        value=mlp((width, width), config.num_bins, final_init=zeros, dropout=config.dropout),
        # Always built: modules own no parameters, ``ModelParams.termination`` decides on its use.
        termination=mlp((width, width), 1),
        policy=mlp((width, width), 2 * action_size),
    )


def bins(config: WorldModelConfig) -> Bins:
    """The two-hot bins of reward and value."""
    return Bins(config.num_bins, config.bin_low, config.bin_high)


def init(key: Key, config: WorldModelConfig, obs_size: int, action_size: int) -> ModelParams:
    """Fresh parameters, float32."""
    nets = build(config, action_size)
    # Five keys, head or not: switching terminations on must not change the other initial values.
    keys = jax.random.split(key, 5)
    latent = config.latent_size
    value_inputs = (latent, action_size) if config.critic == "q" else (latent,)
    termination = None
    if config.termination:
        termination = networks.init(nets.termination, keys[4], latent)
    return ModelParams(
        encoder=networks.init(nets.encoder, keys[0], obs_size),
        dynamics=networks.init(nets.dynamics, keys[1], latent, action_size),
        reward=networks.init(nets.reward, keys[2], latent, action_size),
        value=networks.init_ensemble(nets.value, keys[3], config.num_heads, *value_inputs),
        termination=termination,
    )


def init_policy(key: Key, config: WorldModelConfig, action_size: int) -> Params:
    """Fresh parameters of one actor (the policy, or the learned prior)."""
    return networks.init(build(config, action_size).policy, key, config.latent_size)


def encode(nets: Networks, params: Params, obs: Float[Array, "*batch O"]) -> Array:
    """Latent ``[..., L]`` of an observation."""
    return networks.apply(nets.encoder, params, obs)


def dynamics(
    nets: Networks, params: Params, latent: Float[Array, "*batch L"], action: Array
) -> Float[Array, "*batch L"]:
    """Next latent."""
    return networks.apply(nets.dynamics, params, latent, action)


def reward_logits(
    nets: Networks, params: Params, latent: Float[Array, "*batch L"], action: Array
) -> Float[Array, "*batch K"]:
    """Two-hot logits of the reward of taking ``action`` in ``latent``."""
    return networks.apply(nets.reward, params, latent, action)


def termination_logits(
    nets: Networks, params: Params, latent: Float[Array, "*batch L"]
) -> Float[Array, "*batch"]:
    """Logit that ``latent`` is terminal."""
    return networks.apply(nets.termination, params, latent)[..., 0]


def value_logits(
    nets: Networks,
    params: Params,
    latent: Float[Array, "*batch L"],
    action: Float[Array, "*batch A"] | None,
    dropout_key: Key | None = None,
) -> Float[Array, "E *batch K"]:
    """Two-hot logits of every head in ``params``; ``action`` None for a V critic."""
    inputs = (latent,) if action is None else (latent, action)
    return networks.apply_ensemble(nets.value, params, *inputs, dropout_key=dropout_key)


def values(
    nets: Networks,
    params: Params,
    latent: Float[Array, "*batch L"],
    action: Float[Array, "*batch A"] | None,
    bins: Bins,
) -> Float[Array, "E *batch"]:
    """Value of every head in ``params``; ``action`` None for a V critic."""
    return maths.two_hot_decode(value_logits(nets, params, latent, action), bins)


class Products(NamedTuple):
    """Products of one input, latent or action, with the first layers that see it."""

    dynamics: Float[Array, "*batch W"]
    reward: Float[Array, "*batch W"]


def latent_products(
    nets: Networks, params: ModelParams, latent: Float[Array, "*batch L"]
) -> Products:
    """All that a step computes from the latent alone."""
    return Products(
        networks.first_product(nets.dynamics, params.dynamics, 0, latent),
        networks.first_product(nets.reward, params.reward, 0, latent),
    )


def dynamics_from_products(
    nets: Networks, params: ModelParams, latent: Products, action: Float[Array, "*batch A"]
) -> Float[Array, "*batch L"]:
    """Next latent, from the present one's :func:`latent_products`."""
    moved = networks.first_product(nets.dynamics, params.dynamics, 1, action)
    return networks.after_products(nets.dynamics, params.dynamics, latent.dynamics, moved)


def reward_from_products(
    nets: Networks,
    params: ModelParams,
    latent: Float[Array, "*batch W"],
    action: Float[Array, "*batch A"],
    bins: Bins,
) -> Float[Array, "*batch"]:
    """Reward, from the ``reward`` of the latent's :func:`latent_products`."""
    moved = networks.first_product(nets.reward, params.reward, 1, action)
    logits = networks.after_products(nets.reward, params.reward, latent, moved)
    return maths.two_hot_decode(logits, bins)


class Step(NamedTuple):
    """One step of the model."""

    latent: Float[Array, "*batch L"]
    """``d(z, a)``."""
    reward: Float[Array, "*batch"]
    """``r(z, a)``."""


def step(
    nets: Networks,
    params: ModelParams,
    latent: Float[Array, "*batch L"],
    action: Float[Array, "*batch A"],
    bins: Bins,
) -> Step:
    """Predict the next latent and the reward of taking ``action`` in ``latent``."""
    # The reward of (z, a), not of the next latent, as in TD-MPC2.
    reward = reward_logits(nets, params.reward, latent, action)
    following = dynamics(nets, params.dynamics, latent, action)
    return Step(following, maths.two_hot_decode(reward, bins))


def continues(
    nets: Networks, params: ModelParams, latent: Float[Array, "*batch L"]
) -> Float[Array, "*batch"] | None:
    """0 if ``latent`` is more likely terminal than not, else 1; None without a termination head.

    [TD-MPC2] plans past a state under the same rule.
    """
    if params.termination is None:
        return None
    # A threshold, not the probability: a head that is unsure would discount every step.
    logit = termination_logits(nets, params.termination, latent)
    return (logit <= 0.0).astype(logit.dtype)


def policy(
    nets: Networks, params: Params, latent: Float[Array, "*batch L"]
) -> tuple[Float[Array, "*batch A"], Float[Array, "*batch A"]]:
    """An actor's raw mean and raw log-std, as :mod:`pomcp_jax.actors` expects them."""
    mean, raw = jnp.split(networks.apply(nets.policy, params, latent), 2, axis=-1)
    return mean, raw
