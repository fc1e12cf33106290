"""Model Predictive Path Integral planning with policy proposals, as a pure function.

The planner does not depend on agents, training or environments: it takes a model
as callables on *unbatched* arrays and is itself unbatched. ``jax.vmap`` it over
robots, environments, seeds, temperatures or a replay batch. The latent may be
any pytree (an ``mjx.Data`` gives true-model MPC).

The algorithm is TD-MPC2's (arXiv 2310.16828, section 3.2 and repository
nicklashansen/tdmpc2, ``TDMPC2._plan``), a variant of MPPI (arXiv 1707.02342)
with elites and policy-guided proposals. The action distribution that a policy
can be trained towards is part of the output, in the three published variants.
Bounds per input, correlated noise, knots and a cost of changing the action, for
robots, are in :mod:`pomcp_jax.planner_sequences`.

Symbols: N samples, P proposals (P < N), E elites, H horizon, K knots (H without),
A action size.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from pomcp_jax import fields, planner_checks, planner_model
from pomcp_jax import planner_sequences as sequences
from pomcp_jax.config import ConfigError, MppiConfig
from pomcp_jax.planner_checks import Number
from pomcp_jax.planner_model import Conformed, ModelFns
from pomcp_jax.types import Gaussian, Key, Params, PyTree


class PlanState(NamedTuple):
    """Carried from a decision to the next."""

    mean: Float[Array, "H A"]
    """Warm start, already shifted by one step; the middle of the bounds at an episode's start."""
    action: Float[Array, " A"] | None = None
    """Last executed action, from which ``MppiConfig.action_rate_cost`` counts the first change;
    None leaves that change free. It is carried only while there is such a cost."""


class PlanDiagnostics(NamedTuple):
    """Scalars that describe how well the search worked."""

    elite_return: Float[Array, ""]
    """Weighted mean return of the last iteration's elites (equals ``PlanOutput.value``)."""
    elite_spread: Float[Array, ""]
    """Best minus worst elite return."""
    effective_elites: Float[Array, ""]
    """1 / sum w^2: E for equal weights, 1 if a single elite has all the weight."""
    proposal_share: Float[Array, ""]
    """Share of the elites that are policy proposals."""
    std: Float[Array, ""]
    """Mean over A of the first step's final std."""
    nonfinite: Int[Array, ""]
    """Candidate returns that were NaN or infinite."""


class PlanOutput(NamedTuple):
    """Result of :func:`plan`."""

    action: Float[Array, " A"]
    """Action to execute: the chosen elite's first, plus exploration noise, clipped."""
    actions: Float[Array, "H A"]
    """The chosen elite's plan; its first is ``action`` without exploration noise. To execute
    several of them before the next plan, see :func:`shift`."""
    mode: Float[Array, " A"]
    """First action of the final mean, clipped."""
    prior: Gaussian
    """Training target ``N([A], [A])`` for a policy, as ``MppiConfig.record`` says."""
    value: Float[Array, ""]
    """Weighted mean return of the elites: the planner's estimate of the root's value, less the
    cost of changing the action, if there is one."""
    next_state: PlanState
    diagnostics: PlanDiagnostics


class Imagined(NamedTuple):
    """The model's predictions for the elites of a plan's last iteration; see :func:`imagine`."""

    actions: Float[Array, "E H A"]
    states: PyTree
    """Latents after each step, ``[E, H, ...]``."""
    rewards: Float[Array, "E H"]
    discounts: Float[Array, "E H"]
    """Discount of each step, as the model returns it."""
    weights: Float[Array, " E"]
    chosen: Int[Array, ""]
    """Index of the elite whose first action is executed."""


class _Population(NamedTuple):
    mean: Float[Array, "K A"]
    std: Float[Array, "K A"]
    elites: Float[Array, "E K A"]
    returns: Float[Array, " E"]
    weights: Float[Array, " E"]
    index: Int[Array, " E"]  # type: ignore[assignment]  # hides a method of tuple that nothing calls
    nonfinite: Int[Array, ""]


def validate(config: MppiConfig, path: str = "mppi") -> None:
    """Check sizes, options and numbers, for a model that proposes.

    Raises:
      ConfigError: as :func:`planner_checks.check_sizes`.
    """
    planner_checks.check_sizes(config, path)
    planner_checks.check_numbers(config, path)


def init(config: MppiConfig, action_size: int, dtype: DTypeLike = float) -> PlanState:
    """The state before an episode's first plan: the middle of the bounds, float64 under x64 only.

    Raises:
      ConfigError: for bounds that do not fit ``action_size``, or one that is no size.
    """
    planner_checks.check_count("action_size", action_size)
    # Not all numbers: those of a sweep may still have the seeds' axis here.
    planner_checks.check_bounds(config, size=action_size)
    middle = sequences.middle(config)
    state = PlanState(mean=jnp.full((config.horizon, action_size), middle, dtype))
    if not fields.is_on(config, "action_rate_cost"):
        return state
    return state._replace(action=jnp.full((action_size,), middle, dtype))


def shift(out: "PlanOutput", steps: Int[Array, ""] | int) -> PlanState:
    """The state of the next plan after ``steps`` of ``out.actions`` have been executed.

    For control that plans less often than it acts, and for robots with a known delay. One
    step yields ``out.next_state``; what lies behind the end is filled as there.

    Args:
      out: the plan.
      steps: executed actions, 1 to H; may be traced, and is then not checked.

    Raises:
      ConfigError: the output is of several plans, or ``steps`` is not from 1 to H.
    """
    state = out.next_state
    planner_checks.check_shift(state.mean.shape, steps)
    last = state.mean.shape[0] - 1
    mean = state.mean[jnp.minimum(jnp.arange(last + 1) + steps - 1, last)]
    if state.action is None:
        return PlanState(mean)
    later = out.actions[jnp.minimum(steps - 1, last)].astype(state.action.dtype)
    # The first executed action may have exploration noise.
    return PlanState(mean, jnp.where(jnp.asarray(steps) == 1, state.action, later))


def sample_noise(
    key: Key, iteration: Int[Array, ""] | int, shape: tuple[int, ...], dtype: DTypeLike = float
) -> Array:
    """Standard normal noise of one MPPI iteration, ``shape = (N - P, H, A)``."""
    # Folded in rather than split: more iterations leave the noise of the first ones unchanged.
    return jax.random.normal(jax.random.fold_in(key, iteration), shape, dtype)


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
    discounts before step t. Once it is 0 it stays 0, and nothing that the model
    returns from then on counts, NaN included. ``keys`` ``[N]`` feed ``model.value``.
    The root is not repeated over N: what the first step computes from it alone is
    computed once.

    Raises:
      ConfigError: as :func:`plan`, for the model and the root.
    """
    size = actions.shape[-1]
    conformed = planner_model.conform(model, params, keys[0], root, size, also=(keys, actions))
    prepared = conformed.prepare(params, conformed.root)
    return _score(conformed, params, prepared, keys, actions.astype(conformed.dtype), None)


def _alive(discount: Array, x: Array) -> Array:
    """``x`` where the episode continues, else 0; before the product, for gradients' sake too."""
    return jnp.where(discount == 0.0, 0.0, x)


def _advance(model: Conformed, params: Params, latent: PyTree, action: Array) -> Any:
    """Next latent, and what its outcome needs, from a latent that is not prepared."""
    return model.advance(params, model.prepare(params, latent), action)


def _unroll(model: Conformed) -> int:
    """Steps of a roll-out that are compiled side by side."""
    # Steps in parts are a few small layers, whose loop costs a GPU more than they do. Others may be
    # whole simulators, which a compiler should see once.
    return 8 if model.split else 1


def _score(
    model: Conformed,
    params: Params,
    prepared: PyTree,
    keys: Key,
    actions: Float[Array, "N H A"],
    costs: Float[Array, "N H"] | None,
) -> Float[Array, " N"]:
    """Returns of ``actions``, less the discounted costs of their steps."""
    moved = jnp.moveaxis(planner_model.vary(actions, model.axes), 1, 0)
    # Outside of the scan, because the root has no axis of samples.
    latent, first = jax.vmap(model.advance, in_axes=(None, None, 0))(params, prepared, moved[0])

    def advance(latent, action):
        step = functools.partial(_advance, model, params)
        return jax.vmap(step)(latent, action)

    latent, later = jax.lax.scan(advance, latent, moved[1:], unroll=_unroll(model))
    seen = jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), first, later)
    rewards, gammas = _outcomes(model, params, seen)
    if costs is not None:
        rewards = rewards - costs.T
    total, discount = rewards[0], gammas[0]
    for t in range(1, len(moved)):
        total = total + discount * _alive(discount, rewards[t])
        discount = discount * _alive(discount, gammas[t])
    tail = jax.vmap(model.value, in_axes=(None, 0, 0))(params, keys, latent)
    return total + discount * _alive(discount, tail)


def _costs(
    actions: Float[Array, "N H A"], previous: Float[Array, " A"] | None, config: MppiConfig
) -> Float[Array, "N H"] | None:
    """Cost of every step's change of action; None if it is off."""
    is_on = fields.is_on(config, "action_rate_cost")
    return sequences.change_costs(actions, previous, config) if is_on else None


def _outcomes(
    model: Conformed, params: Params, seen: PyTree
) -> tuple[Float[Array, "H N"], Float[Array, "H N"]]:
    """Rewards and discounts of all steps of a roll-out, as one batch."""
    both = jax.vmap(model.outcome, in_axes=(None, 0))
    shape = jax.tree.leaves(seen)[0].shape[:2]
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), seen)
    return jax.tree.map(lambda x: x.reshape(shape), both(params, flat))


def propose(
    params: Params, key: Key, root: PyTree, *, model: ModelFns, config: MppiConfig
) -> tuple[Float[Array, "P H A"], Float[Array, " P"]]:
    """Roll the proposal policy out in the model, once; the sequences and their returns.

    They stay in the population of every iteration, so one score serves all. With knots
    they are the policy's actions at the knots, interpolated.

    Raises:
      ConfigError: as :func:`plan`, for the model and the root.
    """
    if model.sample_action is None:
        raise ConfigError("model.sample_action is None: must be a function, it proposes the plans")
    if config.num_proposals == 0:  # which a planner without a policy may have
        raise ConfigError("mppi.num_proposals = 0: must be >= 1 to propose plans")
    conformed = planner_model.conform(model, params, key, root, None)
    config = sequences.in_action_units(config, conformed.dtype)
    return _propose(conformed, params, key, None, config)


def _propose(
    model: Conformed,
    params: Params,
    key: Key,
    previous: Float[Array, " A"] | None,
    config: MppiConfig,
) -> tuple[Float[Array, "P H A"], Float[Array, " P"]]:
    """Proposals and their returns; ``previous`` is the executed action before them."""
    proposers, num = model.proposers, config.num_proposals
    step = jax.vmap(functools.partial(_advance, model, params))
    keys = jax.random.split(key, (config.horizon + 1, num))
    latent = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (num, *x.shape)), model.root)
    # Rounded up, so that the first proposers take the remainder.
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
        # Proposals can become elites, and outputs must be finite and within the box.
        action = sequences.clip(jnp.nan_to_num(action), config)
        latent, seen = step(latent, action)
        return latent, (action, seen)

    latent, (actions, seen) = jax.lax.scan(advance, latent, keys[:-1], unroll=_unroll(model))
    if config.knots:
        # What the policy does between knots cannot be searched: the curve itself is scored.
        knots = sequences.at_knots(jnp.moveaxis(actions, 0, 1), config)
        actions = sequences.between_knots(knots, config)
        costs = _costs(actions, previous, config)
        prepared = model.prepare(params, model.root)
        return actions, _score(model, params, prepared, keys[-1], actions, costs)
    rewards, gammas = _outcomes(model, params, seen)
    if fields.is_on(config, "action_rate_cost"):
        costs = sequences.change_costs(jnp.moveaxis(actions, 0, 1), previous, config)
        rewards = rewards - costs.T
    total = jax.vmap(model.value, in_axes=(None, 0, 0))(params, keys[-1], latent)
    # Backwards, because all discounts are known: no running product is needed.
    for t in reversed(range(config.horizon)):
        total = rewards[t] + gammas[t] * _alive(gammas[t], total)
    return jnp.moveaxis(actions, 0, 1), total


def _root_of_square(x: Array) -> Array:
    """Square root whose derivative at 0 is 0 instead of infinite."""
    positive = x > 0.0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def _spread(returns: Float[Array, " E"], valid: Bool[Array, " E"]) -> Float[Array, ""]:
    """Standard deviation of the valid returns; 0 without any."""
    count = jnp.maximum(jnp.sum(valid, dtype=returns.dtype), 1.0)
    mean = jnp.sum(jnp.where(valid, returns / count, 0.0))
    gaps = jnp.where(valid, returns - mean, 0.0)
    # Relative to the largest gap, whose square may overflow.
    largest = jnp.max(jnp.abs(gaps))
    gaps = gaps / jnp.where(largest > 0.0, largest, 1.0)
    return largest * _root_of_square(jnp.sum(jnp.square(gaps)) / count)


def _fit(
    before: _Population,
    candidates: Float[Array, "N K A"],
    returns: Float[Array, " N"],
    config: MppiConfig,
) -> _Population:
    """Elite-weighted mean and std of a population (TD-MPC2 ``_plan``, "update parameters").

    Candidates whose return is not finite come last and weigh nothing. If there
    are no others, the population stays as it was ``before``.
    """
    finite = jnp.isfinite(returns)
    # A quarter of the largest float, so that differences of returns stay finite.
    largest = float(jnp.finfo(returns.dtype).max)
    returns = jnp.clip(returns, -largest / 4.0, largest / 4.0)
    ranked, index = jax.lax.top_k(jnp.where(finite, returns, -largest), config.num_elites)
    elites = jnp.take(candidates, index, axis=0)
    valid = ranked > -largest
    # Elites without a finite return weigh nothing; diagnostics see the worst finite one instead.
    elite_returns = jnp.where(valid, ranked, jnp.min(ranked, initial=largest, where=valid))
    # At most 0, so that the exponential cannot overflow.
    gaps = elite_returns - elite_returns[0]
    if config.temperature_scale != "none":
        spread = _spread(elite_returns, valid)
        # Equal returns have gaps of 0, whatever divides them.
        gaps = gaps / jnp.where(spread > 0.0, spread, 1.0)
    weights = jax.nn.softmax(jnp.where(valid, config.temperature * gaps, -largest))
    weight = weights[:, None, None]
    mean = jnp.sum(weight * elites, axis=0)
    variance = jnp.sum(weight * jnp.square(elites - mean[None]), axis=0)
    # The floor keeps the search alive, and the records' divergences finite.
    limits = (sequences.like(x, variance) for x in (config.std_min, config.std_max))
    std = jnp.clip(_root_of_square(variance), *limits)
    nonfinite = before.nonfinite + jnp.sum(~finite, dtype=jnp.int32)
    after = _Population(mean, std, elites, elite_returns, weights, index, nonfinite)
    # A selection, not arithmetic: non-finite sums of the unused branch cannot leak.
    kept = before._replace(nonfinite=nonfinite)
    return jax.tree.map(functools.partial(jnp.where, valid[0]), after, kept)


def _choose(weights: Float[Array, " E"], key: Key, config: MppiConfig) -> Int[Array, ""]:
    """Index of the elite to execute, as ``config.select`` says."""
    # Gumbel-max. The floor keeps the logarithm of a weight of 0 finite.
    logits = jnp.log(jnp.maximum(weights, 1e-30))
    if config.select == "sample":
        logits = logits + jax.random.gumbel(key, weights.shape, weights.dtype)
    return jnp.argmax(logits)


def _record(population: _Population, chosen: Float[Array, "K A"], config: MppiConfig) -> Gaussian:
    """The first step's action distribution, in the variant that ``config.record`` names."""
    if config.record == "mean":
        return Gaussian(population.mean[0], population.std[0])
    if config.record == "best_elite":
        # alvaro-serra/bmpc-jax: spread about the best elite, neither floored nor capped.
        best = population.elites[0, 0]
        gap = jnp.square(population.elites[:, 0] - best[None])
        return Gaussian(best, jnp.sqrt(jnp.sum(population.weights[:, None] * gap, axis=0) + 1e-6))
    return Gaussian(chosen[0], population.std[0])


def _start(mean: Float[Array, "K A"], config: MppiConfig) -> _Population:
    """Population before the first iteration: the warm start, which stays if no return is finite."""
    num = config.num_elites
    std: Any = config.std_max
    if fields.is_on(config, "std_init"):
        std = jnp.where(config.std_init > 0.0, config.std_init, std)
    mean = jnp.where(jnp.isfinite(mean), mean, sequences.like(sequences.middle(config), mean))
    plan = sequences.clip(mean, config)
    return _Population(
        mean=mean,
        # Only the mean is warm-started, as in TD-MPC2.
        std=jnp.full(mean.shape, std, mean.dtype),
        elites=jnp.broadcast_to(plan[None], (num, *plan.shape)),
        returns=jnp.zeros((num,), mean.dtype),
        weights=jnp.full((num,), 1.0 / num, mean.dtype),
        # No candidate has this index: it marks that nothing finite was found.
        index=jnp.full((num,), config.num_samples, jnp.int32),
        nonfinite=jnp.zeros((), jnp.int32),
    )


def _search(
    model: Conformed,
    params: Params,
    keys: tuple[Key, Key, Key],
    state: PlanState,
    config: MppiConfig,
) -> _Population:
    """The last iteration's population, from proposals and the warm start."""
    key_propose, key_noise, key_tail = keys
    mean, previous = sequences.at_knots(state.mean, config), state.action
    # TD-MPC2 scores its proposals again in each iteration. Only the sampled tail action would
    # differ, and scoring them once saves 4 % of a plan.
    proposals, proposal_returns = jnp.zeros((0, *mean.shape), mean.dtype), None
    if config.num_proposals:
        proposed, proposal_returns = _propose(model, params, key_propose, previous, config)
        proposals = sequences.at_knots(proposed, config)
    num_free = config.num_samples - config.num_proposals
    prepared = model.prepare(params, model.root)

    def draw(i: Array) -> tuple[Array, Key]:
        noise = sample_noise(key_noise, i, (num_free, *mean.shape), mean.dtype)
        noise = sequences.correlated(noise, config)
        # New keys per iteration: with the same draws, candidates could overfit lucky tail actions.
        return noise, jax.random.split(jax.random.fold_in(key_tail, i), num_free)

    # Nothing random depends on the search: where kernels count, all of it is drawn before the loop.
    drawn = jax.vmap(draw)(jnp.arange(config.iterations)) if model.split else None

    def iterate(i: Array, population: _Population) -> _Population:
        noise, tails = draw(i) if drawn is None else jax.tree.map(lambda x: x[i], drawn)
        # Clipped before scoring: the model never sees actions that cannot be executed.
        samples = sequences.clip(population.mean[None] + population.std[None] * noise, config)
        actions = sequences.between_knots(samples, config)
        costs = _costs(actions, previous, config)
        returns = _score(model, params, prepared, tails, actions, costs)
        if proposal_returns is not None:
            returns = jnp.concatenate([proposal_returns, returns])
        return _fit(population, jnp.concatenate([proposals, samples]), returns, config)

    start = planner_model.vary(_start(mean, config), model.axes)
    final = jax.lax.fori_loop(0, config.iterations, iterate, start)
    any_finite = final.index[0] < config.num_samples
    return final._replace(mean=jnp.where(any_finite, final.mean, final.elites[0]))


def plan(
    params: Params,
    key: Key,
    root: PyTree,
    state: PlanState,
    *,
    model: ModelFns,
    config: MppiConfig,
    explore: Number | Float[Array, " A"] = 0.0,
) -> PlanOutput:
    """Plan one decision from ``root``.

    Args:
      params: passed to the model's callables untouched.
      key: consumed.
      root: latent of the present state, without a batch axis. Its widest float
        dtype, at least float32, is that of the plan.
      state: warm start from the previous decision (:func:`init` at a start).
      model: see :class:`ModelFns`.
      config: sizes (static) and numbers (traced: changing them does not recompile, unless it
        switches something on that was off).
      explore: standard deviations of the search that are added to the executed action as noise;
        training uses 1.

    Returns:
      A :class:`PlanOutput`; all its fields are finite whatever the model returns.
      If no candidate ever has a finite return, the plan is the warm start and its
      value 0.

    Raises:
      ConfigError: for sizes and numbers that cannot work, a state of another
        shape, and model functions that do not return what :class:`ModelFns` says.
    """
    return _plan(params, key, root, state, model, config, explore)[0]


def imagine(
    params: Params,
    key: Key,
    root: PyTree,
    state: PlanState,
    *,
    model: ModelFns,
    config: MppiConfig,
    explore: Number | Float[Array, " A"] = 0.0,
) -> tuple[PlanOutput, Imagined]:
    """:func:`plan`, and what the model predicts for its elites, to draw or to analyse.

    The plan is that of :func:`plan` with the same arguments; the elites are rolled out once more.

    Raises:
      ConfigError: as :func:`plan`.
    """
    out, final, chosen, conformed = _plan(params, key, root, state, model, config, explore)
    actions = sequences.between_knots(final.elites, config)
    step = jax.vmap(functools.partial(_advance, conformed, params))
    num = actions.shape[0]
    latent = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (num, *x.shape)), conformed.root)

    def advance(latent, action):
        latent, seen = step(latent, action)
        return latent, (latent, seen)

    _, (states, seen) = jax.lax.scan(advance, latent, jnp.moveaxis(actions, 1, 0))
    rewards, discounts = _outcomes(conformed, params, seen)
    states = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), states)
    return out, Imagined(actions, states, rewards.T, discounts.T, final.weights, chosen)


def _plan(
    params: Params,
    key: Key,
    root: PyTree,
    state: PlanState,
    model: ModelFns,
    config: MppiConfig,
    explore: Number | Array,
) -> tuple[PlanOutput, _Population, Array, Conformed]:
    """The plan, the population of its last iteration, the chosen elite's index and the model."""
    proposes = bool(planner_model.proposers(model)) and config.num_proposals != 0
    planner_checks.check_sizes(config, proposes=proposes)
    mean, previous = planner_checks.check_state(state, config)
    planner_checks.check_numbers(config, size=mean.shape[1])
    planner_checks.check_explore(explore, mean.shape[1])
    explore = sequences.as_float(explore)
    # All N candidates are then drawn at random; else the places of P would stay empty.
    if not proposes:
        model = ModelFns(model.step, model.value)
        config = dataclasses.replace(config, num_proposals=0)
    also = (mean, previous, sequences.numbers(config), explore)
    conformed = planner_model.conform(
        model, params, key, root, mean.shape[1], also=also, default=mean.dtype
    )
    config = sequences.in_action_units(config, conformed.dtype)
    # All keys at once: exploration and selection do not change the search.
    *keys, key_select, key_explore = jax.random.split(key, 5)
    start = jax.tree.map(lambda x: x.astype(conformed.dtype), PlanState(mean, previous))
    final = _search(conformed, params, tuple(keys), start, config)
    scale = jnp.asarray(explore).astype(conformed.dtype)
    chosen = _choose(final.weights, key_select, config)
    out = _output(final, chosen, key_explore, scale, config)
    # In the caller's dtype: a scan over decisions must carry a single type.
    following = jax.tree.map(lambda x: x.astype(mean.dtype), out.next_state)
    return out._replace(next_state=following), final, chosen, conformed


def _following(final: _Population, action: Array, config: MppiConfig) -> PlanState:
    """State of the next plan: the mean without its first step, and the executed action."""
    mean = sequences.between_knots(final.mean, config)
    if config.knots:
        # The end is continued: 0 there would pull the whole curve after the knot before it.
        mean = jnp.concatenate([mean[1:], mean[-1:]])
    else:
        # The roll alone would plan the first action, already executed, as the last.
        mean = jnp.roll(mean, -1, axis=0).at[-1].set(sequences.middle(config))
    return PlanState(mean, action if fields.is_on(config, "action_rate_cost") else None)


def _output(
    final: _Population, index: Array, key_explore: Key, explore: Array, config: MppiConfig
) -> PlanOutput:
    """Result of a plan that executes elite ``index`` of the last iteration's population."""
    chosen = final.elites[index]
    # Drawn even for ``explore`` 0, which may be traced.
    noise = jax.random.normal(key_explore, chosen[0].shape, chosen.dtype)
    noisy = chosen[0] + explore * final.std[0] * noise
    value = jnp.sum(final.weights * final.returns)
    action = sequences.clip(jnp.where(jnp.isfinite(noisy), noisy, chosen[0]), config)
    return PlanOutput(
        action=action,
        actions=sequences.between_knots(chosen, config),
        # A mean of clipped actions can be a rounding step outside.
        mode=sequences.clip(final.mean[0], config),
        prior=_record(final, chosen, config),
        value=value,
        next_state=_following(final, action, config),
        diagnostics=PlanDiagnostics(
            elite_return=value,
            elite_spread=final.returns[0] - final.returns[-1],
            effective_elites=1.0 / jnp.sum(jnp.square(final.weights)),
            proposal_share=jnp.mean((final.index < config.num_proposals).astype(value.dtype)),
            std=jnp.mean(final.std[0]),
            nonfinite=final.nonfinite,
        ),
    )
