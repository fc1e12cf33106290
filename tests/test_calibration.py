"""What followed stored actions, the critic's bias, and the strength that answers to it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from setting import OBS, A, Setting, near

from pomcp_jax import acting, agent, calibration, envs, normalising, replay, train, validation
from pomcp_jax import config as config_lib
from pomcp_jax.calibration import MOST, Outcomes
from pomcp_jax.config import ConfigError, PolicyConfig
from pomcp_jax.replay import Row
from pomcp_jax.types import Gaussian

GAMMA = 0.9
ENVS = 2


def history(length):
    """Rows ``[length, ENVS]`` of episodes of all kinds; an observation is its row and column."""
    rng = np.random.default_rng(0)
    last = rng.random((length, ENVS)) < 0.15
    terminated = np.zeros_like(last)
    # The action before a final observation ended its episode or ran out of time.
    terminated[:-1] = last[1:] & ~last[:-1] & (rng.random((length - 1, ENVS)) < 0.5)
    reward = rng.normal(size=(length, ENVS))
    return reward, terminated, last


def ring_of(length, capacity):
    reward, terminated, last = history(length)
    ring = replay.init(capacity, ENVS, 2, 1)

    def insert(ring, t):
        name = jnp.stack([jnp.full(ENVS, t, jnp.float32), jnp.arange(ENVS, dtype=jnp.float32)], 1)
        row = Row(
            name, name[:, :1], jnp.asarray(reward, jnp.float32)[t], jnp.asarray(terminated)[t],
            jnp.asarray(last)[t], Gaussian(name[:, :1], name[:, :1]), valued(t),
            jnp.zeros(ENVS, jnp.int32),
        )  # fmt: skip
        return replay.insert(ring, row), None

    return jax.lax.scan(insert, ring, jnp.arange(length))[0]


def valued(t):
    """Values of plans, of which some are missing: 0 as after random actions."""
    return jnp.where((t + jnp.arange(ENVS)) % 7 == 0, 0.0, 1.0)


def followed(start, env, length, steps):
    """By a plain loop: total, weight of the value, last row, and whether a plan acted."""
    reward, terminated, last = history(length)
    total, weight, t = 0.0, 1.0, start
    while t < length - 1 and t < start + steps and not last[t, env]:
        total += weight * reward[t, env]
        weight *= GAMMA * (not terminated[t, env])
        t += 1
    return total, weight, t, t > start and valued(start)[env] != 0.0


# Not full, just full, and wrapped; windows that are shorter and longer than what there is.
@pytest.mark.parametrize("length,capacity", [(12, 40), (40, 40), (97, 40), (1500, 1000)])
@pytest.mark.parametrize("steps", [1, 7, 60])
def test_outcomes_are_those_of_a_plain_loop(length, capacity, steps):
    config = tiny.agent("po_mpc", policy__bias_steps=steps, optimizer__discount=GAMMA)
    drawn = jax.jit(lambda key: calibration.draw(ring_of(length, capacity), key, config))
    out = jax.tree.map(np.asarray, drawn(jax.random.key(1)))
    starts, columns = out.obs.astype(int).T
    np.testing.assert_array_equal(out.action[:, 0], starts)
    size = min(length, capacity)
    span = min(max(int(0.1 * size), steps + 1), size)
    assert length - span <= starts.min() and starts.max() <= length - 1
    assert len(set(starts.tolist())) > 0.4 * min(span, calibration.ACTIONS)
    assert set(columns.tolist()) == set(range(ENVS))
    for i, (start, env) in enumerate(zip(starts, columns, strict=True)):
        total, weight, end, acted = followed(start, env, length, steps)
        assert out.acted[i] == acted
        if acted:
            np.testing.assert_allclose(out.total[i], total, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(out.weight[i], weight, rtol=1e-5, atol=1e-7)
            assert out.final_obs[i].tolist() == [end, env] or weight == 0.0


def some_outcomes(seed=0, size=32):
    rng = np.random.default_rng(seed)
    f32 = lambda *shape: jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32)  # noqa: E731
    acted = jnp.asarray(rng.random(size) < 0.7)
    return Outcomes(
        f32(size, OBS), f32(size, A), f32(size, OBS), 5.0 * f32(size), 0.5 + 0.5 * f32(size), acted
    )


def test_bias_is_that_of_the_formula():
    case, seen = Setting({"critic.target_action": "mode"}), some_outcomes()
    found = case.run(calibration.bias, case.agent, seen, jax.random.key(0))
    seen = jax.tree.map(lambda x: np.asarray(x, np.float64), seen)
    z, end = case.encode(seen.obs), case.encode(seen.final_obs)
    q = case.values(case.params.value, z, seen.action).mean(0)
    (action, _, _), _, _ = case.actor(case.policy, end)
    v = case.values(case.params.value, end, np.clip(action, -1, 1)).mean(0)
    acted = seen.acted.astype(bool)
    error = np.sum((q - seen.total - seen.weight * v)[acted]) / np.sum(1.0 - seen.weight[acted])
    near(found, error, 1e-3)


def test_a_critic_that_is_wrong_by_a_constant_is_off_by_it_whatever_the_bootstrap():
    case, seen = Setting({"critic.target_action": "mode"}), some_outcomes(1)

    def exact(error):
        """Outcomes of which every value of this critic is ``error`` too high."""
        z, end = (case.encode(np.asarray(x, np.float64)) for x in (seen.obs, seen.final_obs))
        q = case.values(case.params.value, z, np.asarray(seen.action, np.float64)).mean(0)
        (action, _, _), _, _ = case.actor(case.policy, end)
        v = case.values(case.params.value, end, np.clip(action, -1, 1)).mean(0)
        total = (q - error) - np.asarray(seen.weight) * (v - error)
        return seen._replace(total=jnp.asarray(total, jnp.float32))

    for error in (-2.0, 0.0, 3.0):
        found = case.run(calibration.bias, case.agent, exact(error), jax.random.key(0))
        np.testing.assert_allclose(found, error, rtol=1e-3, atol=1e-3)


def test_the_last_value_is_of_the_action_that_targets_evaluate():
    seen = some_outcomes(2)
    for actor in ("policy", "prior"):
        case = Setting({"critic.target_actor": actor})
        key = jax.random.key(3)
        found = case.run(calibration.bias, case.agent, seen, key)
        end = case.encode(np.asarray(seen.final_obs, np.float64))
        eps = np.asarray(jax.random.normal(key, seen.action.shape), np.float64)
        (action, _, _), _, _ = case.actor(getattr(case, actor), end, eps)
        acted, weight = np.asarray(seen.acted), np.asarray(seen.weight, np.float64)
        last = case.values(case.params.value, end, action).mean(0)
        without = seen._replace(weight=jnp.zeros_like(seen.weight))
        rest = float(case.run(calibration.bias, case.agent, without, key)) * acted.sum()
        expected = (rest - np.sum((weight * last)[acted])) / np.sum(1.0 - weight[acted])
        near(found, expected, 1e-3)


def test_a_critic_of_states_is_compared_at_both_ends():
    case, seen = Setting({"world_model.critic": "v"}), some_outcomes(4)
    found = case.run(calibration.bias, case.agent, seen, jax.random.key(0))
    first, last = (
        case.values(case.params.value, case.encode(np.asarray(x, np.float64))).mean(0)
        for x in (seen.obs, seen.final_obs)
    )
    weight, acted = np.asarray(seen.weight, np.float64), np.asarray(seen.acted)
    error = np.sum((first - np.asarray(seen.total) - weight * last)[acted])
    near(found, error / np.sum(1.0 - weight[acted]), 1e-3)


def test_observations_are_normalised_as_in_acting():
    shift, std = np.linspace(-50.0, 50.0, OBS), np.linspace(0.5, 20.0, OBS)
    case, seen = Setting({"critic.target_action": "mode"}), some_outcomes(5)
    plain = case.run(calibration.bias, case.agent, seen, jax.random.key(0))
    moments = normalising.init(OBS)._replace(
        shift=jnp.asarray(shift, jnp.float32),
        variance=jnp.asarray(std**2, jnp.float32),
        count=jnp.int32(10),
    )
    scaled = lambda x: jnp.asarray(shift + std * np.asarray(x), jnp.float32)  # noqa: E731
    raw = seen._replace(obs=scaled(seen.obs), final_obs=scaled(seen.final_obs))
    agent_of = case.agent._replace(moments=moments)
    near(case.run(calibration.bias, agent_of, raw, jax.random.key(0)), plain, 1e-3)


def test_the_unit_of_bias_is_how_much_values_differ():
    values = jnp.array([[1.0, 3.0, 99.0], [1.0, 3.0, np.nan]])
    mask = jnp.array([[True, True, False], [True, True, False]])
    relative = lambda bias, values: float(calibration.relative(jnp.float32(bias), values, mask))  # noqa: E731
    assert relative(0.5, values) == pytest.approx(0.5)
    assert relative(0.5, 10.0 * values + 7.0) == pytest.approx(0.05)
    assert relative(-1.0, jnp.ones_like(values)) == -calibration.LARGEST


def test_no_action_is_no_bias():
    case, seen = Setting({}), some_outcomes()
    none = seen._replace(acted=jnp.zeros_like(seen.acted))
    assert case.run(calibration.bias, case.agent, none, jax.random.key(0)) == 0.0


def test_the_factor_rises_with_overestimation_beyond_its_limit_and_falls_below_it():
    config = PolicyConfig(kl_tuning="calibrated", dual_rate=0.1, bias_limit=0.5)
    step = lambda log, bias: float(calibration.step(jnp.float32(log), jnp.float32(bias), config))  # noqa: E731
    assert step(1.0, 0.7) == pytest.approx(1.02)
    assert step(1.0, 90.0) == pytest.approx(1.1)
    assert step(1.0, 0.5) == pytest.approx(1.0)
    assert step(1.0, -0.2) == pytest.approx(0.93)
    assert step(1.0, -90.0) == pytest.approx(0.9)
    assert step(0.01, -90.0) == 0.0 and step(MOST, 90.0) == MOST
    assert step(1.0, np.nan) == 1.0


# -------------------------------------------------------------------------- training


RATE = 0.5


@functools.cache
def program(tuning):
    changes = {"policy__kl_tuning": tuning, "policy__dual_rate": RATE, "policy__bias_steps": 5}
    config = tiny.run("po_mpc_gated", changes, train__num_seeds=2)
    return config, train.build(config, envs.make(config.env.task, config.env.action_repeat))


def chunks(tuning, limits):
    """State and metrics after every chunk of a run; limits of its two seeds."""
    config, prog = program(tuning)
    config = config_lib.replace(config, {"agent.policy.bias_limit": jnp.asarray(limits)})
    state = prog.init(config)
    for work in prog.seeding + prog.pretraining + prog.training:
        state, metrics = prog.chunk(state, config, work)
        yield jax.device_get((state.agent, state.updates, metrics))


def test_a_critic_within_the_limit_changes_nothing():
    *_, (plain, _, _) = chunks("fixed", [1.0, 1.0])
    *_, (found, _, metrics) = chunks("calibrated", [1e9, 1e9])
    assert np.isfinite(metrics["value/bias"]).all() and np.all(metrics["policy/kl_multiplier"] == 1)
    near = functools.partial(np.testing.assert_allclose, rtol=0.05, atol=1e-3)
    jax.tree.map(near, plain.params.policy["out"], found.params.policy["out"])


def test_the_factor_of_every_seed_follows_its_own_limit():
    """All biases are within [-10, 10]: one seed is always beyond its limit, the other never."""
    risen = [
        (updates, agent.scales.log_multiplier)
        for agent, updates, _ in chunks("calibrated", [-11.0, 11.0])
    ]
    for updates, log in risen:
        np.testing.assert_allclose(log, [min(RATE * updates, MOST), 0.0], rtol=1e-5)
    assert risen[-1][0] > 0


def test_pre_training_without_the_actors_leaves_the_factor():
    case = Setting({"policy.kl_tuning": "calibrated", "policy.dual_rate": 0.1})
    spec = acting.build(case.config, OBS, A)
    state = agent.init(jax.random.key(0), case.config, spec)
    # Rewards so low that every value is too high.
    seen = some_outcomes()._replace(total=jnp.full(32, -1e3))
    update = jax.jit(functools.partial(agent.update, spec=spec, config=case.config))
    for enabled, expected in ((False, 0.0), (True, 0.1)):
        after, metrics = update(
            state, case.batch, jax.random.key(1), train_actors=jnp.array(enabled), outcomes=seen
        )
        np.testing.assert_allclose(after.scales.log_multiplier, expected, rtol=1e-5)
        assert metrics["value/bias"] > 1.0


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"agent.policy.bias_steps": 500}, "agent.policy.bias_steps = 500: must be < 500"),
        ({"train.offline": True}, "agent.policy.kl_tuning = 'calibrated': must be 'fixed'"),
        ({"agent.replan.interval": 10}, "agent.policy.kl_tuning = 'calibrated': must be 'fixed'"),
        ({"agent.critic.target_actor": "best"},
         "agent.critic.target_actor = 'best': must be 'policy' or 'prior' when agent.policy.kl_t"),
        ({"agent.policy.kl_tuning": "fixed", "agent.prior.gate": True,
          "agent.critic.tail_penalty": 1.0},
         "agent.prior.gate_value = 'plan': must be 'critic' when agent.critic.tail_penalty > 0"),
        ({"agent.policy.bias_limit": 10.0}, "agent.policy.bias_limit = 10.0: must be in [0, 10)"),
        (
            {"agent.critic.td_lambda": 0.5, "agent.critic.return_steps": 90, "train.capacity": 180,
             "agent.policy.bias_steps": 9, "agent.optimizer.batch_size": 20},
            "agent.critic.return_steps = 90: must be < 90, the rows",
        ),
    ],
)  # fmt: skip
def test_what_replay_cannot_hold_or_nobody_does_is_refused(changes, line):
    config = tiny.run(agent_changes={"policy__kl_tuning": "calibrated"}, env__num_envs=2)
    config = config_lib.replace(
        config, {"train.capacity": 1_000, "train.buffer": "a.npz"} | changes
    )
    with pytest.raises(ConfigError) as error:
        validation.validate_config(config)
    assert str(error.value).startswith(line)
