"""Short trainings with compatible combinations of the settings beyond the paper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from pomcp_jax import agent, envs, train
from pomcp_jax import config as config_lib
from pomcp_jax.running import functions
from pomcp_jax.train import Work

WINDOWS = {"optimizer__batch_size": 128, "replan__batch_size": 2, "replan__interval": 2}
"""Batches so large, on a ring so small, that every window is drawn, and more than once."""
RUNS = {
    "mixture": dict(
        agent_changes=WINDOWS | {
            "policy__prior": "mixture", "policy__kl_tuning": "dual", "policy__dual_rate": 0.1,
            "policy__value_weight": True, "policy__proposer": "both", "prior__gate": True,
            "policy__seed_record": "action", "policy__seed_std": 0.3,
            "replan__select": "oldest", "replan__num_samples": 8, "replan__iterations": 1,
            "critic__tail_penalty": 0.5, "mppi__num_proposals": 3, "prior__gate_value": "critic",
        },
        train__updates_per_decision=1.5,
    ),
    "v_critic": dict(
        preset="qbmpc",
        agent_changes=WINDOWS | {
            "policy__prior": "learned", "prior__gate": True, "prior__divergence": "forward",
            "policy__proposer": "prior", "policy__kl_tuning": "dual", "policy__dual_rate": 0.1,
            "replan__select": "kl", "critic__target_actor": "prior",
        },
    ),
    "soft": dict(
        agent_changes=WINDOWS | {
            "critic__soft_target": True, "policy__kl_tuning": "dual", "policy__dual_rate": 0.1,
            "policy__value_weight": True, "critic__tail_penalty": 0.5,
            "critic__td_lambda": 0.9, "critic__return_steps": 5,
        },
        train__num_seeds=2,
    ),
    "rare_actors": dict(
        env__task="probe/lqr",
        agent_changes={
            "policy__interval": 3, "policy__kl_tuning": "dual", "policy__dual_rate": 0.1,
            "policy__average_updates": 20, "policy__divergence": "forward",
            "optimizer__average_updates": 20, "replan__select": "kl",
            "replan__batch_size": 2, "replan__interval": 2,
            "world_model__arranged_for": "gpu",  # conditions meet the packed state
        },
        train__num_seeds=2,
    ),
}  # fmt: skip


@functools.cache
def program(name):
    config = tiny.run(**RUNS[name], train__capacity=400)
    return config, train.build(config, envs.make(config.env.task, config.env.action_repeat))


@functools.cache
def seeded(name):
    """The state after the random phase."""
    config, prog = program(name)
    state = prog.init(config)
    for work in prog.seeding:
        state, _ = prog.chunk(state, config, work)
    return state


def copy(state):
    """For a chunk to donate."""
    return jax.tree.map(jnp.copy, state)


@functools.cache
def trained(name):
    config, prog = program(name)
    state = copy(seeded(name))
    for work in prog.pretraining + prog.training:
        state, metrics = prog.chunk(state, config, work)
    return state, jax.device_get(metrics)


@pytest.mark.parametrize("name", RUNS)
def test_settings_train(name):
    config, prog = program(name)
    state, metrics = trained(name)
    assert prog.chunk._cache_size() == 1
    for key, value in metrics.items():
        assert np.isfinite(value).all(), key
    assert not np.any(state.agent.faults.total)
    for part in ("model", "policy", "prior"):
        a, b = (getattr(s.agent.params, part) for s in (seeded(name), state))
        moved = [np.max(np.abs(x - y)) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)]
        assert max(moved) > 1e-4
    multiplier = state.agent.scales.log_multiplier
    assert np.all(multiplier != 0.0) and np.all(np.abs(multiplier) <= 10.0)
    after_seeding = config.train.total_decisions - config.train.seed_decisions
    updates = config.train.pretrain_updates + after_seeding * config.train.updates_per_decision
    assert int(state.updates) == updates
    assert np.all((metrics["prior/fitted"] >= 0.0) & (metrics["prior/fitted"] <= 1.0))


def test_policy_and_prior_learn_in_every_third_update():
    state, _ = trained("rare_actors")
    opt, updates = state.agent.opt, int(state.updates)
    assert opt.model.count.tolist() == [updates] * 2
    assert opt.policy.count.tolist() == opt.prior.count.tolist() == [-(-updates // 3)] * 2


@pytest.mark.parametrize("part", ["policy", "model"])
def test_an_average_stays_behind_what_learns(part):
    state, _ = trained("rare_actors")
    begin = jax.tree.leaves(getattr(seeded("rare_actors").agent.params, part))
    average = jax.tree.leaves(getattr(state.agent.params, part))
    learning = jax.tree.leaves(getattr(state.agent.opt, f"learning_{part}"))
    way = [float(jnp.sum((x - y) ** 2)) for x, y in zip(learning, begin, strict=True)]
    left = [float(jnp.sum((x - y) ** 2)) for x, y in zip(learning, average, strict=True)]
    assert 0.0 < sum(left) < sum(way)


def test_training_is_the_same_without_averages():
    """Only what is evaluated is an average: what acts, plans and learns has never seen it."""
    config, _ = program("rare_actors")
    without = {"agent.policy.average_updates": 0, "agent.optimizer.average_updates": 0}
    config = config_lib.replace(config, without)
    prog = train.build(config, envs.make(config.env.task, config.env.action_repeat))
    state = prog.init(config)
    for work in prog.seeding + prog.pretraining + prog.training:
        state, _ = prog.chunk(state, config, work)
    learns = agent.with_learners(trained("rare_actors")[0].agent)
    assert learns.params is not trained("rare_actors")[0].agent.params
    near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(near, learns.params, state.agent.params)
    jax.tree.map(near, learns.target_value, state.agent.target_value)


def test_averages_are_evaluated():
    config, _ = program("rare_actors")
    state, _ = trained("rare_actors")
    play = functions.build(config).evaluate_policy
    learners = jax.vmap(agent.with_learners)(state.agent)
    fresh = seeded("rare_actors").agent.opt
    opt = state.agent.opt._replace(
        learning_policy=fresh.learning_policy,
        learning_prior=fresh.learning_prior,
        learning_model=fresh.learning_model,
    )
    evaluated, others, learning = (
        np.asarray(play(state._replace(agent=one), config).returns)
        for one in (state.agent, state.agent._replace(opt=opt), learners)
    )
    np.testing.assert_array_equal(evaluated, others)
    assert np.any(evaluated != learning)


def test_means_of_the_actors_are_over_the_updates_that_trained_them():
    config, prog = program("rare_actors")
    start = copy(seeded("rare_actors"))._replace(updates=jnp.int32(2))
    updates = Work(1, 0, 8, True, True, False)  # the updates 2 to 9: due are 3, 6 and 9
    _, means = prog.chunk(copy(start), config, updates)
    single = []
    for _ in range(8):
        start, metrics = prog.chunk(start, config, updates._replace(updates=1))
        single.append(jax.device_get(metrics))
    assert [bool(np.isnan(x["policy/kl"]).any()) for x in single] == [
        i not in (3, 6, 9) for i in range(2, 10)
    ]
    for name in ("policy/kl", "loss/prior", "loss/model"):
        each = np.stack([x[name] for x in single])
        np.testing.assert_allclose(means[name], np.nanmean(each, axis=0), rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("name", ["mixture", "v_critic"])
def test_random_actions_have_the_record_that_is_asked_for(name):
    rows = jax.device_get(seeded(name).replay.rows)
    filled = jax.tree.map(lambda x: x[:, :10], rows)
    if name == "mixture":
        np.testing.assert_array_equal(filled.prior.mean, filled.action)
        np.testing.assert_array_equal(filled.prior.std, np.full_like(filled.action, 0.3))
        assert np.std(filled.action) > 0.3
    else:
        np.testing.assert_array_equal(filled.prior.mean, np.zeros_like(filled.action))
        np.testing.assert_array_equal(filled.prior.std, np.ones_like(filled.action))


# ------------------------------------------------------------------- re-planning


def replanned(name, rows):
    """Which rows ``[S, C, N]`` one update rewrites, on a ring whose fields are replaced."""
    config, prog = program(name)
    state = seeded(name)
    held = jax.device_get(state.replay.rows)
    rows = held._replace(**rows(held))
    state = state._replace(replay=state.replay._replace(rows=rows))
    after, _ = prog.chunk(copy(state), config, Work(1, 0, 1, False, True, True))
    after = jax.device_get(after.replay.rows)
    for field in ("obs", "action", "reward", "terminated", "last"):
        np.testing.assert_array_equal(getattr(after, field), getattr(held, field))
    changed = np.any(after.prior.mean != rows.prior.mean, axis=-1)
    np.testing.assert_array_equal(after.made, np.where(changed, 0, rows.made))
    return np.argwhere(changed).tolist()


# Every sixth row is an episode's last: it starts no transition.
WINDOW = [[0, 6, 1], [0, 7, 1], [0, 8, 1]]


def test_the_oldest_records_are_planned_again():
    def rows(held):
        made = np.zeros_like(held.made)
        made[0, 5, :] = -1_000_000  # no transition starts there: its age is undefined
        made[0, 6:9, 1] = -100
        made[0, 0:3, 0] = -90
        return {"made": made}

    assert replanned("mixture", rows) == WINDOW


def test_the_records_farthest_from_the_policy_are_planned_again():
    def rows(held):
        prior = jax.tree.map(np.copy, held.prior)
        prior.mean[0, 6:9, 1], prior.std[0, 6:9, 1] = 0.9, 0.05
        prior.mean[0, 5, :], prior.std[0, 5, :] = -0.9, 0.001
        return {"prior": prior}

    assert replanned("v_critic", rows) == WINDOW


def test_a_random_choice_does_not_look_at_age():
    def old(held):
        made = np.zeros_like(held.made)
        made[:, 6:9] = -100
        return {"made": made}

    fresh = replanned("soft", lambda held: {})
    assert fresh == replanned("soft", old)
    seeds = [{(row, env) for seed, row, env in fresh if seed == s} for s in (0, 1)]
    # Two windows of three states, which may overlap.
    assert all(3 <= len(rows) <= 6 for rows in seeds) and seeds[0] != seeds[1]


# ------------------------------------------------------------------- soft targets


def test_soft_targets_pay_the_price_of_the_policy_loss():
    """Coefficient times multiplier; more of either lowers the values that are learned."""
    config, prog = program("soft")

    def value(coefficient, multiplier):
        state = seeded("soft")
        log = jnp.full_like(state.agent.scales.log_multiplier, np.log(multiplier))
        scales = state.agent.scales._replace(log_multiplier=log)
        state = copy(state._replace(agent=state.agent._replace(scales=scales)))
        changed = config_lib.replace(config, {"agent.policy.kl_coef": coefficient})
        return prog.chunk(state, changed, Work(1, 0, 1, False, True, False))[1]["value/target"]

    free, dear = value(1e-6, 1.0), value(2.0, 1.0)
    np.testing.assert_allclose(value(1.0, 2.0), dear, rtol=1e-4)
    assert np.all(free - dear > 1e-3)
    np.testing.assert_allclose(free - value(1.0, 1.0), (free - dear) / 2.0, rtol=1e-2)
