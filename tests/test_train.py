"""The training loop: independence of chunks and batches of seeds, replay, counters, presets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from pomcp_jax import acting, counters, envs, schedule, train
from pomcp_jax.train import Work


def program(config):
    return train.build(config, envs.make(config.env.task, config.env.action_repeat))


def play(prog, config, works):
    """All ``works`` from a fresh state: (state, [metrics])."""
    state, metrics = prog.init(config), []
    for work in works:
        state, more = prog.chunk(state, config, work)
        metrics.append(jax.device_get(more))
    return state, metrics


def assert_same(a, b, exact=True):
    def check(x, y):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        if exact:
            np.testing.assert_array_equal(x, y)
        else:
            np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5)

    jax.tree.map(check, a, b)


@functools.cache
def base():
    """One compiled run for several tests."""
    config = tiny.run()
    prog = program(config)
    state, metrics = play(prog, config, prog.seeding + prog.pretraining + prog.training)
    return config, prog, state, metrics


def test_a_run_does_the_work_that_was_asked_for():
    config, prog, state, _ = base()
    assert int(state.iteration) * config.env.num_envs == config.train.total_decisions
    after_seeding = config.train.total_decisions - config.train.seed_decisions
    expected = config.train.pretrain_updates + after_seeding * config.train.updates_per_decision
    assert int(state.updates) == expected
    assert sum(w.groups * w.iterations for w in prog.seeding + prog.training) * 2 == 60


def test_every_jitted_function_is_traced_once():
    _, prog, _, _ = base()
    assert prog.chunk._cache_size() == 1


def test_state_keeps_its_types():
    """A chunk must return exactly what it takes, weak types included, or it compiles twice."""
    config, prog, state, _ = base()
    shapes = jax.eval_shape(lambda: train.init(config, prog.env, prog.spec))
    after = jax.eval_shape(lambda s: prog.chunk(s, config, prog.training[0])[0], state)

    def types(tree):
        return [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]

    assert types(shapes) == types(after)


def test_chunk_length_changes_nothing():
    config, prog, state, _ = base()
    rest = prog.training
    groups = sum(w.groups for w in rest)
    cut = [Work(n, *rest[0][1:3], False, True, True) for n in (1, groups - 4, 3)]
    other, _ = play(prog, config, prog.seeding + prog.pretraining + tuple(cut))
    assert_same(state, other)


def test_the_same_seed_gives_the_same_run():
    config, prog, state, metrics = base()
    again, more = play(prog, config, prog.seeding + prog.pretraining + prog.training)
    assert_same((state, metrics), (again, more))


def test_seed_k_of_a_batch_is_seed_k_alone():
    config = tiny.run(train__num_seeds=3, train__seed=5)
    prog = program(config)
    works = prog.seeding + prog.pretraining + prog.training[:1]
    together, _ = play(prog, config, works)
    alone = tiny.run(train__num_seeds=1, train__seed=7)
    single, _ = play(program(alone), alone, works)
    last = jax.tree.map(lambda x: x[2:], together.agent.params)
    # Batched matrix products round differently.
    assert_same(last, single.agent.params, exact=False)
    np.testing.assert_array_equal(together.stats.decisions[2:], single.stats.decisions)
    others = jax.tree.leaves(jax.tree.map(lambda x: x[:1], together.agent.params.policy))
    mine = jax.tree.leaves(jax.tree.map(lambda x: x[2:], together.agent.params.policy))
    assert any(np.max(np.abs(a - b)) > 1e-3 for a, b in zip(others, mine, strict=True))


def test_metrics_of_what_did_not_happen_are_nan():
    _, prog, _, metrics = base()
    seeding, pretraining, training = metrics[0], metrics[len(prog.seeding)], metrics[-1]
    assert np.isnan(seeding["loss/model"]).all() and np.isnan(seeding["plan/std"]).all()
    assert np.isnan(pretraining["plan/std"]).all() and np.isfinite(pretraining["loss/model"]).all()
    assert all(np.isfinite(value).all() for value in training.values())
    assert {name for m in metrics for name in m} == set(seeding)


def test_the_planner_can_make_the_first_decisions():
    """The schedule alone decides that: the compiled program is the same."""
    config, prog, _, _ = base()
    first, *others = schedule.phases(tiny.run(train__seed_actions="planner")).seeding
    assert not any(work.random for work in (first, *others))
    assert schedule.phases(config).seeding[0] == first._replace(random=True)
    state = prog.init(config)
    plan = jax.jit(lambda state: train.decide(state, config, prog.spec))(state)
    state, metrics = prog.chunk(state, config, first._replace(iterations=1))
    rows = jax.device_get(state.replay.rows)
    for stored, planned in ((rows.action, plan.action), (rows.prior, plan.prior)):
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
        jax.tree.map(lambda x, y: close(x[:, 0], y), stored, planned)  # noqa: B023
    assert np.isfinite(metrics["plan/std"]).all() and np.isnan(metrics["loss/model"]).all()


@pytest.mark.parametrize("preset", ["tdmpc2", "bmpc"])
def test_the_policy_can_make_the_first_decisions(monkeypatch, preset):
    """Its own distribution is the record, within the planner's bounds, and the critic's value."""
    config = tiny.run(preset, train__seed_actions="policy", train__num_seeds=2)
    env = envs.make(config.env.task, config.env.action_repeat)
    spec = acting.build(config.agent, env.observation_size, env.action_size)
    # Planning and learning are not needed here, and take long to compile.
    monkeypatch.setattr(train, "decide", train.decide_randomly)
    monkeypatch.setattr(train, "update_step", lambda state, *_: (state, {}))

    @jax.jit
    def run():
        state = train.init(config, env, spec)
        # A critic that has learned something: the last layer of a fresh one is zero.
        value = jax.tree.map(lambda x: x + 0.1, state.agent.params.model.value)
        params = state.agent.params
        params = params._replace(model=params.model._replace(value=value))
        state = state._replace(agent=state.agent._replace(params=params))
        keys = train.fold_keys(state, train.ACTING, state.iteration)
        obs = state.timestep.obs.reshape(2, -1, env.observation_size)
        alone = [
            acting.act_policy(
                jax.tree.map(lambda x, k=k: x[k], params), keys[k], obs[k], spec=spec,
                config=config.agent,
            )
            for k in range(2)
        ]  # fmt: skip
        made = train.chunk(state, config, Work(1, 1, 0, True, False, False), env=env, spec=spec)
        return jnp.stack(alone), made[0].replay.rows

    actions, rows = jax.device_get(run())
    np.testing.assert_allclose(rows.action[:, 0], actions, rtol=1e-5, atol=1e-6)
    low, high = config.agent.mppi.std_min, config.agent.mppi.std_max
    std = rows.prior.std[:, 0]
    assert (std >= low).all() and (std <= high).all() and (np.abs(std - 1.0) > 1e-3).all()
    assert (np.abs(rows.prior.mean[:, 0]) <= 1.0).all() and (rows.prior_value[:, 0] != 0.0).all()


def test_replay_holds_what_the_environment_said():
    """probe/truncated: reward 1 a step, cut after 5 steps, the sixth call resets."""
    _, _, state, _ = base()
    rows, inserted = jax.device_get((state.replay.rows, state.replay.inserted))
    assert inserted == 30 and rows.reward.shape == (1, 32, 2)
    last = rows.last[0, :30]
    np.testing.assert_array_equal(last, np.broadcast_to((np.arange(30) % 6 == 5)[:, None], (30, 2)))
    np.testing.assert_array_equal(rows.reward[0, :30], np.where(last, 0.0, 1.0))
    assert not rows.terminated.any()
    assert np.all(np.abs(rows.action) <= 1.0) and np.all(rows.prior.std[0, :30] > 0)


def test_statistics_count_decisions_episodes_and_returns():
    _, _, state, _ = base()
    # 30 iterations of 2 environments, every sixth call only resets.
    assert state.stats.decisions.tolist() == [50]
    assert state.stats.episodes.tolist() == [10]
    np.testing.assert_array_equal(state.stats.returns, np.full((1, counters.RECENT), 5.0))


def test_returns_keep_the_newest_in_order():
    count = jax.jit(counters.count)
    zero = jnp.zeros((), jnp.int32)
    stats = counters.Stats(zero, zero, zero, jnp.full((counters.RECENT,), jnp.nan))
    seen = []
    for step in range(7):
        returns = jnp.arange(3, dtype=jnp.float32) + 10 * step
        done = jnp.array([step % 2 == 0, True, step % 3 == 0])
        no = jnp.zeros((3,), bool)
        timestep = envs.protocol.TimeStep(
            jnp.zeros((3, 1)), returns, no, done, no, no, returns, jnp.ones((3,), jnp.int32)
        )
        stats = count(stats, timestep)
        seen += [float(r) for r, d in zip(returns, done, strict=True) if d]
    np.testing.assert_array_equal(stats.returns, seen[-counters.RECENT :])
    assert int(stats.episodes) == len(seen)


def test_numbers_do_not_recompile():
    """Every float of the configuration is traced."""
    config, prog, _, _ = base()
    other = tiny.run(
        agent_changes={"optimizer__learning_rate": 1e-2, "mppi__temperature": 2.0,
                       "policy__kl_coef": 7.0, "optimizer__discount": 0.9}
    )  # fmt: skip
    state, _ = play(prog, other, prog.seeding + prog.pretraining)
    assert prog.chunk._cache_size() == 1
    assert np.isfinite(jax.tree.leaves(state.agent.params)[0]).all()


@functools.cache
def preset_program(preset):
    """Program of a preset; the task of po_mpc_direct is sometimes non-finite."""
    config = tiny.run(
        preset,
        agent_changes={"replan__interval": 2 if preset in ("bmpc", "qbmpc") else 0},
        env__task="probe/nan" if preset == "po_mpc_direct" else "probe/truncated",
        train__pretrain_updates=0 if preset == "bmpc" else 4,
    )
    return config, program(config)


@functools.cache
def preset_run(preset):
    config, prog = preset_program(preset)
    works = prog.seeding + prog.pretraining + prog.training
    return jax.device_get(prog.init(config)), *play(prog, config, works)


@pytest.mark.parametrize("preset", ["po_mpc_direct", "tdmpc2", "bmpc", "boom", "qbmpc"])
def test_presets_train(preset):
    start, state, metrics = preset_run(preset)
    assert preset_program(preset)[1].chunk._cache_size() == 1
    assert all(np.isfinite(value).all() for value in metrics[-1].values())
    for part in ("model", "policy"):
        a, b = getattr(start.agent.params, part), getattr(state.agent.params, part)
        moved = [np.max(np.abs(x - y)) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)]
        assert max(moved) > 1e-4
    assert int(jnp.sum(state.agent.faults.total)) == 0


def test_replanning_rewrites_records_of_sampled_rows():
    config, prog = preset_program("bmpc")
    state, _ = play(prog, config, prog.seeding)
    held = jax.device_get(state.replay.rows)
    idle, _ = prog.chunk(state, config, Work(1, 0, 4, False, True, False))
    unchanged = jax.device_get(idle.replay.rows)
    assert_same(held, unchanged)
    state, _ = prog.chunk(idle, config, Work(1, 0, 4, False, True, True))
    after = jax.device_get(state.replay.rows)
    changed = np.any(after.prior.mean != held.prior.mean, axis=-1)
    # Two re-plannings of two windows of three states each, at most.
    assert 1 <= changed.sum() <= 12
    assert np.all(after.prior_value[~changed] == held.prior_value[~changed])
    assert np.all(after.made[~changed] == held.made[~changed])
    assert set(after.made[changed]) <= {4, 6} and not held.made.any()
    for name in ("obs", "action", "reward", "terminated", "last"):
        np.testing.assert_array_equal(getattr(after, name), getattr(held, name))


def test_broken_environment_steps_never_reach_replay():
    _, state, _ = preset_run("po_mpc_direct")
    assert int(state.stats.invalid[0]) > 3
    rows = jax.device_get(state.replay.rows)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(rows))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.agent.params))
