"""NaN and Inf anywhere in a run never reach parameters, replay or other seeds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from test_train import program

from pomcp_jax import arrays

VALUES = (float("nan"), float("inf"), -float("inf"))
SICK = 1
"""The seed with the fault; seed 0 must not change."""
quick = settings(max_examples=20, phases=(Phase.explicit, Phase.reuse, Phase.generate))


@functools.cache
def healthy():
    """Two seeds in the middle of training, a chunk's work, and its result without a fault."""
    config = tiny.run(train__num_seeds=2, env__task="probe/lqr")
    prog = program(config)
    state = prog.init(config)
    for work in prog.seeding + prog.pretraining + prog.training[:1]:
        state, _ = prog.chunk(state, config, work)
    after, metrics = prog.chunk(copied(state), config, prog.training[1])
    return config, prog, state, after, metrics


def copied(tree):
    """A copy of the state, since a chunk donates its argument."""
    return jax.tree.map(jnp.copy, tree)


def strike(state, name, value, where):
    """``state`` with ``value`` at one entry of a leaf, in the faulty seed's part."""

    def change(path, leaf):
        if jax.tree_util.keystr(path) != name:
            return leaf
        held = np.array(leaf)
        flat = held.reshape(2, -1)  # environments are S N, everything else starts with S
        flat[SICK, where % flat.shape[1]] = value
        return jnp.array(held)

    return jax.tree_util.tree_map_with_path(change, state)


def after_a_chunk(state):
    config, prog, *_ = healthy()
    state, metrics = prog.chunk(copied(state), config, prog.training[1])
    assert prog.chunk._cache_size() == 1
    return state, jax.device_get(metrics)


def of_seed(state, index):
    """Everything of one seed: learned, stored, played and counted."""
    data = jax.device_get(arrays.key_data(state))
    lead = data._replace(iteration=(), updates=(), replay=data.replay.rows)
    return jax.tree.map(lambda x: x.reshape(2, -1)[index], lead)


def equal(a, b):
    return all(
        np.array_equal(x, y, equal_nan=np.issubdtype(x.dtype, np.floating))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def is_finite(tree):
    return all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(tree)))


def float_leaves(*parts):
    """Names of the leaves below ``parts`` that can hold a NaN."""
    leaves = arrays.named(healthy()[2])
    found = [
        name
        for name, leaf in leaves.items()
        if name.startswith(parts) and jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    assert found
    return sorted(found)


def struck(parts):
    return st.tuples(
        st.deferred(lambda: st.sampled_from(float_leaves(*parts))),
        st.sampled_from(VALUES),
        st.integers(0, 10_000),
    )


def check_the_others(state):
    assert equal(of_seed(state, 0), of_seed(healthy()[3], 0))


@given(struck((".env", ".plan")))
@quick
def test_what_the_environment_or_the_plan_says_never_gets_further(strike_at):
    """The simulator's state, of which observations and rewards are made; warm starts of plans."""
    state, _ = after_a_chunk(strike(healthy()[2], *strike_at))
    check_the_others(state)
    assert is_finite(state.agent) and is_finite(state.replay.rows)
    assert is_finite(state.timestep.obs) and is_finite(state.plan)


@given(struck((".replay.rows",)))
@quick
def test_what_replay_holds_never_reaches_parameters(strike_at):
    """As from a memory fault: losses and gradients are not finite, and nothing is applied."""
    before = strike(healthy()[2], *strike_at)
    state, _ = after_a_chunk(before)
    check_the_others(state)
    assert is_finite(state.agent)
    spoilt = sum(np.sum(~np.isfinite(x)) for x in jax.tree.leaves(state.replay.rows))
    assert spoilt <= 1  # the injected value; re-planning may have replaced it


def test_updates_of_a_spoilt_seed_are_refused_and_counted():
    """All rewards of one seed: every update is refused, with the term, and nothing moves."""
    base = healthy()[2]
    rewards = base.replay.rows.reward.at[SICK].set(jnp.nan)
    rows = base.replay.rows._replace(reward=rewards)
    state, metrics = after_a_chunk(base._replace(replay=base.replay._replace(rows=rows)))
    check_the_others(state)
    faults, updates = state.agent.faults, int(state.updates - base.updates)
    assert updates >= 3
    assert int(faults.total[SICK]) == int(faults.consecutive[SICK]) == updates
    assert int(faults.total[0]) == 0
    assert is_finite(state.agent)
    mine = jax.tree.map(lambda x: x[SICK], (state.agent.params.model, base.agent.params.model))
    assert equal(*jax.device_get(mine))
    assert not np.isfinite(metrics["loss/model"][SICK]) and np.isfinite(metrics["loss/model"][0])


@given(struck((".agent.params", ".agent.target_value", ".agent.scales")))
@quick
def test_broken_parameters_stay_in_their_seed_and_out_of_replay(strike_at):
    """As from a memory fault of the device: every update that meets them is refused."""
    before = strike(healthy()[2], *strike_at)
    state, _ = after_a_chunk(before)
    check_the_others(state)
    assert is_finite(state.replay.rows)
    old, new = (np.isfinite(x) for x in map(flat_agent, (before, state)))
    assert np.all(new >= old), "what was finite is finite"


def flat_agent(state):
    params = jax.device_get((state.agent.params, state.agent.opt))
    return np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(params)])


@pytest.mark.parametrize("value", VALUES)
def test_a_broken_environment_begins_a_fresh_episode_and_is_counted(value):
    base = healthy()[2]
    state, _ = after_a_chunk(strike(base, ".env.task.x", value, 0))
    counted = np.asarray(state.stats.invalid - base.stats.invalid)
    assert counted.tolist() == [0, 1]
