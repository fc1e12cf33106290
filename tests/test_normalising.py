"""Running statistics of observations, against float64 and in everything that sees observations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from pomcp_jax import (
    acting,
    agent,
    controller,
    exporting_onnx,
    normalising,
    replay,
    world_model,
)
from pomcp_jax.actors import AgentParams

OFFSET = np.array([1e4, 0.0, -3e5, 1e-3])
SIZE = np.array([1.0, 1e-3, 10.0, 0.0])
"""Standard deviations of the entries; the last one never changes."""


def observations(seed, *shape):
    noise = np.random.default_rng(seed).normal(size=(*shape, 4))
    return (OFFSET + SIZE * noise).astype(np.float32)


@functools.cache
def counted():
    """Statistics of 20,000 observations, three at a time, and the observations."""
    obs = observations(0, 20_000, 3)

    def step(moments, batch):
        return normalising.count(moments, batch), None

    run = jax.jit(lambda obs: jax.lax.scan(step, normalising.init(4), obs)[0])
    return run(jnp.asarray(obs)), obs.reshape(-1, 4)


def test_mean_and_variance_are_those_of_float64():
    """A mean of 1e4 in float32 has steps of 1e-3 and would stop moving; so would one of -3e5."""
    moments, obs = counted()
    exact = obs.astype(np.float64)
    mean = np.asarray(moments.shift, np.float64) + np.asarray(moments.mean, np.float64)
    spread = np.maximum(exact.std(axis=0), 1e-9)
    assert np.abs((mean - exact.mean(axis=0)) / spread).max() < 2e-4
    np.testing.assert_allclose(moments.variance[:3], exact.var(axis=0)[:3], rtol=2e-4)
    assert moments.count == 60_000 and moments.variance[3] == 0.0


def test_data_and_steps_count_alike():
    moments, obs = counted()
    whole = normalising.of_data(obs)
    ours, theirs = (normalising.apply(x, jnp.asarray(obs[:50])) for x in (moments, whole))
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert whole.count == 60_000 and whole.mean.dtype == np.float32


def test_normalised_entries_have_mean_zero_and_variance_one():
    moments, _ = counted()
    seen = np.asarray(normalising.apply(moments, jnp.asarray(observations(1, 5_000))))
    np.testing.assert_allclose(seen.mean(axis=0)[:3], 0.0, atol=0.05)
    np.testing.assert_allclose(seen.std(axis=0)[:3], 1.0, atol=0.05)
    assert (seen[:, 3] == 0.0).all(), "an entry that never changes says nothing"
    far = normalising.apply(moments, jnp.full((1, 4), 1e9))
    np.testing.assert_array_equal(far, normalising.MOST)


def test_undo_is_the_inverse():
    moments, _ = counted()
    obs = observations(2, 10)
    back = normalising.undo(moments, np.asarray(normalising.apply(moments, jnp.asarray(obs))))
    np.testing.assert_allclose(back, obs, atol=0.1)
    assert normalising.undo(None, obs) is obs and normalising.apply(None, obs) is obs


def test_statistics_of_millions_of_steps_do_not_drift():
    """Rounding in one direction would take 0.4 % of the variance in these steps, and go on."""
    begin = normalising.init(64)._replace(count=jnp.int32(normalising.MOST_STEPS))

    def step(moments, key):
        return normalising.count(moments, jax.random.normal(key, (1, 64))), None

    end, _ = jax.jit(lambda keys: jax.lax.scan(step, begin, keys))(
        jax.random.split(jax.random.key(0), 300_000)
    )
    assert end.count == normalising.MOST_STEPS
    np.testing.assert_allclose(np.mean(end.variance), 1.0, atol=1.5e-3)
    np.testing.assert_allclose(end.mean, 0.0, atol=5e-3)


def test_huge_observations_give_no_nan():
    moments = normalising.init(4)
    for value in (1.0, 1e25, 1e25, 3.0):
        moments = normalising.count(moments, jnp.full((2, 4), value))
    assert not any(np.isnan(np.asarray(x)).any() for x in moments)
    assert np.isfinite(normalising.apply(moments, jnp.ones((1, 4)))).all()


# ------------------------------------------------------------------------- agents

CONFIG = tiny.agent(world_model__normalise_observations=True)
SPEC = acting.build(CONFIG, 4, 1)


@functools.cache
def learner():
    state = agent.init(jax.random.key(0), CONFIG, SPEC)
    return state._replace(params=state.params._replace(moments=counted()[0]))


def plain(params):
    """The same parameters without statistics."""
    return params._replace(moments=None)


def test_without_the_setting_there_are_no_statistics():
    off = jax.eval_shape(lambda key: agent.init(key, tiny.agent(), SPEC), jax.random.key(0))
    on = jax.eval_shape(lambda key: agent.init(key, CONFIG, SPEC), jax.random.key(0))
    assert off.params.moments is None and AgentParams(1, 2, 3).moments is None
    assert jax.tree.structure(plain(on.params)) == jax.tree.structure(off.params)


def test_actor_planner_update_and_targets_see_normalised_observations():
    """Raw observations with the statistics are normalised ones without them."""
    state, key = learner(), jax.random.key(1)
    obs = jnp.asarray(observations(3, 5))
    seen = normalising.apply(state.params.moments, obs)
    with_it, without = state.params, plain(state.params)
    act = functools.partial(acting.act_policy, spec=SPEC, config=CONFIG)
    np.testing.assert_array_equal(act(with_it, key, obs), act(without, key, seen))
    assert np.abs(act(with_it, key, obs) - act(without, key, obs)).max() > 1e-3

    batch = sampled(obs)
    same = batch._replace(rows=batch.rows._replace(obs=acting.normalised(with_it, batch).rows.obs))
    order = functools.partial(acting.replan_order, updates=0, spec=SPEC, config=CONFIG)
    np.testing.assert_array_equal(order(with_it, batch), order(without, same))
    learn = jax.jit(functools.partial(agent.update, spec=SPEC, config=CONFIG))
    new, metrics = learn(state, batch, key)
    other, expected = jax.jit(functools.partial(agent.update, spec=SPEC, config=CONFIG))(
        state._replace(params=without), same, key
    )
    jax.tree.map(np.testing.assert_array_equal, metrics, expected)
    jax.tree.map(np.testing.assert_array_equal, plain(new.params), other.params)
    jax.tree.map(np.testing.assert_array_equal, new.params.moments, state.params.moments)


def sampled(obs):
    """A batch of two windows of ``obs``."""
    ring = replay.init(8, 1, 4, 1)
    for t, x in enumerate(jnp.concatenate([obs, obs[:3]])):
        row = jax.tree.map(lambda ring: ring[0], ring.rows)
        ring = replay.insert(ring, row._replace(obs=x[None], last=jnp.asarray([t == 7])))
    return replay.sample(ring, jax.random.key(0), 2, CONFIG.mppi.horizon + 1)


def test_exported_policies_normalise():
    pytest.importorskip("onnx")
    state = learner()
    obs = observations(4, 6)
    model = exporting_onnx.export(state.params, CONFIG, SPEC)
    fns = controller.make_fns(CONFIG, SPEC, actor="policy")
    _, expected = fns.act(state.params, fns.init(jax.random.key(0), 6), jnp.asarray(obs))
    assert exporting_onnx.deviation(model, expected, obs) < 1e-5
    assert np.std(np.asarray(expected), axis=0).min() > 1e-4, "states differ for the policy"


def test_the_model_separates_what_an_offset_hides():
    """Two states that differ by 1 beside an offset of 1e4: what the encoder makes of them."""
    state = learner()
    obs = np.stack([OFFSET - SIZE, OFFSET + SIZE]).astype(np.float32)

    def apart(obs):
        latent = world_model.encode(SPEC.nets, state.params.model.encoder, obs)
        return float(jnp.abs(latent[0] - latent[1]).max())

    hidden, seen = apart(jnp.asarray(obs)), apart(normalising.apply(state.params.moments, obs))
    assert seen > 0.1 and hidden < 1e-3 * seen
