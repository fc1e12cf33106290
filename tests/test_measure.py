"""Metrics: counters without overflow, broken episodes, targets beyond the bins."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from experiments.configs import quickstart, small
from pomcp_jax import acting, counters, envs, evaluate, maths, model_loss, train
from pomcp_jax.agent import Faults
from pomcp_jax.config import Config, from_dict
from pomcp_jax.counters import Stats
from pomcp_jax.evaluate import Episodes
from pomcp_jax.running import functions as functions_lib
from pomcp_jax.running import metrics


def episodes(valid, returns=((1.0, 2.0, 3.0), (4.0, 5.0, 9.0))):
    returns = np.array(returns, np.float32)
    return Episodes(returns, np.full(returns.shape, 7, np.int32), np.array(valid))


ALL, SOME = [[True] * 3] * 2, [[True, False, True], [False] * 3]


def test_broken_episodes_are_counted_apart():
    values = metrics.episode_values(episodes(SOME))
    np.testing.assert_array_equal(values["eval/return"], [2.0, np.nan])
    np.testing.assert_array_equal(values["eval/length"], [7.0, np.nan])
    np.testing.assert_array_equal(values["eval/broken"], [1, 3])
    whole = metrics.episode_values(episodes(ALL))
    np.testing.assert_array_equal(whole["eval/return"], [2.0, 6.0])
    assert whole["eval/return"].dtype == np.float32 and not whole["eval/broken"].any()


def test_rows_of_evaluations_leave_broken_episodes_out_of_their_means():
    rows = metrics.episode_rows(tiny.run(), np.array([5, 6]), "planner", episodes(SOME), 1.0)
    first, second = rows
    assert (first["eval/return"], first["std"], first["valid"]) == (2.0, 1.0, 2)
    assert (second["eval/return"], second["std"], second["valid"]) == (None, None, 0)
    assert [second[f"episode_{i}"] for i in range(3)] == [4.0, 5.0, 9.0]


@pytest.mark.parametrize("valid,score", [(ALL, 4.0), (SOME, None), ([[False] * 3] * 2, None)])
def test_an_evaluation_with_broken_episodes_is_never_the_best(valid, score):
    assert metrics.score(metrics.episode_values(episodes(valid))) == score


def test_seeds_that_are_left_behind_do_not_count_for_the_best():
    values = metrics.episode_values(episodes([[True] * 3, [False] * 3]))
    values = {name: np.where([False, True], np.nan, value) for name, value in values.items()}
    assert metrics.score(values) == 2.0


def stats(decisions, finished=0, returns=0.0):
    counts = np.array([decisions, finished, 0], np.int32)[:, None]
    return Stats(*counts, np.full((1, counters.RECENT), returns, np.float32))


def test_frames_pass_what_the_device_counts():
    config = tiny.run(env__action_repeat=4)
    faults = Faults(*np.zeros((3, 1), np.int32))
    values = metrics.chunk_values(config, stats(600_000_000), faults, 2**31 - 1, 1.0, 1)
    assert values["frames"].tolist() == [2_400_000_000]
    assert values["updates"].tolist() == [2**31 - 1]
    rows = metrics.episode_rows(config, np.full(2, 2**31 - 1), "policy", episodes(ALL), 1.0)
    assert rows[0]["frames"] == 4 * (2**31 - 1)


@pytest.mark.parametrize("finished,expected", [(0, np.nan), (3, 1.0), (8, 0.375), (100, 0.375)])
def test_returns_of_episodes_that_are_not_there_yet_count_for_nothing(finished, expected):
    found = stats(0, finished)
    found.returns[0, -3:] = 1.0
    np.testing.assert_array_equal(metrics.recent_returns(found), [expected])
    assert counters.filled(found).sum() == min(finished, counters.RECENT)


# An environment that breaks


@functools.cache
def evaluated(breaks):
    """Episodes of an untrained agent in an environment that breaks at once, later or never."""
    config = tiny.run()
    task = envs.make_task("probe/truncated")
    bad = lambda state: jnp.where(state.steps == breaks, jnp.nan, task.observe(state))  # noqa: E731
    env = envs.make_env(task._replace(observe=bad))
    spec = acting.build(config.agent, 1, 1)
    keys = jax.random.split(jax.random.key(0), 2)
    params = train.init_agents(keys, config, spec).params
    play = jax.jit(
        lambda params: evaluate.rollout(
            params, keys, env=env, spec=spec, config=config.agent, episodes=3, planner=False
        )
    )
    return jax.device_get(play(params))


@pytest.mark.parametrize("breaks,lengths", [(0, 0), (3, 2), (9, 5)])
def test_an_episode_that_breaks_is_not_valid_from_its_first_observation_on(breaks, lengths):
    found = evaluated(breaks)
    assert found.valid.shape == (2, 3) and (found.valid == (breaks == 9)).all()
    np.testing.assert_array_equal(found.returns, lengths)
    np.testing.assert_array_equal(found.lengths, lengths)


def test_environments_that_begin_broken_are_counted_from_the_start():
    config = tiny.run(train__num_seeds=2)
    task = envs.make_task("probe/truncated")
    env = envs.make_env(task._replace(observe=lambda state: jnp.full((1,), jnp.nan)))
    state = train.build(config, env).init(config)
    assert state.stats.invalid.tolist() == [2, 2]


# Bins


def test_the_share_beyond_the_bins():
    values = jnp.array([[0.0, 5.0, 100.0, -100.0], [7.0, -8.0, 6.0, np.nan]])
    mask = jnp.array([[True] * 4, [True, True, False, False]])
    bins = maths.Bins(21, float(np.log(9.0)) * -1.0, float(np.log(7.5)))  # -8 to 6.5
    found = model_loss.clipped_share(values, mask, bins)
    np.testing.assert_allclose(found, 3 / 6)  # 100, -100 and 7; -8 lies on the end


@pytest.mark.parametrize("kind", ["value", "reward"])
def test_one_line_names_the_share_and_the_setting(kind):
    values = {"value/clipped": np.zeros(2), "reward/clipped": np.array([np.nan, 0.0])}
    config = from_dict(Config, quickstart.get_config().to_dict())
    assert metrics.clipping(config, values) == ""
    values[f"{kind}/clipped"] = np.array([0.25, 0.125])
    text = metrics.clipping(config, values)
    assert text.startswith(f"25% of the {kind} targets lie beyond the bins, -402.4 to 402.4,")
    assert "agent.world_model.bin_low and bin_high" in text


@pytest.mark.parametrize(
    ("config", "narrow"),
    [(quickstart, (61, -6.0, 6.0)), (small, (51, -5.0, 5.0))],
    ids=["quickstart", "small"],
)
def test_bins_are_narrow_where_rewards_are_known_to_be_bounded(config, narrow):
    def bins(argument):
        model = from_dict(Config, config.get_config(argument).to_dict()).agent.world_model
        return model.num_bins, model.bin_low, model.bin_high

    for argument in (None, "", "walker-walk", "cheetah-run,tdmpc2", ",bmpc"):
        assert bins(argument) == narrow
    for argument in ("brax/ant", "probe/lqr", "brax/hopper,bmpc"):
        assert bins(argument) == (101, -10.0, 10.0)


# Allowed settings that are hardly intended


def test_a_task_that_terminates_without_a_model_of_it_is_a_warning():
    config = tiny.run(env__task="probe/constant")
    env = envs.make("probe/constant")
    text = r"agent.world_model.termination = False: episodes of 'probe/constant' can terminate"
    with pytest.warns(UserWarning, match=text):
        train.build(config, env)
    assert len(train.doubts(config, env)) == 1
    known = tiny.run(env__task="probe/constant", agent_changes={"world_model__termination": True})
    train.build(known, env)
    train.build(tiny.run(), envs.make("probe/truncated"))
    functions_lib.build(config)  # warns when it runs


@pytest.mark.parametrize("repeat", [1, 4])
def test_settings_that_disagree_with_the_environment_are_refused(repeat):
    config = tiny.run(env__action_repeat=2)
    text = rf"env.action_repeat = 2: environment 'probe/lqr' was made with {repeat}; must be the"
    with pytest.raises(ValueError, match=text):
        train.build(config, envs.make("probe/lqr", repeat))
