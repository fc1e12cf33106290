"""Clipped Adam steps that refuse non-finite gradients; shared by all parts of the agent."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from pomcp_jax import packing
from pomcp_jax.config import OptimizerConfig
from pomcp_jax.types import Params, PyTree


class Step(NamedTuple):
    """Result of one optimiser step."""

    params: Params
    opt: optax.OptState
    grad_norm: Float[Array, ""]
    finite: Bool[Array, ""]


def adam_step(
    params: Params,
    grads: Params,
    opt: optax.OptState,
    *,
    learning_rate: Float[Array, ""] | float,
    clip: Float[Array, ""] | float,
    epsilon: Float[Array, ""] | float = 1e-8,
    rate_scale: PyTree = 1.0,
    allow: Bool[Array, ""] | bool = True,
) -> Step:
    """Adam with global-norm clipping; a no-op unless ``allow`` and the gradient is finite.

    ``rate_scale`` is a prefix tree of ``params`` that multiplies the learning
    rate. optax.apply_if_finite is not used: it accepts a NaN after N bad steps.
    """
    # One infinite or NaN entry makes the norm so: a single number tells whether all are finite.
    norm = packing.norm(grads)
    good = jnp.isfinite(norm) & allow
    # The norm of a gradient can be 0, as that of a gated prior without any record to fit.
    factor = jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12))
    grads = jax.tree.map(lambda g: g * factor, grads)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes its integer count with floats
        updates, new_opt = optax.scale_by_adam(eps=epsilon).update(grads, opt, params)
    scales = jax.tree.broadcast(rate_scale, params)

    def move(old, update, scale):
        # A select: multiplying a NaN by 0 would not remove it. A ``lax.cond`` would not save work:
        # its predicate has the axis of seeds.
        return jnp.where(good, old - learning_rate * scale * update, old)

    new_params = jax.tree.map(move, params, updates, scales)
    # XLA fuses this select with the update: no extra pass over memory.
    kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), new_opt, opt)
    return Step(new_params, kept, norm, jnp.isfinite(norm))


def rate(count: Int[Array, ""], config: OptimizerConfig) -> Float[Array, ""] | float:
    """Step size after ``count`` updates: ``learning_rate * min(1, decay_updates / count)``.

    Steps that fall as 1 / count average noise out (Robbins and Monro 1951), and they need no end:
    a run that is extended goes on with the same schedule.
    """
    if not config.decay_updates:
        return config.learning_rate
    most = float(config.decay_updates)
    return config.learning_rate * most / jnp.maximum(count.astype(jnp.float32), most)


class Improved(NamedTuple):
    """Result of :func:`improve`."""

    params: Params
    opt: optax.OptState
    loss: Float[Array, ""]
    aux: PyTree
    grad_norm: Float[Array, ""]
    finite: list[Bool[Array, ""]]
    """Of every term of the loss, then of the gradient."""


def improve(
    loss: Callable[[Params], tuple[Float[Array, ""], PyTree]],
    params: Params,
    opt: optax.OptState,
    config: OptimizerConfig,
    *,
    terms: Callable[[PyTree], tuple[Float[Array, ""], ...]] | None = None,
    enabled: Bool[Array, ""] | bool = True,
    interval: int = 1,
    **options: PyTree,
) -> Improved:
    """One step of a part of the agent on its loss; a no-op if any term is not finite.

    Args:
      loss: ``params -> (loss, aux)``.
      params: of the part.
      opt: its optimiser's state.
      config: learning rate and clipping.
      terms: ``aux -> terms`` that have to be finite; the loss itself by default.
      enabled: False leaves ``params`` and ``opt`` as they are.
      interval: the agent's updates per step of this part.
      **options: ``epsilon`` and ``rate_scale`` of :func:`adam_step`.
    """
    (total, aux), grads = jax.value_and_grad(loss, has_aux=True)(params)
    # Each term by itself, so that a run that stops can name the one at fault.
    finite = [jnp.isfinite(x) for x in ((total,) if terms is None else terms(aux))]
    step = adam_step(
        params,
        grads,
        opt,
        learning_rate=rate(opt.count * interval, config),
        clip=config.grad_clip,
        allow=jnp.all(jnp.stack(finite)) & enabled,
        **options,
    )
    return Improved(step.params, step.opt, total, aux, step.grad_norm, [*finite, step.finite])
