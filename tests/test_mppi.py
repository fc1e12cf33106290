"""The planner on problems with known answers, and properties of its outputs."""

import functools
import subprocess
import sys

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomcp_jax import config as config_lib
from pomcp_jax import mppi
from pomcp_jax.config import ConfigError, MppiConfig
from pomcp_jax.mppi import ModelFns, PlanState

SMALL = MppiConfig(horizon=2, num_samples=32, num_proposals=4, num_elites=8, iterations=3)


def change(config=SMALL, **changes):
    return config_lib.replace(config, changes)


@functools.cache
def planner(model):
    """``plan`` in ``model`` for many keys and roots at once."""

    def run(params, keys, roots, state, config, explore):
        plan = functools.partial(mppi.plan, model=model, config=config, explore=explore)
        return jax.vmap(plan, in_axes=(None, 0, 0, None))(params, keys, roots, state)

    return jax.jit(run)


def keys(num, seed=0):
    return jax.random.split(jax.random.key(seed), num)


def zero_value(params, key, latent):
    return jnp.zeros(())


# ------------------------------------------------------------ linear-quadratic

A_MATRIX = np.array([[1.0, 0.2], [0.0, 0.9]])
B_MATRIX = np.array([[0.0, 0.1], [0.3, 0.0]])
STATE_COST = np.diag([1.0, 0.3])
ACTION_COST = np.diag([0.4, 0.6])
FINAL_COST = np.diag([3.0, 1.0])
STEPS = 5
LQ = MppiConfig(
    horizon=STEPS, num_samples=256, num_elites=32, iterations=10, temperature=3.0, std_min=0.01
)
ROOTS = np.random.default_rng(0).uniform(-0.45, 0.45, size=(8, 2))


def f32(x):
    return jnp.asarray(x, jnp.float32)


def riccati(cost):
    """One backward step: cost-to-go matrix and gain."""
    gain = np.linalg.solve(ACTION_COST + B_MATRIX.T @ cost @ B_MATRIX, B_MATRIX.T @ cost @ A_MATRIX)
    return STATE_COST + A_MATRIX.T @ cost @ (A_MATRIX - B_MATRIX @ gain), gain


def lq_cost(root, actions, final):
    total, z = 0.0, root
    for a in actions:
        total += z @ STATE_COST @ z + a @ ACTION_COST @ a
        z = A_MATRIX @ z + B_MATRIX @ a
    return total + z @ final @ z


def lq_step(final, z, a):
    reward = -(z @ f32(STATE_COST) @ z + a @ f32(ACTION_COST) @ a)
    return f32(A_MATRIX) @ z + f32(B_MATRIX) @ a, reward, jnp.ones(())


LQ_MODEL = ModelFns(lq_step, lambda final, key, z: -(z @ final @ z))


def lq_plan():
    state = mppi.init(LQ, 2)
    return planner(LQ_MODEL)(f32(FINAL_COST), keys(8), f32(ROOTS), state, LQ, 0.0)


def lq_optimum():
    """Optimal costs of ``ROOTS`` and the largest action on the way, unconstrained."""
    cost, gains = FINAL_COST, []
    for _ in range(STEPS):
        cost, gain = riccati(cost)
        gains.insert(0, gain)
    z, largest = ROOTS.T, 0.0
    for gain in gains:
        a = -gain @ z
        largest = max(largest, np.abs(a).max())
        z = A_MATRIX @ z + B_MATRIX @ a
    return np.einsum("ni,ij,nj->n", ROOTS, cost, ROOTS), largest


def test_lq_optimum_lies_inside_the_action_box():
    """Guards the tests below: otherwise Riccati would not be their optimum."""
    assert lq_optimum()[1] < 0.95


def test_lq_plan_makes_99_percent_of_the_possible_improvement():
    """The final mean, executed in float64, against doing nothing and the optimum."""
    out = lq_plan()
    plans = np.concatenate([out.mode[:, None], out.next_state.mean[:, :-1]], axis=1)
    cost = np.array([lq_cost(z, a, FINAL_COST) for z, a in zip(ROOTS, plans, strict=True)])
    idle = np.array([lq_cost(z, np.zeros((STEPS, 2)), FINAL_COST) for z in ROOTS])
    best, _ = lq_optimum()
    assert np.min((idle - cost) / (idle - best)) >= 0.99


def test_lq_plan_value_is_within_1_percent_of_the_optimum():
    np.testing.assert_allclose(lq_plan().value, -lq_optimum()[0], rtol=0.01)


def test_imagined_rewards_are_those_of_the_executed_plan():
    """:func:`mppi.imagine` plans as :func:`mppi.plan` does and rolls the elites out."""
    args = f32(FINAL_COST), jax.random.key(8), f32(ROOTS[0]), mppi.init(LQ, 2)
    options = {"model": LQ_MODEL, "config": LQ, "explore": 0.0}
    out, imagined = jax.jit(lambda *args: mppi.imagine(*args, **options))(*args)
    plan = jax.jit(lambda *args: mppi.plan(*args, **options))(*args)
    np.testing.assert_allclose(out.action, plan.action, rtol=1e-5)
    np.testing.assert_allclose(out.actions, imagined.actions[imagined.chosen], rtol=1e-5)
    np.testing.assert_array_equal(out.action, out.actions[0])
    follow = jax.vmap(lambda z, a: lq_step(f32(FINAL_COST), z, a)[0])
    before = jnp.broadcast_to(f32(ROOTS[0]), imagined.states[:, 0].shape)
    np.testing.assert_allclose(imagined.states[:, 0], follow(before, imagined.actions[:, 0]), 1e-5)
    following = follow(imagined.states[:, -2], imagined.actions[:, -1])
    np.testing.assert_allclose(imagined.states[:, -1], following, rtol=1e-5)
    for actions, rewards in zip(imagined.actions, imagined.rewards, strict=True):
        expected = -lq_cost(ROOTS[0], np.asarray(actions, np.float64), 0 * FINAL_COST)
        np.testing.assert_allclose(rewards.sum(), expected, rtol=1e-4)
    np.testing.assert_array_equal(imagined.discounts, 1.0)


def test_lq_plan_value_never_beats_the_optimum():
    assert np.all(lq_plan().value <= -lq_optimum()[0] * (1 - 1e-5))


def test_lq_closed_loop_with_warm_starts_is_within_1_percent_of_lqr():
    """With the infinite-horizon cost as tail, following the mode is following the regulator."""
    cost = FINAL_COST
    for _ in range(500):
        cost, _ = riccati(cost)
    config, decisions = change(LQ, horizon=3), 12

    def episode(root, key, config):
        def decide(carry, key):
            z, state = carry
            out = mppi.plan(f32(cost), key, z, state, model=LQ_MODEL, config=config, explore=0.0)
            z, _, _ = lq_step(None, z, out.mode)
            return (z, out.next_state), out.mode

        start = root, mppi.init(config, 2)
        return jax.lax.scan(decide, start, jax.random.split(key, decisions))[1]

    run = jax.jit(jax.vmap(episode, in_axes=(0, 0, None)))
    actions = np.asarray(run(f32(ROOTS), keys(8), config), np.float64)
    paid = np.array([lq_cost(z, a, cost) for z, a in zip(ROOTS, actions, strict=True)])
    np.testing.assert_array_less(paid, 1.01 * np.einsum("ni,ij,nj->n", ROOTS, cost, ROOTS))


# ---------------------------------------------------------------------- bandit

BANDIT = MppiConfig(
    horizon=1, num_samples=64, num_proposals=8, num_elites=8, iterations=4, std_min=0.02
)


def bandit_step(params, latent, action):
    return latent, -jnp.sum(jnp.square(action - 0.3)), jnp.ones(())


def propose_params(params, key, latent):
    return jnp.full((1,), params)


BANDIT_MODEL = ModelFns(bandit_step, zero_value)
BANDIT_WITH_POLICY = BANDIT_MODEL._replace(sample_action=propose_params)


def bandit(start=0.0, explore=0.0, proposal=None, **changes):
    """Plans under 2000 keys; ``proposal`` is what the policy does, None plans without one."""
    model = BANDIT_MODEL if proposal is None else BANDIT_WITH_POLICY
    config, num = change(BANDIT, **changes), 2000
    state = PlanState(jnp.full((1, 1), start))
    return planner(model)(proposal, keys(num), jnp.zeros((num, 1)), state, config, explore)


def test_bandit_mode_is_the_best_action():
    off = np.abs(bandit().mode - 0.3)
    assert np.mean(off < 0.02) > 0.99 and np.max(off) < 0.1


def test_temperature_zero_weighs_all_elites_alike():
    out = bandit(temperature=0.0)
    np.testing.assert_allclose(out.diagnostics.effective_elites, 8.0, rtol=1e-5)


def test_infinite_preference_leaves_one_elite():
    out = bandit(temperature=1e9)
    # Equal returns share; they are rare.
    assert np.mean(np.abs(out.diagnostics.effective_elites - 1.0) < 0.01) > 0.9


def test_weights_relative_to_the_spread_do_not_depend_on_the_unit_of_returns():
    """Of rewards in units of 1e-6 to 1e6, while absolute weights become equal or one-hot."""
    population = mppi._start(jnp.zeros((1, 1)), BANDIT)
    config = change(BANDIT, temperature=2.0, temperature_scale="std", num_elites=8)
    returns = jnp.asarray(np.random.default_rng(1).normal(size=32), jnp.float32)
    candidates = jnp.linspace(-1.0, 1.0, 32)[:, None, None]
    fitted = [mppi._fit(population, candidates, unit * returns, config) for unit in (1e-6, 1, 1e6)]
    elites = np.sort(np.asarray(returns, np.float64))[:-9:-1]
    logits = 2.0 * (elites - elites[0]) / np.std(elites)
    for one in fitted:
        np.testing.assert_allclose(one.weights, np.exp(logits) / np.exp(logits).sum(), rtol=1e-4)
    # Equal returns share, and returns that span float32 stay finite.
    same = mppi._fit(population, candidates, jnp.ones(32), config)
    np.testing.assert_allclose(same.weights, 1 / 8, rtol=1e-5)
    former = mppi._fit(population, candidates, returns, change(config, temperature_scale="spread"))
    np.testing.assert_array_equal(former.weights, fitted[1].weights)
    huge = mppi._fit(population, candidates, 1e38 * jnp.sign(returns), config)
    assert np.all(np.isfinite(huge.mean)) and np.all(np.isfinite(huge.weights))


def test_only_elite_is_executed_without_exploration():
    """With one elite its return is the plan's value, so the action must earn just that."""
    out = bandit(num_elites=1, record="best_elite")
    np.testing.assert_allclose(-jnp.square(out.action[:, 0] - 0.3), out.value, atol=1e-6)


def test_argmax_without_exploration_executes_the_best_elite():
    out = bandit(select="argmax", record="best_elite")
    np.testing.assert_array_equal(out.action, out.prior.mean)


def test_sampled_elite_record_is_the_executed_elite():
    out = bandit(select="sample", record="sampled_elite")
    np.testing.assert_array_equal(out.action, out.prior.mean)


def test_elites_are_chosen_by_their_weights():
    """All weights equal: the best of eight is executed one time in eight."""
    out = bandit(temperature=0.0, record="best_elite", std_min=0.2)
    share = np.mean(out.action == out.prior.mean)
    assert abs(share - 1 / 8) < 0.03


def test_exploration_noise_has_the_final_std():
    settings = dict(select="argmax", record="mean")
    noise = bandit(explore=1.0, **settings).action - bandit(explore=0.0, **settings).action
    spread = np.std(noise / bandit(**settings).prior.std)
    np.testing.assert_allclose(spread, 1.0, rtol=0.05)


def test_exploration_changes_every_action():
    settings = dict(select="argmax", record="mean")
    assert np.all(bandit(explore=1.0, **settings).action != bandit(**settings).action)


def test_exploration_does_not_change_the_plan():
    jax.tree.map(
        np.testing.assert_array_equal,
        bandit(explore=1.0)._replace(action=None),
        bandit(explore=0.0)._replace(action=None),
    )


@pytest.mark.parametrize("record,select", [("mean", "argmax"), ("sampled_elite", "sample")])
@pytest.mark.parametrize("low,high", [(0.0001, 0.0002), (0.5, 0.6)])
def test_recorded_std_is_floored_and_capped(record, select, low, high):
    std = np.asarray(bandit(record=record, select=select, std_min=low, std_max=high).prior.std)
    eps = 1e-6
    assert np.all((std >= low * (1 - eps)) & (std <= high * (1 + eps)))


def test_best_elite_std_is_the_spread_about_the_best_elite():
    """One elite has no spread: only the constant that keeps the std positive is left."""
    std = bandit(record="best_elite", num_elites=1).prior.std
    np.testing.assert_allclose(std, 1e-3, rtol=1e-5)


def test_mean_record_is_the_mode():
    out = bandit(select="argmax", record="mean")
    np.testing.assert_array_equal(out.prior.mean, out.mode)


def test_proposals_of_a_good_policy_become_the_elites():
    share = bandit(start=-0.8, std_max=0.02, proposal=0.3).diagnostics.proposal_share
    np.testing.assert_array_equal(share, 1.0)


def test_proposals_of_a_bad_policy_are_left_out():
    np.testing.assert_array_equal(bandit(proposal=-1.0).diagnostics.proposal_share, 0.0)


def test_proposals_help_where_sampling_cannot_reach():
    far = bandit(start=-0.8, std_max=0.02).mode
    near = bandit(start=-0.8, std_max=0.02, proposal=0.3).mode
    assert np.max(np.abs(near - 0.3)) < 0.001 < 0.5 < np.min(np.abs(far - 0.3))


def test_no_policy_means_no_proposals():
    np.testing.assert_array_equal(bandit().diagnostics.proposal_share, 0.0)


# ------------------------------------------------------- transformations of JAX


def test_vmap_equals_a_loop():
    one = jax.jit(functools.partial(mppi.plan, model=LQ_MODEL))
    each = [
        one(f32(FINAL_COST), key, f32(root), mppi.init(LQ, 2), config=LQ, explore=0.0)
        for key, root in zip(keys(8), ROOTS, strict=True)
    ]
    # Not the executed elite: rounding may swap two that are nearly equal.
    for name in ("mode", "value"):
        stacked = jnp.stack([getattr(out, name) for out in each])
        np.testing.assert_allclose(getattr(lq_plan(), name), stacked, atol=2e-3)


def test_jit_equals_no_jit():
    state = PlanState(jnp.zeros((1, 1)))
    plan = functools.partial(mppi.plan, model=BANDIT_WITH_POLICY)
    args = 0.2, jax.random.key(3), jnp.zeros(1), state
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-5),
        jax.jit(plan)(*args, config=BANDIT),
        plan(*args, config=BANDIT),
    )


@jax.jit
@chex.assert_max_traces(n=1)
def counted(config, explore):
    """An action, traced for the first configuration only."""
    state, key = mppi.init(config, 1), jax.random.key(0)
    return mppi.plan(
        None, key, jnp.zeros(1), state, model=BANDIT_MODEL, config=config, explore=explore
    ).action


@pytest.mark.parametrize(
    "changes,explore",
    [
        ({"temperature": 3.0}, 1.0),
        ({"std_min": 0.3}, 1.0),
        ({"std_max": 0.7}, 1.0),
        ({}, 0.5),
    ],
)
def test_changing_a_number_does_not_recompile(changes, explore):
    counted(BANDIT, 1.0)
    counted(change(BANDIT, **changes), explore)


def test_changing_a_size_recompiles():
    """Guards the test above: traces are counted."""
    counted(BANDIT, 1.0)
    with pytest.raises(AssertionError, match="traced > 1 times"):
        counted(change(BANDIT, num_samples=32), 1.0)


# -------------------------------------------------------------- broken models


def broken_step(params, latent, action):
    reward = jnp.where(action[0] > params["above"], params["reward"], -jnp.abs(action[0]))
    return latent + params["latent"], reward, params["discount"]


BROKEN = ModelFns(
    broken_step,
    lambda params, key, latent: params["value"] + latent[0],
    lambda params, key, latent: jnp.full((1,), params["proposal"]),
)
NUMBERS = st.sampled_from([float("nan"), float("inf"), -float("inf"), 0.0, -1e6, 1e6])


def plan_broken(record="sampled_elite", **params):
    defaults = dict(above=0.0, reward=0.0, latent=0.0, discount=1.0, value=0.0, proposal=0.5)
    params = {k: jnp.asarray(v, jnp.float32) for k, v in (defaults | params).items()}
    config = change(record=record)
    state = mppi.init(config, 1)
    return planner(BROKEN)(params, keys(16), jnp.zeros((16, 1)), state, config, 1.0)


def assert_finite(out):
    for leaf in jax.tree.leaves(out):
        assert np.all(np.isfinite(leaf)), out


@hypothesis.given(
    params=st.fixed_dictionaries(
        dict(
            above=st.sampled_from([-2.0, 0.0, 0.9, 2.0]),
            reward=NUMBERS,
            latent=NUMBERS,
            discount=NUMBERS,
            value=NUMBERS,
            proposal=NUMBERS,
        )
    ),
    record=st.sampled_from(["sampled_elite", "mean", "best_elite"]),
)
@hypothesis.example(params=dict(above=-2.0, reward=float("nan")), record="mean")
@hypothesis.example(params=dict(above=-2.0, reward=-float("inf")), record="best_elite")
@hypothesis.example(params=dict(above=-2.0, reward=float("inf")), record="sampled_elite")
def test_outputs_are_finite_and_in_the_box_whatever_the_model_returns(params, record):
    out = plan_broken(record=record, **params)
    assert_finite(out)
    for x in (out.action, out.mode, out.prior.mean):
        assert np.all(np.abs(x) <= 1.0 + 1e-6)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_outputs_are_finite_when_returns_span_the_range_of_float32(temperature):
    model = ModelFns(lambda p, z, a: (z, 3e38 * jnp.sign(a[0]), jnp.ones(())), zero_value)
    config = change(BANDIT, num_samples=16, temperature=temperature)
    state = mppi.init(config, 1)
    plan = functools.partial(mppi.plan, model=model)
    assert_finite(plan(None, jax.random.key(0), jnp.zeros(1), state, config=config))


def test_infinitely_bad_actions_are_avoided():
    out = plan_broken(reward=-float("inf"), above=0.0, proposal=0.5)
    assert np.all(out.mode < 0.01)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_every_nonfinite_return_is_counted(number):
    """Each iteration scores its samples, proposals included."""
    out = plan_broken(reward=number, above=-2.0)
    np.testing.assert_array_equal(out.diagnostics.nonfinite, 3 * 32)


@pytest.mark.parametrize("number", [float("nan"), -float("inf")])
def test_nonfinite_warm_start_is_survived(number):
    assert_finite(bandit(start=number))


# ----------------------------------------------- sequences, warm starts, latents

GOALS = np.array([0.5, -0.4, 0.1, 0.7])


def clock_step(params, latent, action):
    """A dict latent that knows the time; the best action at time t is GOALS[t]."""
    goal = f32(GOALS)[latent["time"]]
    reward = -jnp.square(action[0] - goal) - latent["more"][1, 0]
    reward = jnp.where(latent["time"] == 0, reward, params["later"] * reward)
    return latent | {"time": latent["time"] + 1}, reward, params["discount"]


CLOCK = ModelFns(
    clock_step,
    lambda params, key, latent: params["later"] * latent["more"][0, 0],
    lambda params, key, latent: jax.random.uniform(key, (1,), minval=-1.0),
)
CLOCKED = MppiConfig(
    horizon=4,
    num_samples=256,
    num_proposals=16,
    num_elites=16,
    iterations=8,
    std_min=0.01,
    select="argmax",
)


def plan_clock(num=4, state=None, later=1.0, discount=1.0, config=CLOCKED):
    params = {"later": f32(later), "discount": f32(discount)}
    root = {"time": jnp.zeros(num, jnp.int32), "more": jnp.ones((num, 2, 1))}
    state = mppi.init(config, 1) if state is None else state
    return planner(CLOCK)(params, keys(num), root, state, config, 0.0)


def test_latent_may_be_a_dict():
    np.testing.assert_allclose(plan_clock().mode, GOALS[0], atol=0.05)


def test_next_state_is_the_rest_of_the_plan():
    rest = np.append(GOALS[1:], 0.0)[None, :, None]
    np.testing.assert_allclose(plan_clock().next_state.mean, np.tile(rest, (4, 1, 1)), atol=0.08)


def frozen(state):
    """Planning with no spread and no policy leaves the warm start as it is."""
    config = change(CLOCKED, std_min=0.0, std_max=0.0, num_proposals=0)
    return plan_clock(state=state, config=config)


def test_warm_start_is_where_sampling_begins():
    state = PlanState(f32([[0.25], [-0.5], [0.75], [-1.0]]))
    np.testing.assert_allclose(frozen(state).mode, 0.25, atol=1e-6)


def test_next_state_is_the_mean_shifted_by_one():
    state = PlanState(f32([[0.25], [-0.5], [0.75], [-1.0]]))
    expected = np.tile([[-0.5], [0.75], [-1.0], [0.0]], (4, 1, 1))
    np.testing.assert_allclose(frozen(state).next_state.mean, expected, atol=1e-6)


def test_initial_warm_start_is_zero():
    np.testing.assert_array_equal(mppi.init(SMALL, 3).mean, np.zeros((2, 3)))


@pytest.mark.parametrize("horizon", [1, 3])
def test_warm_start_of_another_horizon_is_refused(horizon):
    state = PlanState(jnp.zeros((horizon, 1)))
    with pytest.raises(ConfigError, match=rf"^state.mean has shape \[{horizon}, 1\].* = \[2, 1\]"):
        mppi.plan(None, jax.random.key(0), jnp.zeros(1), state, model=BANDIT_MODEL, config=SMALL)


def test_rewards_after_a_zero_discount_do_not_matter():
    jax.tree.map(
        np.testing.assert_array_equal,
        plan_clock(later=0.0, discount=0.0),
        plan_clock(later=1e3, discount=0.0),
    )


def test_value_is_discounted_by_the_model():
    """Every reward is about -1 (the goals are met) and so is the tail, at D_4."""
    out = plan_clock(later=1.0, discount=0.5)
    expected = -(1 + 0.5 + 0.25 + 0.125) + 0.0625
    np.testing.assert_allclose(out.value, expected, atol=0.02)


def test_proposals_and_samples_are_scored_alike():
    """Two ways of adding up the same return."""
    params = {"later": f32(0.7), "discount": f32(0.6)}
    root = {"time": jnp.zeros((), jnp.int32), "more": jnp.ones((2, 1))}
    propose = functools.partial(mppi.propose, model=CLOCK, config=CLOCKED)
    actions, returns = jax.jit(propose)(params, jax.random.key(0), root)
    again = jax.jit(functools.partial(mppi.score, model=CLOCK))(params, keys(16), root, actions)
    np.testing.assert_allclose(returns, again, rtol=1e-5)


# --------------------------------------------------------------------- refusals

REFUSED = {
    "horizon": {"horizon": 0},
    "iterations": {"iterations": 0},
    "num_samples": {"num_samples": 0},
    "num_proposals": {"num_proposals": 32},
    "num_elites": {"num_elites": 33},
    "temperature": {"temperature": -0.1},
    "std_min": {"std_min": -0.1},
    "std_max": {"std_max": 0.01},
    "select": {"select": "x"},
    "record": {"record": "x"},
}


@pytest.mark.parametrize("field", REFUSED)
def test_validate_names_the_bad_field_in_one_line(field):
    with pytest.raises(ConfigError, match=rf"\Aa\.b\.{field} = [^\n]*: must be [^\n]*\Z"):
        mppi.validate(change(**REFUSED[field]), "a.b")


@pytest.mark.parametrize("field", ["num_elites", "num_proposals"])
def test_plan_refuses_sizes_that_cannot_work(field):
    config = change(**REFUSED[field])
    state = mppi.init(config, 1)
    with pytest.raises(ConfigError):
        mppi.plan(
            None, jax.random.key(0), jnp.zeros(1), state, model=BANDIT_WITH_POLICY, config=config
        )


def test_planner_comes_without_the_rest():
    """Importing it loads only the modules it needs and no heavy library."""
    code = (
        "import sys, pomcp_jax.mppi\n"
        "heavy = {'flax', 'optax', 'brax', 'mujoco', 'dm_control', 'orbax'} & set(sys.modules)\n"
        "print(sorted(heavy | {m for m in sys.modules if m.split('.')[0] == 'pomcp_jax'}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rooms = (
        "attribute_docs config errors fields mppi nearest planner_checks planner_model"
        " planner_sequences types values"
    )
    assert out.stdout.strip() == str(["pomcp_jax", *(f"pomcp_jax.{x}" for x in rooms.split())])
