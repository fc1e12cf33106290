"""A trained agent as the start of a run, whatever member of the family that trains.

Its parameters replace those of fresh agents; optimiser and scales begin as always. What the two
have in common is taken over as it is. A learned prior that the agent lacks starts as a copy of its
policy, a termination head as a fresh one. Between critics, ``V(z)`` starts as ``Q(z, 0)``, and
``Q(z, a)`` as ``V(z)``. A policy keeps its noiseless action whatever the squash; its width follows
from the bounds of the log-std.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from pomcp_jax import latent_order
from pomcp_jax.acting import AgentSpec
from pomcp_jax.actors import AgentParams
from pomcp_jax.agent import AgentState
from pomcp_jax.config import AgentConfig, ConfigError
from pomcp_jax.types import Params


class Learned(NamedTuple):
    """Parameters of one agent, for runs of another configuration; NumPy arrays."""

    params: AgentParams
    """None for parts that stay fresh."""
    target_value: Params


SAME = (
    "latent_size",
    "encoder_width",
    "encoder_layers",
    "mlp_width",
    "simnorm_group",
    "num_bins",
    "bin_low",
    "bin_high",
    "normalise_observations",
)
"""Fields of the world model that must not differ."""


def _check(origin: AgentConfig, sizes: AgentSpec, config: AgentConfig, spec: AgentSpec) -> None:
    """Refuse an agent whose networks are not those of ``config``.

    Raises:
      ConfigError: names the field and both values.
    """
    for name, theirs, ours in (
        ("observations", sizes.obs_size, spec.obs_size),
        ("actions", sizes.action_size, spec.action_size),
    ):
        if theirs != ours:
            raise ConfigError(f"was trained with {theirs} {name}, env.task has {ours}")
    old, new = origin.world_model, config.world_model
    for name in SAME:
        theirs, ours = getattr(old, name), getattr(new, name)
        if np.any(theirs != ours):  # an array in a sweep
            field = f"agent.world_model.{name}"
            raise ConfigError(f"has {field} = {theirs}, this run {ours}; must be the same")
    if new.num_heads > old.num_heads:
        raise ConfigError(
            f"has agent.world_model.num_heads = {old.num_heads}, this run {new.num_heads}; must be"
            " as many or fewer"
        )


def adapted(
    params: AgentParams,
    target_value: Params | None,
    origin: AgentConfig,
    sizes: AgentSpec,
    config: AgentConfig,
    spec: AgentSpec,
) -> Learned:
    """Parameters of one agent for runs of ``config``.

    Args:
      params: of the agent, without an axis of seeds.
      target_value: its target heads; None for those of ``params``.
      origin: its configuration.
      sizes: static part of the agent.
      config: of the run.
      spec: static part of the run's agents.

    Raises:
      ConfigError: names the field that does not fit and both values.
    """
    _check(origin, sizes, config, spec)
    model = params.model
    wanted = config.world_model

    def heads(value: Params) -> Params:
        return _heads(value, wanted.critic, wanted.num_heads, spec.action_size)

    target = heads(model.value if target_value is None else target_value)
    has_head = wanted.termination
    model = model._replace(
        value=heads(model.value), termination=model.termination if has_head else None
    )
    prior: Any = None
    if config.policy.learns_prior:
        prior = params.policy if params.prior is None else params.prior
    params = AgentParams(model, params.policy, prior, params.moments)
    index = latent_order.order(origin.world_model, wanted.arranged_for)
    params = latent_order.arranged(params, origin.world_model, wanted.arranged_for)
    return Learned(params, latent_order.read(target, index))


def _heads(value: Params, critic: str, number: int, action_size: int) -> Params:
    """The first ``number`` value heads, for the inputs of ``critic``."""
    value = jax.tree.map(lambda x: np.asarray(x)[:number], value)
    linear = dict(value["layer_0"]["linear"])
    linear.pop("kernel_1", None)
    if critic == "q":
        kernel = linear["kernel_0"]
        # Zero, if the agent has a V critic: its values do not depend on the action.
        blank = np.zeros((number, action_size, kernel.shape[-1]), kernel.dtype)
        linear["kernel_1"] = value["layer_0"]["linear"].get("kernel_1", blank)
    return value | {"layer_0": value["layer_0"] | {"linear": linear}}


def begin(
    agents: AgentState, learned: Learned, which: Bool[np.ndarray, " S"] | None = None
) -> AgentState:
    """Fresh ``agents``, with a leading axis S, with the parameters of ``learned``.

    ``which`` selects the agents that get them; all by default. Selected ones keep their statistics
    of observations, which describe a replay that stays.
    """

    def put(new: Any, like: Any) -> Any:
        if new is None:
            return like

        def choose(x: np.ndarray, old: jax.Array) -> jax.Array:
            taken = np.ones(len(old), bool) if which is None else np.asarray(which)
            # Every leaf is a new array: a buffer cannot be donated twice.
            return jnp.where(taken.reshape(-1, *(1 for _ in x.shape)), x[None], old)

        return jax.tree.map(choose, new, like)

    fresh = agents.params
    model = type(fresh.model)(*map(put, learned.params.model, fresh.model))
    moments = put(learned.params.moments, fresh.moments) if which is None else fresh.moments
    policy, prior = put(learned.params.policy, fresh.policy), put(learned.params.prior, fresh.prior)
    params, opt = AgentParams(model, policy, prior, moments), agents.opt
    if opt.learning_policy is not None:  # an average begins with the actor that it follows
        opt = opt._replace(learning_policy=put(learned.params.policy, opt.learning_policy))
    if opt.learning_prior is not None:
        opt = opt._replace(learning_prior=put(learned.params.prior, opt.learning_prior))
    if opt.learning_model is not None:
        parts = map(put, learned.params.model, opt.learning_model)
        opt = opt._replace(learning_model=type(fresh.model)(*parts))
    target = put(learned.target_value, agents.target_value)
    return agents._replace(params=params, target_value=target, opt=opt)
