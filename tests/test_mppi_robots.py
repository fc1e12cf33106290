"""The planner's options for robots: bounds, correlated noise, knots, cost of changes, receding."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
import tiny

from pomcp_jax import acting, agent, exporting, fields, mppi, seed_axis, train, validation
from pomcp_jax import config as config_lib
from pomcp_jax import planner_sequences as sequences
from pomcp_jax.config import ConfigError, MppiConfig
from pomcp_jax.mppi import ModelFns, PlanState
from pomcp_jax.running import functions

# --------------------------------------------------- against the float64 numpy reference

H, N, P, E, J, A = 7, 24, 4, 6, 3, 2
PARAMS = np.random.default_rng(0).normal(size=(3, 3, 3))


def toy_step(xp, p, z, a):
    new = xp.tanh(p[0] @ z + p[1][:, :A] @ a)
    return new, 3.0 * xp.cos(2.0 * p[2][0] @ new) - 0.5 * a @ a, 0.9 - 0.2 * new[1] * new[1]


def toy_value(xp, p, z):
    return 5.0 * xp.sin(p[2][1] @ z)


MODEL = ModelFns(
    step=lambda p, z, a: toy_step(jnp, p, z, a),
    value=lambda p, key, z: toy_value(jnp, p, z),
    sample_action=lambda p, key, z: 2.0 * jax.random.normal(key, (A,), z.dtype),
)
BASE = MppiConfig(
    horizon=H, num_samples=N, num_proposals=P, num_elites=E, iterations=J, temperature=1.5,
    temperature_scale="std",
)  # fmt: skip
ROBOTS = {
    "every step": dict(
        low=np.array([-2.0, 0.5]), high=np.array([1.0, 0.9]), noise_correlation=0.7,
        std_min=np.array([0.05, 0.2]), std_init=np.array([0.0, 0.6]), std_max=1.5,
        action_rate_cost=np.array([0.3, 2.0]),
    ),
    "lines": dict(knots=4, noise_correlation=np.array([0.9, 0.2]), action_rate_cost=0.5),
    "curves": dict(knots=3, interpolation="cubic", high=np.array([0.6, 2.0]), std_init=0.8),
}  # fmt: skip


@pytest.mark.parametrize("name", ROBOTS)
def test_plans_are_those_of_the_reference(name):
    settings = ROBOTS[name]
    config = dataclasses.replace(BASE, **settings)
    previous = np.array([0.4, 0.7]) if name == "every step" else None
    rng, key = np.random.default_rng(3), jax.random.key(5)
    mean, root = rng.normal(size=(H, A)), rng.normal(size=3)
    with jax.enable_x64(True):
        plan = jax.jit(functools.partial(mppi.plan, model=MODEL, explore=1.5))
        state = PlanState(jnp.asarray(mean), None if previous is None else jnp.asarray(previous))
        out = plan(jnp.asarray(PARAMS), key, jnp.asarray(root), state, config=config)
        key_propose, key_noise, _, key_select, key_explore = jax.random.split(key, 5)
        # Proposals do not depend on the settings but for the box.
        box = dataclasses.replace(BASE, low=-1e3, high=1e3)
        policy = functools.partial(mppi.propose, model=MODEL, config=box)
        proposals, _ = jax.jit(policy)(jnp.asarray(PARAMS), key_propose, jnp.asarray(root))
        shape = (N - P, config.knots or H, A)
        noise = [mppi.sample_noise(key_noise, i, shape) for i in range(J)]
        draws = jax.random.gumbel(key_select, (E,)), jax.random.normal(key_explore, (A,))
    names = {
        "noise_correlation": "rho", "action_rate_cost": "rate_cost", "temperature_scale": "scale"
    }  # fmt: skip
    values = {name: getattr(config, name) for name in sequences.NUMBERS}
    values |= {name: getattr(config, name) for name in ("knots", "interpolation", "num_elites")}
    values |= {"temperature_scale": "std"}
    expected = ref.mppi(
        functools.partial(toy_step, np, PARAMS), functools.partial(toy_value, np, PARAMS), mean,
        proposals, noise, *draws, root, explore=1.5, previous=previous,
        **{names.get(name, name): value for name, value in values.items()},
    )  # fmt: skip
    actual = {
        "action": out.action, "actions": out.actions, "mode": out.mode, "value": out.value,
        "prior_mean": out.prior.mean, "prior_std": out.prior.std, "next_mean": out.next_state.mean,
    }  # fmt: skip
    for key, value in expected.items():
        np.testing.assert_allclose(actual[key], value, rtol=0, atol=1e-9, err_msg=key)
    if "action_rate_cost" in settings:
        np.testing.assert_array_equal(out.next_state.action, out.action)
    else:
        assert out.next_state.action is None


# ------------------------------------------------------------------ noise and knots


def test_correlated_noise_is_stationary_with_the_stated_correlation():
    """Unit variance at every step, ``rho^|t - s|`` between steps, knots included."""
    white = jax.random.normal(jax.random.key(0), (100_000, 4, 2))
    config = MppiConfig(horizon=6, knots=4, noise_correlation=np.array([0.8, 0.0], np.float32))
    noise = jax.jit(sequences.correlated)(white, config)
    steps = sequences.knot_steps(config)
    assert steps.tolist() == [0, 2, 3, 5]
    for i, rho in enumerate((0.8, 0.0)):
        found = np.cov(noise[..., i].T)
        expected = np.float64(rho) ** np.abs(steps[:, None] - steps[None])
        np.testing.assert_allclose(found, expected, atol=0.02)
    np.testing.assert_array_equal(noise[..., 1], white[..., 1])
    assert sequences.correlated(white, MppiConfig(horizon=4)) is white


@pytest.mark.parametrize("kind", ["linear", "cubic"])
def test_interpolation_meets_its_knots_and_keeps_lines(kind):
    for horizon, knots in ((1, 1), (5, 1), (5, 5), (9, 2), (9, 4), (16, 7), (4, 3)):
        config = MppiConfig(horizon=horizon, knots=knots, interpolation=kind)
        matrix, steps = sequences.interpolation(config), sequences.knot_steps(config)
        assert matrix.shape == (horizon, knots) and len(set(steps)) == knots
        assert steps[0] == 0 and (knots == 1 or steps[-1] == horizon - 1)
        np.testing.assert_allclose(matrix[steps], np.eye(knots), atol=1e-12)
        np.testing.assert_allclose(matrix.sum(axis=1), 1.0)
        if knots > 1:
            np.testing.assert_allclose(matrix @ steps, np.arange(horizon), atol=1e-12)


def test_cubic_knots_follow_a_smooth_curve_better_than_lines():
    errors = []
    for kind in ("linear", "cubic"):
        config = MppiConfig(horizon=31, knots=7, interpolation=kind)
        wave = np.sin(np.arange(31) / 5.0)
        errors.append(
            np.abs(sequences.interpolation(config) @ wave[sequences.knot_steps(config)] - wave)
        )
    assert errors[1].max() < 0.5 * errors[0].max()


# ------------------------------------------------------ known optimum with a cost of changes

SPEED, EFFORT, RATE = 0.3, 0.1, 2.0


def cart_step(final, z, a):
    """A cart ``[position, speed]``; the reward is that of a quadratic regulator."""
    reward = -(jnp.sum(jnp.square(z)) + EFFORT * jnp.sum(jnp.square(a)))
    return jnp.stack([z[0] + 0.3 * z[1], z[1] + SPEED * a[0]]), reward, jnp.ones(())


def cart_optimum(root, previous, steps):
    """Least cost and first action, by Riccati's recursion over ``[z, last action]``."""
    a = np.array([[1, 0.3, 0], [0, 1, 0], [0, 0, 0.0]])
    b = np.array([[0], [SPEED], [1.0]])
    state, cross = np.diag([1.0, 1.0, RATE]), np.array([[0], [0], [-RATE]])
    cost = np.diag([5.0, 5.0, 0.0])
    for _ in range(steps):
        gain = np.linalg.solve(EFFORT + RATE + b.T @ cost @ b, b.T @ cost @ a + cross.T)
        cost = state + a.T @ cost @ a - (a.T @ cost @ b + cross) @ gain
    x = np.append(root, previous)
    return x @ cost @ x, -(gain @ x)[0]


@pytest.mark.parametrize("knots", [0, 8])
def test_plan_with_a_cost_of_changes_reaches_the_regulators_optimum(knots):
    """With a knot at every step the search is the same, and so is what it finds."""
    root, previous = np.array([0.6, -0.2]), 0.3
    config = MppiConfig(
        horizon=8, num_samples=512, num_elites=48, iterations=12, temperature=3.0, std_min=0.005,
        std_max=1.0, action_rate_cost=RATE, knots=knots,
    )  # fmt: skip
    model = ModelFns(cart_step, lambda final, key, z: -5.0 * jnp.sum(jnp.square(z)))
    plan = jax.jit(functools.partial(mppi.plan, model=model))
    state = PlanState(jnp.zeros((8, 1)), jnp.full((1,), previous))
    out = plan(None, jax.random.key(0), jnp.float32(root), state, config=config)
    cost, action = cart_optimum(root, previous, 8)
    np.testing.assert_allclose(out.value, -cost, rtol=0.003)
    assert out.value <= -cost * (1 - 1e-5)
    np.testing.assert_allclose(out.mode[0], action, atol=0.03)
    # A free first change pays less; the optimum then starts from the best action.
    free = plan(None, jax.random.key(0), jnp.float32(root), PlanState(state.mean), config=config)
    assert free.value > out.value + 0.02


# ------------------------------------------------------------------------- receding


def aimless(params, z, a):
    return z, jnp.zeros(()), jnp.ones(())


IDLE = ModelFns(aimless, lambda params, key, z: jnp.zeros(()))


def frozen(mean, **settings):
    """A plan without any spread is its warm start."""
    config = MppiConfig(
        horizon=len(mean), num_samples=4, num_elites=2, iterations=1, std_min=0.0, std_max=0.0,
        **settings,
    )  # fmt: skip
    state = PlanState(jnp.asarray(mean, jnp.float32)[:, None], jnp.zeros(1))
    return mppi.plan(None, jax.random.key(0), jnp.zeros(1), state, model=IDLE, config=config)


def test_knots_move_in_time_with_the_plan():
    """The line 0, 0.1, ... one step later, its end continued instead of 0."""
    line = 0.1 * np.arange(7)
    out = frozen(line, knots=3)
    np.testing.assert_allclose(out.actions[:, 0], line, atol=1e-6)
    np.testing.assert_allclose(out.next_state.mean[:, 0], [*line[1:], line[-1]], atol=1e-6)
    bent = np.array([0.0, 0.5, 0.1, 0.3, 0.2, 0.9, 0.6])  # between knots only the knots count
    np.testing.assert_allclose(frozen(bent, knots=3).actions[:, 0], line, atol=1e-6)


@pytest.mark.parametrize("steps", [0, 7, -1, 1.5, True])
def test_shift_by_no_number_of_steps_is_refused(steps):
    with pytest.raises(ConfigError, match=r"^steps = .*: must be an integer from 1 to H = 6"):
        mppi.shift(frozen(0.1 * np.arange(6)), steps)


def test_shift_of_several_plans_is_refused():
    """Their first axis would be taken for time: robots would get the plans of others."""
    many = jax.tree.map(lambda x: jnp.stack([x, x]), frozen(0.1 * np.arange(6)))
    with pytest.raises(ConfigError, match=r"must be \[H, A\], of one plan; jax.vmap\(mppi.shift\)"):
        mppi.shift(many, 2)
    assert jax.vmap(lambda out: mppi.shift(out, 2))(many).mean.shape == (2, 6, 1)


@pytest.mark.parametrize("knots,end", [(0, 0.0), (3, 0.5)])
def test_shift_after_several_executed_actions(knots, end):
    line = 0.1 * np.arange(6)
    out = frozen(line, knots=knots, action_rate_cost=0.1)
    out = out._replace(action=out.action + 0.01)
    out = out._replace(next_state=out.next_state._replace(action=out.action))
    jax.tree.map(np.testing.assert_array_equal, mppi.shift(out, 1), out.next_state)
    shifted = jax.vmap(lambda steps: mppi.shift(out, steps))(jnp.arange(1, 7))
    for k in range(1, 7):
        expected = [*line[k:], *[end] * k]
        np.testing.assert_allclose(shifted.mean[k - 1, :, 0], expected, atol=1e-6)
        last = line[k - 1] if k > 1 else 0.01
        np.testing.assert_allclose(shifted.action[k - 1, 0], last, atol=1e-6)
    assert mppi.shift(frozen(line), 2).action is None


def test_plans_start_and_end_in_the_middle_of_the_bounds():
    config = MppiConfig(horizon=3, low=np.array([0.0, -4.0]), high=np.array([2.0, 0.0]))
    state = mppi.init(config, 2)
    np.testing.assert_array_equal(state.mean, [[1.0, -2.0]] * 3)
    assert state.action is None
    state = mppi.init(dataclasses.replace(config, action_rate_cost=0.1), 2)
    np.testing.assert_array_equal(state.action, [1.0, -2.0])
    plan = functools.partial(mppi.plan, model=IDLE, config=config)
    out = plan(None, jax.random.key(0), jnp.zeros(1), mppi.init(config, 2))
    np.testing.assert_array_equal(out.next_state.mean[-1], [1.0, -2.0])


# ------------------------------------------------------------- traced and static, off and on


def push(params, x, a):
    return x + 0.1 * a, -jnp.sum(jnp.square(x - 5.0)) - 0.01 * jnp.sum(a * a), jnp.ones(())


PUSH = ModelFns(push, lambda params, key, x: jnp.zeros(()))


def test_bounds_and_numbers_of_many_robots_are_one_trace():
    """Every robot saturates at its own bounds."""
    traces = []

    def one(key, numbers):
        traces.append(0)
        config = MppiConfig(horizon=3, num_samples=64, num_elites=8, iterations=4, **numbers)
        state = mppi.init(config, 2)
        return mppi.plan(None, key, jnp.zeros(2), state, model=PUSH, config=config)

    many = jax.jit(jax.vmap(one))
    rng, keys = np.random.default_rng(0), jax.random.split(jax.random.key(0), 5)
    for _ in range(2):
        high = rng.uniform(0.5, 3.0, size=(5, 2)).astype(np.float32)
        numbers = {
            "low": high - rng.uniform(1.0, 2.0, size=(5, 2)).astype(np.float32), "high": high,
            "std_max": rng.uniform(0.5, 2.0, size=(5, 2)).astype(np.float32),
            "temperature": np.linspace(1.0, 9.0, 5, dtype=np.float32),
            "noise_correlation": np.linspace(0.0, 0.9, 5, dtype=np.float32),
            "action_rate_cost": np.zeros(5, np.float32),
        }  # fmt: skip
        out = many(keys, numbers)
        np.testing.assert_allclose(out.action, high, atol=0.1)
        assert np.all(out.actions <= high[:, None]) and np.all(out.action <= high)
        assert np.all(out.mode <= high)
    assert len(traces) == 1


@pytest.mark.parametrize("name", ["std_max", "temperature", "high", "explore"])
def test_whole_numbers_beyond_int32_are_numbers(name):
    plans = []
    for number in (3_000_000_000, 3e9):
        explore = {"explore": number} if name == "explore" else {}
        changes = {} if explore else {name: number}
        config = MppiConfig(horizon=2, num_samples=16, num_elites=4, iterations=2, **changes)
        plan = functools.partial(mppi.plan, model=PUSH, config=config, **explore)
        plans.append(plan(None, jax.random.key(0), jnp.zeros(2), mppi.init(config, 2)))
    jax.tree.map(np.testing.assert_array_equal, *plans)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(plans))


def test_options_that_are_on_at_their_default_change_nothing():
    """Arrays of the defaults are traced: the same plan by another program, up to rounding."""
    config = MppiConfig(horizon=4, num_samples=64, num_elites=8, iterations=3)
    specs = fields.specs(MppiConfig)
    arrays = {name: jnp.asarray(spec.default) for name, spec in specs.items() if spec.optional}
    assert len(arrays) == 5
    plan = jax.jit(functools.partial(mppi.plan, model=PUSH))
    args = None, jax.random.key(1), jnp.zeros(2), PlanState(jnp.zeros((4, 2)))
    on = dataclasses.replace(config, **arrays)
    assert len(jax.tree.leaves(on)) == 8
    off, same = plan(*args, config=config), plan(*args, config=on)
    np.testing.assert_array_equal(same.next_state.action, same.action)
    same = same._replace(next_state=PlanState(same.next_state.mean))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), off, same)
    # Other numbers do not compile again.
    changed = dataclasses.replace(on, high=jnp.full((), 0.5), noise_correlation=jnp.full((), 0.5))
    assert np.max(plan(*args, config=changed).actions) <= 0.5 and plan._cache_size() == 2


# ----------------------------------------------------------------------------- training


ON = {"noise_correlation": 0.5, "knots": 2, "action_rate_cost": 0.1, "std_init": 1.0}


def test_a_trained_agent_plans_with_the_options_and_is_exported():
    """Acting forgets the last action where an episode begins; re-planning does not know it."""
    config = tiny.agent(**{f"mppi__{name}": value for name, value in ON.items()})
    validation.validate_agent(config)
    spec = acting.build(config, 3, 2)
    start = acting.init_plan(config, spec, 2)
    assert start.mean.shape == (2, 3, 2) and start.action.shape == (2, 2)

    params = agent.init(jax.random.key(0), config, spec).params
    act = jax.jit(functools.partial(acting.act, spec=spec, config=config, explore=0.0))
    args = params, jax.random.key(1), jnp.ones((2, 3))
    ran = PlanState(start.mean + 0.5, start.action + 0.5)
    fresh, later = act(*args, start, jnp.ones(2, bool)), act(*args, ran, jnp.array([True, False]))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[0], y[0]), fresh, later)
    assert np.any(fresh.value[1] != later.value[1])
    np.testing.assert_array_equal(later.next_state.action, later.action)

    exported = exporting.export(params, config, spec, num=2)
    assert [x.shape for x in exported.in_avals] == [(2,), (2, 3), (2, 3, 2), (2, 2), (2,)]


def test_a_sweep_may_contain_the_value_that_is_off():
    """Traced only: the last action is carried for every row, that without a cost too."""
    rows = [
        tiny.run(agent_changes={"mppi.action_rate_cost": cost}, train__num_seeds=2)
        for cost in (0.0, 0.1)
    ]
    config = seed_axis.stack(rows)
    program = train.build(config, functions.environment(config))
    state = jax.eval_shape(program.init, config)
    assert state.plan.action.shape == (2, config.env.num_envs, program.spec.action_size)
    after, _ = program.chunk.eval_shape(state, config, program.training[0])
    assert jax.tree.structure(after.plan) == jax.tree.structure(state.plan)


# ----------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"low": 1.0}, "mppi.high = 1: must be > mppi.low = 1"),
        ({"low": np.zeros(2), "high": np.array([1.0, 0.0])},
         "mppi.high = [1, 0]: must be > mppi.low = [0, 0]"),
        ({"low": np.zeros(3)}, "mppi.low is float64[3]: must be a finite number, or [A] = [2]"),
        ({"low": [0.0, 0.0]}, "mppi.low is a list: must be a finite number, or [A] = [2]"),
        ({"high": np.inf}, "mppi.high = inf: must be a finite number"),
        ({"std_max": np.array([1.0, 0.01])},
         "mppi.std_max = [1, 0.01]: must be a finite number >= mppi.std_min = 0.05"),
        ({"std_init": -1.0}, "mppi.std_init = -1: must be a finite number >= 0"),
        ({"noise_correlation": 1.0}, "mppi.noise_correlation = 1: must be in [0, 1)"),
        ({"action_rate_cost": -1.0}, "mppi.action_rate_cost = -1: must be a finite number >= 0"),
        ({"knots": 4}, "mppi.knots = 4: must be in [0, mppi.horizon = 3], for instance 1"),
        ({"temperature": np.ones(2)}, "mppi.temperature is float64[2]: must be a finite "),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_named(settings, message):
    config = dataclasses.replace(MppiConfig(horizon=3, num_samples=8, num_elites=4), **settings)
    state = PlanState(jnp.zeros((3, 2)))
    with pytest.raises(ConfigError) as caught:
        mppi.plan(None, jax.random.key(0), jnp.zeros(2), state, model=PUSH, config=config)
    assert re.fullmatch(rf"{re.escape(message)}[^\n]*", str(caught.value)), caught.value


def test_a_last_action_of_another_shape_is_refused():
    config = MppiConfig(horizon=3, num_samples=8, num_elites=4)
    state = PlanState(jnp.zeros((3, 2)), jnp.zeros(3))
    with pytest.raises(ConfigError, match=r"^state.action is float32\[3\]: must be None, or .* \["):
        mppi.plan(None, jax.random.key(0), jnp.zeros(2), state, model=PUSH, config=config)


@pytest.mark.parametrize("name,value", [("low", -0.5), ("high", 2.0), ("low", np.zeros(2))])
def test_training_has_the_bounds_of_its_policy(name, value):
    config = config_lib.replace(tiny.agent(), {f"mppi.{name}": value})
    with pytest.raises(ConfigError, match=rf"^agent.mppi.{name} .*: must be "):
        validation.validate_agent(config)
