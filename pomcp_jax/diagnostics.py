"""Diagnostics computed at each evaluation: value bias, policy-planner mismatch, gradient noise.

Over-estimation of values, mismatch of policy and planner, signal and noise of the policy
gradient with and without the learned prior, age of the records, and each term's share of
the gradient (docs/method.md, "Diagnostics"). Pure functions; neither learning nor acting
depends on them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from pomcp_jax import (
    acting,
    actors,
    agent,
    diagnostics_gradients,
    evaluate,
    losses,
    maths,
    model_loss,
    normalising,
    replay,
    train,
)
from pomcp_jax import world_model as wm
from pomcp_jax.acting import AgentParams, AgentSpec
from pomcp_jax.agent import AgentState
from pomcp_jax.config import AgentConfig, Config
from pomcp_jax.envs.protocol import Env
from pomcp_jax.evaluate import Episodes, Trace
from pomcp_jax.mppi import PlanOutput
from pomcp_jax.replay import Batch
from pomcp_jax.seed_axis import over_seeds
from pomcp_jax.train import TrainState
from pomcp_jax.types import Gaussian, Key, Params

ESTIMATES = ("planner", "critic")
MISMATCHES = ("kl_policy_{}", "kl_{}_policy", "distance_{}")
NAMES = tuple(
    f"diag/{name}"
    for name in (
        *(f"value_{name}" for name in ESTIMATES),
        *(f"value_error_{name}" for name in ESTIMATES),
        *(f"value_error_relative_{name}" for name in ESTIMATES),
        *(name.format("planner") for name in MISMATCHES),
        *(name.format("record") for name in MISMATCHES),
        *("record_age", "record_age_p95"),
        *("snr", "snr_kl", "snr_stored", "snr_kl_stored"),
        *(f"gradient_{name}" for name in (*diagnostics_gradients.TERMS, "total")),
        *(f"cosine_{name}" for name in diagnostics_gradients.TERMS),
    )
)
"""All metrics; NaN if undefined for a configuration."""
READS = frozenset({"train.num_seeds", "train.eval_episodes", "train.eval_select"})
"""Settings that an evaluation reads (:mod:`pomcp_jax.compiled`)."""
BATCHES = 16
"""Batches that the gradient's signal and noise are measured on."""


# ---------------------------------------------------------------------------
# Policy and planner


class Mismatch(NamedTuple):
    """Distances between a policy and a planner's record."""

    kl_policy: Float[Array, "*batch"]
    """KL(policy || record) in nats, summed over A."""
    kl_planner: Float[Array, "*batch"]
    """KL(record || policy)."""
    distance: Float[Array, "*batch"]
    """Root mean square over A of the policy's action without noise minus the record's mean."""


def mismatch(policy: Gaussian, record: Gaussian, squash: str) -> Mismatch:
    """Both divergences in closed form, and the distance of the modes.

    Args:
      policy: its distribution, before the tanh for squash ``tanh``.
      record: a planner's record, over actions.
      squash: ``world_model.squash``.
    """
    dist, mode = actors.over_actions(policy, squash), actors.mode(policy, squash)
    return Mismatch(
        jnp.sum(maths.gaussian_kl(dist, record), axis=-1),
        jnp.sum(maths.gaussian_kl(record, dist), axis=-1),
        jnp.sqrt(jnp.mean(jnp.square(mode - record.mean), axis=-1)),
    )


# ---------------------------------------------------------------------------
# Evaluation: values and mismatch where the planner acts


class Seen(NamedTuple):
    """Quantities measured at the states of an evaluation."""

    values: Float[Array, "*batch 2"]
    """Of :data:`ESTIMATES`: the plan's value; the mean over the critic's heads."""
    mismatch: Mismatch


def critic_value(
    spec: AgentSpec,
    params: AgentParams,
    key: Key,
    latents: Float[Array, "*batch L"],
    config: AgentConfig,
) -> Float[Array, "*batch"]:
    """Mean over all heads of ``V(z)``, or of ``Q(z, a)`` with the action of the critic's targets.

    That is what the critic is trained to be. Actions of stored plans, which a state that was just
    reached lacks, are the policy's instead.
    """
    action, model, critic = None, config.world_model, config.critic
    if model.critic == "q":
        use_prior = critic.target_actor == "prior" and params.prior is not None
        actor = params.prior if use_prior else params.policy
        action = actors.act(spec.nets, actor, key, latents, model, critic.target_action).action
    bins = wm.bins(config.world_model)
    return jnp.mean(wm.values(spec.nets, params.model.value, latents, action, bins), axis=0)


def probe(spec: AgentSpec) -> evaluate.Probe:
    """Probe for :func:`pomcp_jax.evaluate.traced` that returns :class:`Seen`."""

    def look(config, params, key, obs, plan: PlanOutput) -> Seen:
        seen = normalising.apply(params.moments, obs)
        latents = wm.encode(spec.nets, params.model.encoder, seen)
        critic = critic_value(spec, params, key, latents, config)
        model = config.world_model
        policy = actors.distribution(spec.nets, params.policy, latents, model)
        # Floored as in the loss, which never sees the bare std either.
        record = losses.floored(plan.prior, config.policy)
        apart = mismatch(policy, record, model.squash)
        return Seen(jnp.stack([plan.value, critic], axis=-1), apart)

    return look


class Returns(NamedTuple):
    """Returns from every decision of an evaluation."""

    value: Float[Array, "T *batch"]
    bootstrap: Float[Array, "T *batch"]
    """Weight of the estimate in them: ``gamma^n`` where the episode is cut n decisions on."""


def discounted_returns(
    reward: Float[Array, "T *batch"],
    alive: Bool[Array, "T *batch"],
    terminated: Bool[Array, "T *batch"],
    value: Float[Array, "T *batch"],
    discount: Float[Array, ""] | float,
) -> Returns:
    """Discounted returns, bootstrapped by ``value`` at the final state of a cut episode.

    Index T - 1 is a final state or beyond it. Results are defined where
    ``alive``; the discount is per decision.
    """

    def step(following: Returns, now):
        reward, alive, terminated, value = now
        gamma = discount * (1.0 - terminated.astype(value.dtype))
        total = reward + gamma * following.value
        out = Returns(
            jnp.where(alive, total, value), jnp.where(alive, gamma * following.bootstrap, 1.0)
        )
        return out, out

    # Past an episode's end the estimate itself is carried back, with weight 1: a cut episode then
    # bootstraps from its final state, and a terminated one multiplies it by a discount of 0.
    last = Returns(value[-1], jnp.ones_like(value[-1]))
    before = jax.tree.map(lambda x: x[:-1], (reward, alive, terminated, value))
    _, out = jax.lax.scan(step, last, before, reverse=True)
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), out, last)


class Bias(NamedTuple):
    """Bias of an estimate of values."""

    error: Float[Array, ""]
    """Mean of estimate minus return; positive where values are over-estimated."""
    relative: Float[Array, ""]
    """The same, divided by the mean absolute value that it implies, ``mean |V - error|``."""


def value_bias(
    reward: Float[Array, "T E"],
    alive: Bool[Array, "T E"],
    terminated: Bool[Array, "T E"],
    value: Float[Array, "T E"],
    discount: Float[Array, ""] | float,
) -> Bias:
    """``sum (V - G) / sum (1 - b)``, ``G`` bootstrapped with V itself by the weight ``b``.

    Near a cut the return is mostly V, so the error there carries no information.
    Dividing by the share of the return that is *not* V makes the ratio exact for a
    constant bias, with episodes of any length, and weighs states by their information.
    NaN without any decision.
    """
    returns = discounted_returns(reward, alive, terminated, value, discount)
    total = lambda x: jnp.sum(jnp.where(alive, x, 0.0))  # noqa: E731
    error = total(value - returns.value) / total(1.0 - returns.bootstrap)
    # Without the error, an estimate that is far too high would make itself look accurate.
    size = total(jnp.abs(value - error)) / total(jnp.ones_like(value))
    return Bias(error, error / size)


def acting_metrics(
    episodes: Episodes, trace: Trace, config: AgentConfig
) -> dict[str, Float[Array, " S"]]:
    """Bias of the values and mismatch of policy and planner over an evaluation.

    Episodes whose environment broke are left out.

    Args:
      episodes: of the evaluation.
      trace: of the same, with :class:`Seen`.
      config: of the agent.
    """

    def of_seed(config: AgentConfig, trace: Trace, valid: Bool[Array, " E"]):
        alive, seen = trace.alive & valid[None], trace.seen
        out = {}
        for i, name in enumerate(ESTIMATES):
            value = seen.values[..., i]
            bias = value_bias(
                trace.reward, alive, trace.terminated, value, config.optimizer.discount
            )
            out[f"diag/value_{name}"] = _mean(value, alive)
            out[f"diag/value_error_{name}"] = bias.error
            out[f"diag/value_error_relative_{name}"] = bias.relative
        return out | _mismatch_metrics(seen.mismatch, alive, "planner")

    return over_seeds(of_seed, config, trace, episodes.valid)


def _mean(x: Float[Array, "*batch"], mask: Bool[Array, "*batch"]) -> Float[Array, ""]:
    """Masked mean; NaN if nothing is selected."""
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.sum(mask, dtype=x.dtype)


def _mismatch_metrics(distances: Mismatch, mask: Array, name: str) -> dict[str, Float[Array, ""]]:
    return {
        f"diag/{kind.format(name)}": _mean(values, mask)
        for kind, values in zip(MISMATCHES, distances, strict=True)
    }


# ---------------------------------------------------------------------------
# Replay: records and gradients


def _with_record(batch: Batch, config: AgentConfig) -> Bool[Array, "H B"]:
    """Transitions whose first state has a planner record."""
    return batch.transition & model_loss.recorded(batch, config)[:-1]


def learning_metrics(
    state: AgentState,
    batches: Batch,
    updates: Int[Array, ""] | int,
    key: Key,
    *,
    spec: AgentSpec,
    config: AgentConfig,
) -> dict[str, Float[Array, ""]]:
    """Records and policy gradients of one seed, on M batches.

    Both priors see the same batches, actions and heads.

    Args:
      state: of one seed.
      batches: windows with a leading axis M.
      updates: done so far, in units of ``rows.made``.
      key: consumed.
      spec: static part of the agent.
      config: of the agent.
    """
    key_scale, key = jax.random.split(key)
    keys = jax.random.split(key, batches.valid.shape[0])
    # Records are plans of what learns, not of an average that is evaluated.
    params = agent.with_learners(state).params
    batches = acting.normalised(params, batches)
    rows, mask = batches.rows, jax.vmap(lambda batch: _with_record(batch, config))(batches)
    # The last row of a window belongs to no transition, so it may hold no record.
    acted = jax.tree.map(lambda x: x[:, :-1], rows)
    latents = wm.encode(spec.nets, params.model.encoder, acted.obs)
    model = config.world_model
    policy = actors.distribution(spec.nets, params.policy, latents, model)
    record = losses.floored(acted.prior, config.policy)
    out = _mismatch_metrics(mismatch(policy, record, model.squash), mask, "record")
    age = (updates - acted.made).astype(rows.reward.dtype)
    out["diag/record_age"] = _mean(age, mask)
    out["diag/record_age_p95"] = jnp.nanpercentile(jnp.where(mask, age, jnp.nan), 95.0)

    if not config.policy.learns_prior:
        gradients = diagnostics_gradients.moments(
            state, batches, keys, state.scales.kl, spec=spec, config=config
        )
        snr = diagnostics_gradients.signal_to_noise(gradients)
        # NaN, not absence: the columns of a table do not depend on the configuration.
        snr = jnp.stack([snr, jnp.full_like(snr, jnp.nan)])
    else:
        scale = _stored_scale(state, batches, mask, key_scale, spec, config)
        both = diagnostics_gradients.side_by_side(
            state, batches, keys, scale, spec=spec, config=config
        )
        snr = jax.vmap(diagnostics_gradients.signal_to_noise)(both)
        gradients = jax.tree.map(lambda x: x[0], both)
    for i, suffix in enumerate(("", "_stored")):
        out |= {f"diag/snr{suffix}": snr[i, 0], f"diag/snr_kl{suffix}": snr[i, 1]}
    return out | _term_metrics(gradients.mean)


def _stored_scale(
    state: AgentState,
    batches: Batch,
    mask: Bool[Array, "M W B"],
    key: Key,
    spec: AgentSpec,
    config: AgentConfig,
) -> Float[Array, ""]:
    """The scale to which the KL to the records would converge, measured as in the loss.

    That is on the first states of the windows, of the policy and the encoder that learn.
    """
    rows, model = batches.rows, config.world_model
    params = agent.with_learners(state).params
    latents = wm.encode(spec.nets, params.model.encoder, rows.obs[:, 0])
    policy = actors.distribution(spec.nets, params.policy, latents, model)
    record = jax.tree.map(lambda x: x[:, 0], losses.floored(rows.prior, config.policy))
    noise = jax.random.normal(key, policy.mean.shape, policy.mean.dtype)
    sample = actors.draw(policy, noise, model.squash)
    record = losses.prepare_prior(record, sample, config.policy)
    kl = losses.divergence(sample, record, config.policy)
    return jnp.maximum(maths.percentile_range(kl, mask[:, 0]), 1.0)


def _term_metrics(terms: Params) -> dict[str, Float[Array, ""]]:
    """Norm of the mean gradient of every term, and its cosine with their sum."""
    total = diagnostics_gradients.parts(terms)[0]
    norm, out = jnp.sqrt(diagnostics_gradients.square(total)), {}
    for i, name in enumerate(diagnostics_gradients.TERMS):
        term = jax.tree.map(lambda x: x[i], terms)  # noqa: B023
        term_norm = jnp.sqrt(diagnostics_gradients.square(term))
        out[f"diag/gradient_{name}"] = term_norm
        out[f"diag/cosine_{name}"] = optax.tree.vdot(term, total) / (term_norm * norm)
    return out | {"diag/gradient_total": norm}


# ---------------------------------------------------------------------------
# A whole run


def diagnose(
    state: TrainState, config: Config, spec: AgentSpec, keys: Key, batches: int = BATCHES
) -> dict[str, Float[Array, " S"]]:
    """:func:`learning_metrics` of every seed, on ``batches`` batches of its replay.

    Args:
      state: of the run; only read.
      config: of the run.
      spec: static part of the agent.
      keys: ``[S]``, consumed.
      batches: M, of ``optimizer.batch_size`` windows each.
    """
    size, length = config.agent.optimizer.batch_size, config.agent.mppi.horizon + 1
    # One key draws the windows, the other the noise of all that is measured on them.
    keys = jax.vmap(jax.random.split)(keys)
    sample = jax.vmap(
        lambda ring, key: replay.sample(ring, key, batches * size, length),
        in_axes=(replay.SEEDS, 0),
    )
    windows = sample(state.replay, keys[:, 0])

    def of_seed(config, learner, windows, key):
        def split(x: Array) -> Array:
            # One large draw cut into batches: their windows are as independent as those of M draws.
            return jnp.moveaxis(x.reshape(length, batches, size, *x.shape[2:]), 1, 0)

        parts = jax.tree.map(split, windows)
        return learning_metrics(learner, parts, state.updates, key, spec=spec, config=config)

    return over_seeds(of_seed, config.agent, state.agent, windows, keys[:, 1])


def evaluate_run(
    state: TrainState, config: Config, *, env: Env, spec: AgentSpec
) -> tuple[Episodes, dict[str, Float[Array, " S"]]]:
    """The planner's evaluation of a run, and all of :data:`NAMES`.

    The episodes are those of :func:`pomcp_jax.evaluate.rollout` with the same keys.
    """
    keys = train.fold_keys(state, train.EVALUATION, state.iteration)
    episodes, trace = evaluate.traced(
        state.agent.params,
        keys,
        probe(spec),
        env=env,
        spec=spec,
        config=config.agent,
        episodes=config.train.eval_episodes,
        select=config.train.eval_select,
    )
    # A stream of its own (the evaluation uses 0 to 2), so that diagnostics do not change episodes.
    own = jax.vmap(lambda key: jax.random.fold_in(key, 3))(keys)
    metrics = acting_metrics(episodes, trace, config.agent)
    return episodes, metrics | diagnose(state, config, spec, own)
