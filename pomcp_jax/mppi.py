"""Model Predictive Path Integral planning with policy proposals, as a pure function.

The planner knows nothing of agents, training or environments: it takes a model
as callables on *unbatched* arrays and is itself unbatched. ``jax.vmap`` it over
robots, environments, seeds, temperatures or a replay batch. The latent may be
any pytree (an ``mjx.Data`` gives true-model MPC).

The algorithm is TD-MPC2's (arXiv 2310.16828, section 3.2 and repository
nicklashansen/tdmpc2, ``TDMPC2._plan``), a variant of MPPI (arXiv 1707.02342)
with elites and policy-guided proposals. The action distribution that a policy
can be trained towards is part of the output, in the three published variants.

Symbols: N samples, P proposals (P < N), E elites, H horizon, A action size.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pomcp_jax.config import ConfigError, MppiConfig
from pomcp_jax.types import Gaussian, Key, Params, PyTree

Proposer = Callable[[Params, Key, PyTree], Float[Array, " A"]]


class ModelFns(NamedTuple):
    """The model to plan in; unbatched pure functions of ``params``."""

    step: Callable[[Params, PyTree, Float[Array, " A"]], tuple[PyTree, Array, Array]]
    """``(params, latent, action [A]) -> (next latent, reward [], discount [])``."""
    value: Callable[[Params, Key, PyTree], Float[Array, ""]]
    """``(params, key, latent) -> []``: value of the state at the end of a plan."""
    sample_action: "Proposer | tuple[Proposer, ...] | None" = None
    """``(params, key, latent) -> [A]``: proposal policy; several share the P proposals
    evenly, the first ones take what is left over. None plans without proposals."""


class PlanState(NamedTuple):
    """What one decision hands to the next."""

    mean: Float[Array, "H A"]
    """Warm start, already shifted by one step; zeros at an episode's start."""


class PlanDiagnostics(NamedTuple):
    """Scalars that tell how a plan went."""

    elite_return: Float[Array, ""]
    """Weighted mean return of the last iteration's elites (equals ``PlanOutput.value``)."""
    elite_spread: Float[Array, ""]
    """Best minus worst elite return."""
    effective_elites: Float[Array, ""]
    """1 / sum w^2: E if all elites weigh the same, 1 if one takes all."""
    proposal_share: Float[Array, ""]
    """Share of the elites that are policy proposals."""
    std: Float[Array, ""]
    """Mean over A of the first step's final std."""
    nonfinite: Int[Array, ""]
    """Candidate returns that were NaN or infinite."""


class PlanOutput(NamedTuple):
    """Result of :func:`plan`."""

    action: Float[Array, " A"]
    """To execute: the chosen elite's first action, plus exploration noise, clipped."""
    mode: Float[Array, " A"]
    """First action of the final mean."""
    prior: Gaussian
    """Training target ``N([A], [A])`` for a policy, as ``MppiConfig.record`` says."""
    value: Float[Array, ""]
    """Weighted mean return of the elites: the planner's estimate of the root's value."""
    next_state: PlanState
    diagnostics: PlanDiagnostics


class _Population(NamedTuple):
    mean: Float[Array, "H A"]
    std: Float[Array, "H A"]
    elites: Float[Array, "E H A"]
    returns: Float[Array, " E"]
    weights: Float[Array, " E"]
    index: Int[Array, " E"]
    nonfinite: Int[Array, ""]


def _check(config: MppiConfig, path: str, checks: tuple[tuple[str, bool, str], ...]) -> None:
    for name, good, hint in checks:
        if not good:
            raise ConfigError(f"{path}.{name} = {getattr(config, name)!r}: must be {hint}")


def check_sizes(config: MppiConfig, path: str = "mppi") -> None:
    """Check what is static, under ``jit`` too.

    Raises:
      ConfigError: one line naming the field, the value and what would work.
    """
    checks = (
        ("horizon", config.horizon >= 1, ">= 1"),
        ("iterations", config.iterations >= 1, ">= 1"),
        ("num_samples", config.num_samples >= 1, ">= 1"),
        (
            "num_proposals",
            0 <= config.num_proposals < config.num_samples,
            f"in [0, {path}.num_samples = {config.num_samples})",
        ),
        (
            "num_elites",
            1 <= config.num_elites <= config.num_samples,
            f"in [1, {path}.num_samples = {config.num_samples}]",
        ),
        ("select", config.select in ("sample", "argmax"), "'sample' or 'argmax'"),
        (
            "record",
            config.record in ("sampled_elite", "mean", "best_elite"),
            "'sampled_elite', 'mean' or 'best_elite'",
        ),
    )
    _check(config, path, checks)


def validate(config: MppiConfig, path: str = "mppi") -> None:
    """Check sizes, options and numbers; needs concrete numbers.

    Raises:
      ConfigError: as :func:`check_sizes`.
    """
    check_sizes(config, path)
    low = f">= {path}.std_min = {config.std_min}"
    checks = (
        ("temperature", config.temperature >= 0.0, ">= 0"),
        ("std_min", config.std_min >= 0.0, ">= 0"),
        ("std_max", config.std_max >= config.std_min, low),
    )
    _check(config, path, checks)


def init(config: MppiConfig, action_size: int, dtype: jnp.dtype = jnp.float32) -> PlanState:
    """The warm start of an episode's first plan: zeros ``[H, A]``."""
    return PlanState(mean=jnp.zeros((config.horizon, action_size), dtype))


def sample_noise(key: Key, iteration: Int[Array, ""] | int, shape: tuple[int, ...]) -> Array:
    """Standard normal noise of one MPPI iteration, ``shape = (N - P, H, A)``."""
    return jax.random.normal(jax.random.fold_in(key, iteration), shape)


def score(
    params: Params,
    keys: Key,
    root: PyTree,
    actions: Float[Array, "N H A"],
    *,
    model: ModelFns,
) -> Float[Array, " N"]:
    """Discounted model return of every action sequence, tail value included.

    ``G = sum_t D_t r_t + D_H V(z_H)`` with ``D_t`` the product of the model's
    discounts before step t. ``keys`` ``[N]`` feed ``model.value``. The root is
    not repeated over N: what the first step computes from it alone is computed once.
    """
    moved = jnp.moveaxis(actions, 1, 0)
    first = jax.vmap(model.step, in_axes=(None, None, 0))
    later = jax.vmap(model.step, in_axes=(None, 0, 0))
    latent, total, discount = first(params, root, moved[0])

    def advance(carry, action):
        latent, total, discount = carry
        latent, reward, gamma = later(params, latent, action)
        return (latent, total + discount * reward, discount * gamma), None

    (latent, total, discount), _ = jax.lax.scan(advance, (latent, total, discount), moved[1:])
    tail = jax.vmap(model.value, in_axes=(None, 0, 0))(params, keys, latent)
    return total + discount * tail


def propose(
    params: Params, key: Key, root: PyTree, *, model: ModelFns, config: MppiConfig
) -> tuple[Float[Array, "P H A"], Float[Array, " P"]]:
    """Roll the proposal policy out in the model, once; the sequences and their returns.

    They stay in the population of every iteration, so one score serves all.
    """
    proposers = model.sample_action
    proposers = proposers if isinstance(proposers, tuple) else (proposers,)
    step = jax.vmap(model.step, in_axes=(None, 0, 0))
    num = config.num_proposals
    keys = jax.random.split(key, (config.horizon + 1, num))
    latent = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (num, *x.shape)), root)

    ends = [-(-num * i // len(proposers)) for i in range(len(proposers) + 1)]

    def act(keys, latent):
        parts = []
        for proposer, begin, end in zip(proposers, ends[:-1], ends[1:], strict=True):
            if end > begin:
                own = jax.tree.map(lambda x: x[begin:end], (keys, latent))  # noqa: B023
                parts.append(jax.vmap(proposer, in_axes=(None, 0, 0))(params, *own))
        return jnp.concatenate(parts) if len(parts) > 1 else parts[0]

    def advance(latent, step_keys):
        action = act(step_keys, latent)
        action = jnp.clip(jnp.nan_to_num(action), -1.0, 1.0)
        latent, reward, gamma = step(params, latent, action)
        return latent, (action, reward, gamma)

    latent, (actions, rewards, gammas) = jax.lax.scan(advance, latent, keys[:-1])
    tail = jax.vmap(model.value, in_axes=(None, 0, 0))(params, keys[-1], latent)
    total = tail
    for t in reversed(range(config.horizon)):
        total = rewards[t] + gammas[t] * total
    return jnp.moveaxis(actions, 0, 1), total


def _fit(
    candidates: Float[Array, "N H A"],
    returns: Float[Array, " N"],
    config: MppiConfig,
) -> _Population:
    """Elite-weighted mean and std of a population (TD-MPC2 ``_plan``, "update parameters")."""
    finite = jnp.isfinite(returns)
    # NaN counts as 0, as in the reference; an infinitely bad return stays the worst.
    # The bound keeps differences of returns finite too.
    bound = float(jnp.finfo(returns.dtype).max) / 4.0
    returns = jnp.where(finite, returns, jnp.where(returns == -jnp.inf, -bound, 0.0))
    returns = jnp.clip(returns, -bound, bound)
    elite_returns, index = jax.lax.top_k(returns, config.num_elites)
    elites = jnp.take(candidates, index, axis=0)
    weights = jax.nn.softmax(config.temperature * (elite_returns - elite_returns[0]))
    weight = weights[:, None, None]
    mean = jnp.sum(weight * elites, axis=0)
    variance = jnp.sum(weight * jnp.square(elites - mean[None]), axis=0)
    std = jnp.clip(jnp.sqrt(variance), config.std_min, config.std_max)
    nonfinite = jnp.sum(~finite, dtype=jnp.int32)
    return _Population(mean, std, elites, elite_returns, weights, index, nonfinite)


def _record(population: _Population, chosen: Float[Array, "H A"], config: MppiConfig) -> Gaussian:
    """The first step's action distribution, in the variant that ``config.record`` names."""
    if config.record == "mean":
        return Gaussian(population.mean[0], population.std[0])
    if config.record == "best_elite":
        # alvaro-serra/bmpc-jax: spread about the best elite, neither floored nor capped.
        best = population.elites[0, 0]
        gap = jnp.square(population.elites[:, 0] - best[None])
        return Gaussian(best, jnp.sqrt(jnp.sum(population.weights[:, None] * gap, axis=0) + 1e-6))
    return Gaussian(chosen[0], population.std[0])


def plan(
    params: Params,
    key: Key,
    root: PyTree,
    state: PlanState,
    *,
    model: ModelFns,
    config: MppiConfig,
    explore: Float[Array, ""] | float = 1.0,
) -> PlanOutput:
    """Plan one decision from ``root``.

    Args:
      params: passed to the model's callables untouched.
      key: consumed.
      root: latent of the present state, without a batch axis.
      state: warm start from the previous decision (:func:`init` at a start).
      model: see :class:`ModelFns`.
      config: sizes (static) and numbers (traced: changing them does not recompile).
      explore: scale of the noise added to the executed action; 0 when evaluating.

    Returns:
      A :class:`PlanOutput`; all its fields are finite whatever the model returns.

    Raises:
      ConfigError: for sizes that cannot work, or a warm start of another shape.
    """
    check_sizes(config)
    num_proposals = 0 if model.sample_action is None else config.num_proposals
    horizon, action_size = state.mean.shape
    if horizon != config.horizon:
        raise ConfigError(f"state.mean: has horizon {horizon}, mppi.horizon is {config.horizon}")
    num_free = config.num_samples - num_proposals
    key_propose, key_noise, key_tail, key_select, key_explore = jax.random.split(key, 5)
    dtype = state.mean.dtype

    proposals = jnp.zeros((0, horizon, action_size), dtype)
    proposal_returns = jnp.zeros((0,), dtype)
    if num_proposals:
        proposals, proposal_returns = propose(params, key_propose, root, model=model, config=config)

    def iterate(i, population: _Population) -> _Population:
        noise = sample_noise(key_noise, i, (num_free, horizon, action_size)).astype(dtype)
        samples = jnp.clip(population.mean[None] + population.std[None] * noise, -1.0, 1.0)
        keys = jax.random.split(jax.random.fold_in(key_tail, i), num_free)
        returns = score(params, keys, root, samples, model=model)
        candidates = jnp.concatenate([proposals, samples])
        fitted = _fit(candidates, jnp.concatenate([proposal_returns, returns]), config)
        return fitted._replace(nonfinite=fitted.nonfinite + population.nonfinite)

    num_elites = config.num_elites
    start = _Population(
        mean=jnp.nan_to_num(state.mean),
        std=jnp.full((horizon, action_size), config.std_max, dtype),
        elites=jnp.zeros((num_elites, horizon, action_size), dtype),
        returns=jnp.zeros((num_elites,), dtype),
        weights=jnp.zeros((num_elites,), dtype),
        index=jnp.zeros((num_elites,), jnp.int32),
        nonfinite=jnp.zeros((), jnp.int32),
    )
    final = jax.lax.fori_loop(0, config.iterations, iterate, start)

    logits = jnp.log(jnp.maximum(final.weights, 1e-30))
    if config.select == "sample":
        logits = logits + jax.random.gumbel(key_select, (num_elites,)).astype(dtype)
    chosen = final.elites[jnp.argmax(logits)]
    noise = jax.random.normal(key_explore, (action_size,)).astype(dtype)
    value = jnp.sum(final.weights * final.returns)
    return PlanOutput(
        action=jnp.clip(chosen[0] + explore * final.std[0] * noise, -1.0, 1.0),
        mode=final.mean[0],
        prior=_record(final, chosen, config),
        value=value,
        next_state=PlanState(jnp.roll(final.mean, -1, axis=0).at[-1].set(0.0)),
        diagnostics=PlanDiagnostics(
            elite_return=value,
            elite_spread=final.returns[0] - final.returns[-1],
            effective_elites=1.0 / jnp.sum(jnp.square(final.weights)),
            proposal_share=jnp.mean((final.index < num_proposals).astype(dtype)),
            std=jnp.mean(final.std[0]),
            nonfinite=final.nonfinite,
        ),
    )
