"""A trained agent acts outside of training: arguments, episodes, batches, units, budgets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from pomcp_jax import acting, agent, checkpoint, controller, envs
from pomcp_jax.checkpoint import CheckpointError
from pomcp_jax.config import replace

OBS, ACTION = 3, 2
CONFIG = tiny.run(train__seed=5, train__num_seeds=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two seeds with checkpoints at 10 (best), 20 and 30 decisions."""
    folder = tmp_path_factory.mktemp("run")
    spec = acting.build(CONFIG.agent, OBS, ACTION)
    for decisions, score in ((10, 9.0), (20, 3.0), (30, None)):
        keys = jax.random.split(jax.random.key(decisions), 2)
        state = jax.vmap(lambda key: agent.init(key, CONFIG.agent, spec))(keys)
        checkpoint.save(folder / "checkpoints", decisions, state, CONFIG, spec, keep=5, score=score)
    return folder


@pytest.fixture(scope="module")
def planner(run):
    return controller.load_controller(run)


def observations(num=4):
    return np.random.default_rng(0).normal(size=(num, OBS)).astype(np.float32)


def test_planner_acts_as_the_agent_would(run, planner):
    restored = controller.load(run)
    assert restored.decisions == 10  # the best
    config = replace(restored.config.agent, {"mppi.select": "argmax"})
    params = jax.tree.map(lambda x: x[0], restored.state.params)
    plan, key, first = acting.init_plan(config, restored.spec, 1), jax.random.key(0), True
    planner.reset()
    for obs in observations():
        key, now = jax.random.split(key)
        out = acting.act(
            params, now, jnp.asarray(obs)[None], plan, jnp.array([first]),
            spec=restored.spec, config=config, explore=0.0,
        )  # fmt: skip
        plan, first = out.next_state, False
        np.testing.assert_allclose(planner.act(obs), out.action[0], atol=1e-5)


def test_reset_forgets_and_repeats(planner):
    planner.reset()
    first = [planner.act(obs) for obs in observations()]
    again = planner.act(observations()[0])  # mid-episode: the plan is warm
    planner.reset()
    np.testing.assert_array_equal([planner.act(obs) for obs in observations()], first)
    assert not np.array_equal(again, first[0])


def test_batches_have_their_own_number(planner):
    planner.reset()
    assert planner.act(observations(2)).shape == (2, ACTION)
    with pytest.raises(ValueError, match="3 observations: this episode began with 2; call reset"):
        planner.act(observations(3))
    planner.reset()
    assert planner.act(observations(1)[0]).shape == (ACTION,)


def test_policy_and_seed(run):
    one = controller.load_controller(run, actor="policy", seed=6)
    restored = controller.load(run)
    params = jax.tree.map(lambda x: x[1], restored.state.params)
    obs = observations()
    expected = acting.act_policy(
        params, jax.random.key(0), obs, spec=restored.spec, config=CONFIG.agent, explore=0.0
    )
    np.testing.assert_allclose(one.act(obs), expected, atol=1e-6)
    prior = controller.load_controller(run, actor="prior", seed=6).act(obs)
    assert not np.allclose(prior, expected, atol=1e-4)


def test_bounds_scale_actions(run):
    low, high = np.array([-3.0, 1.0]), np.array([-1.0, 5.0])
    plain = controller.load_controller(run, actor="policy").act(observations())
    scaled = controller.load_controller(run, actor="policy", bounds=(low, high))
    np.testing.assert_allclose(
        scaled.act(observations()), low + (plain + 1) / 2 * (high - low), rtol=1e-6
    )


@pytest.mark.parametrize("low,high", [(-0.3, 1.1), (-1.57, 0.52), (-3.4028235e38, 3.4028235e38)])
def test_no_action_leaves_its_bounds(run, low, high):
    """Nor by a rounded sum, nor by a difference that float32 cannot hold."""
    scaled = controller.load_controller(run, actor="policy", bounds=(low, high))
    size = scaled.action_size
    for action in (-1.0, 0.0, 1.0, 1.5):
        scaled._act = lambda params, state, seen, a=action: (state, np.full((1, size), a))
        out = scaled.act(observations()[:1])
        assert np.isfinite(out).all()
        assert (out >= np.float32(low)).all() and (out <= np.float32(high)).all()
        scaled.reset()


def test_bounds_may_be_numbers(run):
    """The same for every input, as the planner's own ``low`` and ``high``."""
    plain = controller.load_controller(run, actor="policy").act(observations())
    scaled = controller.load_controller(run, actor="policy", bounds=(-10, 10.0))
    np.testing.assert_allclose(scaled.act(observations()), 10 * plain, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="must be below"):
        controller.load_controller(run, actor="policy", bounds=(1.0, 1.0))


def test_bounds_of_dm_control():
    low, high = envs.action_bounds("pendulum-swingup")
    assert (low, high) == (-1.0, 1.0)
    with pytest.raises(ValueError, match="brax/ant: its bounds are not known"):
        envs.action_bounds("brax/ant")


def test_time_budget_chooses_iterations(run, planner):
    generous = controller.load_controller(run, time_budget=60.0)
    assert generous.iterations == CONFIG.agent.mppi.iterations
    with pytest.raises(ValueError, match="time_budget = 1e-09 s: the fastest decision takes"):
        controller.load_controller(run, time_budget=1e-9)
    with pytest.raises(ValueError, match="must be > 0"):
        controller.load_controller(run, time_budget=-1.0)
    assert len(planner.latencies(3)) == 3


def test_pure_functions_run_inside_a_scan(run):
    restored = controller.load(run)
    params = jax.tree.map(lambda x: x[0], restored.state.params)
    fns = controller.make_fns(restored.config.agent, restored.spec, select="sample")

    def loop(key, obs):
        return jax.lax.scan(lambda s, _: fns.act(params, s, obs), fns.init(key, 2), length=3)

    state, actions = jax.jit(loop)(jax.random.key(0), observations(2))
    assert actions.shape == (3, 2, ACTION) and np.isfinite(actions).all()
    assert not state.is_first.any()


@pytest.mark.parametrize(("which", "decisions"), [("best", 10), ("newest", 30), (20, 20)], ids=str)
def test_which_checkpoint(run, which, decisions):
    assert controller.load(run, which).decisions == decisions
    assert controller.load(run / "checkpoints", which).decisions == decisions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(actor="plannr"), "actor = 'plannr': must be one of planner, policy, prior"),
        (dict(select="best"), "select = 'best': must be 'argmax' or 'sample'"),
        (dict(seed=7), "seed = 7: this run has the seeds 5 to 6"),
        (dict(seed="5"), "seed = '5': must be the number of a training seed"),
        (dict(key="5"), "key = '5': must be an integer"),
        (dict(key=2**70), "key = 1180591620717411303424: must be an integer of 64 bits"),
        (dict(time_budget=True), "time_budget = True: must be > 0 seconds"),
        (dict(explore="no"), "explore is 'no': must be a number"),
        (dict(explore=None), "explore is None: must be a number"),
        (dict(explore=-1.0), "explore = -1: must be a finite number >= 0"),
        (dict(explore=float("inf")), "explore = inf: must be a finite number >= 0"),
        (dict(explore=[1.0, 2.0, 3.0, 4.0]), "explore is .*: must be a number, or .A. = "),
        (dict(time_budget="fast"), "time_budget = 'fast': must be > 0 seconds"),
        (dict(units="si"), "units = 'si': must be"),
        (dict(checkpoint="last"), "checkpoint = 'last': must be 'best', 'newest' or a number"),
        (dict(checkpoint=15), r"holds no checkpoint 15; it has \[10, 20, 30\]"),
    ],
)
def test_wrong_arguments_are_one_line(run, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        controller.load_controller(run, **arguments)
    assert "\n" not in str(error.value)


def test_wrong_observations(planner):
    planner.reset()
    with pytest.raises(ValueError, match=r"observation of shape \(4,\): must be \[3\] or \[N, 3\]"):
        planner.act(np.zeros(4))
    with pytest.raises(ValueError, match=r"observation\[1\] is not finite"):
        planner.act([0.0, np.nan, 0.0])
    masked = np.ma.masked_array(np.zeros(3), [True, False, False])
    wrong = [{}, ["a", "a", "a"], [[0.0], [0.0, 1.0]], np.zeros(3, complex), masked, None]
    for observation in [*wrong, np.zeros(3, "datetime64[s]"), np.zeros(3, "timedelta64[s]")]:
        with pytest.raises(ValueError, match=r"^observation: has .*; must be an array of real"):
            planner.act(observation)
    for num in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=f"num = {num}: must be an integer >= 1"):
            planner.warm_up(num)


def test_missing_run(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        controller.load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        controller.load(tmp_path)


def test_no_learned_prior():
    config = tiny.agent("tdmpc2")
    with pytest.raises(ValueError, match="actor = 'prior': this agent learned none"):
        controller.make_fns(config, acting.build(config, OBS, ACTION), actor="prior")
