"""Gradients of the policy loss by term, and their signal-to-noise ratio over batches."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from pomcp_jax import agent, model_loss, policy_loss
from pomcp_jax.acting import AgentSpec
from pomcp_jax.agent import AgentState
from pomcp_jax.config import AgentConfig
from pomcp_jax.replay import Batch
from pomcp_jax.types import Key, Params, PyTree

TERMS = ("value", "kl", "entropy")
"""Terms of the policy loss, in the order of its coefficients."""


class Moments(NamedTuple):
    """Mean of gradients, and the trace of the covariance of parts of them."""

    count: Float[Array, ""]  # type: ignore[assignment]  # hides a method of tuple that nothing calls
    mean: Params
    """A leading axis of terms."""
    squares: Float[Array, " parts"]
    """Sum of squared distances to the mean, of every part."""


PARTS = ((1.0, 1.0, 1.0), (0.0, 1.0, 0.0))
"""Sums of :data:`TERMS` whose signal and noise are measured: all terms, and the KL alone."""


def parts(terms: PyTree) -> list[PyTree]:
    """The sums of terms that :data:`PARTS` names."""

    def add(weights: tuple[float, ...]) -> PyTree:
        return jax.tree.map(lambda x: jnp.tensordot(jnp.asarray(weights, x.dtype), x, 1), terms)

    return [add(weights) for weights in PARTS]


def add_gradient(moments: Moments, terms: PyTree) -> Moments:
    """Add a gradient by Welford's algorithm (Technometrics 1962), which avoids cancellation.

    Args:
      moments: of the gradients so far; zeros initially.
      terms: gradients with a leading axis of :data:`TERMS`.
    """
    count = moments.count + 1.0
    before = jax.tree.map(jnp.subtract, terms, moments.mean)
    mean = jax.tree.map(lambda m, d: m + d / count, moments.mean, before)
    after = jax.tree.map(jnp.subtract, terms, mean)
    pairs = zip(parts(before), parts(after), strict=True)
    squares = jnp.stack([optax.tree.vdot(a, b) for a, b in pairs])
    return Moments(count, mean, moments.squares + squares)


def signal_to_noise(moments: Moments) -> Float[Array, " parts"]:
    """``|E g|^2 / tr cov g`` of one batch's gradient, of every part.

    With M batches, mean m and unbiased ``v`` of the trace: ``(|m|^2 - v / M) / v``,
    since ``E |m|^2 = |E g|^2 + v / M``. Without that correction pure noise would
    show 1 / M; with it, noise scatters about 0, below it too. Infinite without noise,
    NaN without any gradient.
    """
    # The trace alone: a covariance of all parameters would not fit into memory.
    variance = moments.squares / (moments.count - 1.0)
    norms = jnp.stack([square(part) for part in parts(moments.mean)])
    return (norms - variance / moments.count) / variance


def square(tree: PyTree) -> Float[Array, ""]:
    """Squared Euclidean norm."""
    return optax.tree.vdot(tree, tree)


def term_gradients(
    state: AgentState,
    batch: Batch,
    key: Key,
    scale_kl: Float[Array, ""],
    *,
    spec: AgentSpec,
    config: AgentConfig,
) -> Params:
    """Gradients of :data:`TERMS`, with their coefficients, as an update would take them.

    The policy loss is linear in its coefficients, so each term is the loss with
    the other coefficients zero. They sum to the gradient of the loss.
    """
    params, rows = agent.with_learners(state).params, batch.rows
    latents = model_loss.roll_out(spec.nets, params.model, rows.obs[0], rows.action[:-1])

    def gradient(share: Float[Array, " terms"]) -> Params:
        policy = config.policy
        # Traced factors, so that ``vmap`` over the rows of an identity yields all terms at once.
        coefficients: dict[str, Any] = {
            "q_coef": share[0] * policy.q_coef,
            "kl_coef": share[1] * policy.kl_coef,
            "entropy_coef": share[2] * policy.entropy_coef,
        }
        policy = dataclasses.replace(policy, **coefficients)
        grads, _ = jax.grad(policy_loss.policy_loss, has_aux=True)(
            params.policy,
            params,
            jax.lax.stop_gradient(latents),
            batch,
            state.scales._replace(kl=scale_kl),
            key,
            nets=spec.nets,
            config=dataclasses.replace(config, policy=policy),
        )
        return grads

    return jax.vmap(gradient)(jnp.eye(len(TERMS), dtype=jnp.float32))


def moments(
    state: AgentState,
    batches: Batch,
    keys: Key,
    scale_kl: Float[Array, ""],
    *,
    spec: AgentSpec,
    config: AgentConfig,
) -> Moments:
    """Moments over batches with a leading axis M, in sequence: the memory of a single gradient."""

    def step(moments: Moments, inputs: tuple[Batch, Key]) -> tuple[Moments, None]:
        terms = term_gradients(state, *inputs, scale_kl, spec=spec, config=config)
        return add_gradient(moments, terms), None

    zeros = jax.tree.map(lambda x: jnp.zeros((len(TERMS), *x.shape), x.dtype), state.params.policy)
    start = Moments(jnp.zeros((), jnp.float32), zeros, jnp.zeros((len(PARTS),), jnp.float32))
    return jax.lax.scan(step, start, (batches, keys))[0]


def side_by_side(
    state: AgentState,
    batches: Batch,
    keys: Key,
    stored_scale: Float[Array, ""],
    *,
    spec: AgentSpec,
    config: AgentConfig,
) -> Moments:
    """:func:`moments` with the prior of ``config`` and with the records themselves, ``[2]``.

    Both are mixtures of the learned prior and the record, of different weights, so
    one compiled function serves; states, actions and heads are the same. Needs a
    learned prior. States without a record are left out.

    Args:
      state: of one seed.
      batches: with a leading axis M.
      keys: ``[M]``.
      stored_scale: of the KL to the records, instead of the running scale.
      spec: static part of the agent.
      config: of the agent.
    """
    policy, scale = config.policy, state.scales.kl
    # A mixture of weight 1 is the learned prior, one of weight 0 the records.
    weight = jnp.asarray(policy.prior_mix if policy.prior == "mixture" else 1.0, scale.dtype)

    def measure(choice: tuple[Any, Array]) -> Moments:
        prior_mix, scale_kl = choice
        mixed = dataclasses.replace(policy, prior="mixture", prior_mix=prior_mix)
        changed = dataclasses.replace(config, policy=mixed)
        return moments(state, batches, keys, scale_kl, spec=spec, config=changed)

    weights = jnp.stack([weight, jnp.zeros_like(weight)])
    # In sequence, not by ``vmap``, for the memory of a single gradient.
    return jax.lax.map(measure, (weights, jnp.stack([scale, stored_scale])))
