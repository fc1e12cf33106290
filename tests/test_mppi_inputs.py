"""The planner with models, roots and numbers as users write them, including mistakes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from pomcp_jax import config as config_lib
from pomcp_jax import mppi
from pomcp_jax.config import ConfigError, MppiConfig
from pomcp_jax.mppi import ModelFns, PlanState
from pomcp_jax.planner_model import SplitStep

CONFIG = MppiConfig(horizon=3, num_samples=64, num_proposals=4, num_elites=8, iterations=3)
NAN, INF = float("nan"), float("inf")


def zero(params, key, latent):
    return jnp.zeros(())


def still(params, key, latent):
    return jnp.zeros(1)


def run(model, root=0.0, state=None, params=None, jit=True, explore=0.0, **changes):
    config = config_lib.replace(CONFIG, changes)
    plan = functools.partial(mppi.plan, params, model=model, config=config, explore=explore)
    if state is None:
        state = mppi.init(config, 1)
    return (jax.jit(plan) if jit else plan)(jax.random.key(0), root, state)


def finite(out):
    return all(np.all(np.isfinite(np.asarray(x, np.float64))) for x in jax.tree.leaves(out))


# --------------------------------------------------------- candidates that are not finite


def breaks_above(number, sign):
    """The best finite action is -0.2; above 0.5 the reward is ``number``."""

    def step(params, x, a):
        reward = sign * 2.0 - jnp.square(a[0] + 0.2)
        return x, jnp.where(a[0] > 0.5, number, reward), jnp.ones(())

    return ModelFns(step, zero, lambda params, key, x: jnp.full((1,), 0.9))


@pytest.mark.parametrize("number", [NAN, INF, -INF])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_candidate_that_is_not_finite_is_the_worst(number, sign):
    out = run(breaks_above(number, sign), num_samples=256, iterations=6)
    np.testing.assert_allclose([out.action[0], out.mode[0]], -0.2, atol=0.1)
    np.testing.assert_allclose(out.value, 3.0 * sign * 2.0, atol=0.2)
    assert finite(out) and out.diagnostics.nonfinite > 0


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_elites_that_are_not_finite_weigh_nothing(temperature):
    """More elites than finite candidates: the others must not pull the mean up."""
    out = run(breaks_above(NAN, -1.0), num_elites=64, iterations=1, temperature=temperature)
    finite_ones = 64 - int(out.diagnostics.nonfinite)
    assert 0 < finite_ones < 64 and finite(out)
    assert out.mode < 0.0 and out.diagnostics.proposal_share == 4 / 64
    if temperature == 0.0:
        np.testing.assert_allclose(out.diagnostics.effective_elites, finite_ones, rtol=1e-5)


@pytest.mark.parametrize("record", ["sampled_elite", "mean", "best_elite"])
@pytest.mark.parametrize("start", [0.25, 7.0, NAN, INF])
def test_a_plan_without_any_finite_candidate_is_the_warm_start(record, start):
    out = run(breaks_above(NAN, 1.0)._replace(value=lambda params, key, x: jnp.full((), NAN)),
              state=PlanState(jnp.full((3, 1), start)), record=record)  # fmt: skip
    expected = min(start, 1.0) if np.isfinite(start) else 0.0
    np.testing.assert_array_equal([out.action, out.mode, out.prior.mean], [[expected]] * 3)
    np.testing.assert_array_equal(out.next_state.mean[:, 0], [expected, expected, 0.0])
    assert out.value == 0.0 and out.prior.std > 0.0 and finite(out)


def test_an_iteration_without_finite_candidates_keeps_the_plan_before_it():
    """Only candidates within 1e-3 of the warm start are finite; later iterations have none."""

    def step(params, x, a):
        return x, jnp.where(jnp.abs(a[0] - 0.3) > 1e-3, NAN, 1.0), jnp.ones(())

    model = ModelFns(step, zero, lambda params, key, x: jnp.full((1,), params))
    out = run(model, params=0.3, iterations=1)
    np.testing.assert_allclose([out.mode[0], out.value], [0.3, 3.0], rtol=1e-6)


@pytest.mark.parametrize("field", ["root", "explore"])
@pytest.mark.parametrize("number", [NAN, INF])
def test_traced_numbers_that_are_not_finite_are_survived(field, number):
    model = ModelFns(lambda params, x, a: (x + a, -jnp.sum(x * x), jnp.ones(())), zero)

    @jax.jit
    def plan(x):
        root = jnp.zeros(1) + (x if field == "root" else 0.0)
        explore = x if field == "explore" else 1.0
        state = mppi.init(CONFIG, 1)
        key = jax.random.key(0)
        return mppi.plan(None, key, root, state, model=model, config=CONFIG, explore=explore)

    assert finite(plan(number))


def ends(params, x, a):
    """Reward 1 and an end at step ``params['at']``; afterwards everything is NaN."""
    over = x["time"] > params["at"]
    reward = jnp.where(over, params["reward"], 1.0 - jnp.square(a[0]))
    discount = jnp.where(over, params["discount"], jnp.where(x["time"] == params["at"], 0.0, 1.0))
    return {"time": x["time"] + 1, "z": jnp.where(over, params["latent"], x["z"])}, reward, discount


ENDING = ModelFns(ends, lambda params, key, x: params["value"] + x["z"])


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e30])
def test_nothing_behind_an_end_counts(at, garbage):
    model = ENDING._replace(sample_action=still)
    names = ("reward", "discount", "latent", "value")
    params = {"at": at, **dict.fromkeys(names, jnp.float32(garbage))}
    root = {"time": jnp.zeros((), jnp.int32), "z": jnp.zeros(())}
    out = run(model, root, params=params)
    assert out.diagnostics.nonfinite == 0
    np.testing.assert_allclose(out.value, at + 1.0, atol=0.5)
    actions, returns = mppi.propose(params, jax.random.key(0), root, model=model, config=CONFIG)
    none = config_lib.replace(CONFIG, {"num_proposals": 0})
    with pytest.raises(ConfigError, match="mppi.num_proposals = 0: must be >= 1"):
        mppi.propose(params, jax.random.key(0), root, model=model, config=none)
    keys = jax.random.split(jax.random.key(0), 4)
    np.testing.assert_array_equal(returns, at + 1.0)
    np.testing.assert_array_equal(mppi.score(params, keys, root, actions, model=model), at + 1.0)


# -------------------------------------------------------------------------- derivatives


def lazy(params, x, a):
    """Every action is worth the same, so all elites agree where the box ends."""
    return x + params * a, -jnp.sum(x * x), jnp.ones(())


@pytest.mark.parametrize("mode", [jax.grad, jax.jacfwd])
def test_derivatives_of_a_plan_are_finite_when_elites_agree(mode):
    def loss(params):
        out = run(ModelFns(lazy, zero), jnp.full((1,), 50.0), params=params, jit=False)
        return jnp.sum(out.prior.std) + out.value + out.diagnostics.std + out.mode[0]

    def std_alone(std):
        """Without any spread every candidate is the warm start."""
        config = config_lib.replace(CONFIG, {"std_min": 0.0, "num_proposals": 0})
        config = config_lib.replace(config, {"iterations": 1})
        mean = jnp.zeros((3, 1)) + std
        plan = functools.partial(mppi.plan, model=ModelFns(lazy, zero), config=config)
        out = plan(jnp.ones(()), jax.random.key(0), jnp.ones(1), PlanState(mean))
        return jnp.sum(out.prior.std)

    assert np.isfinite(jax.jit(mode(loss))(jnp.ones(())))
    # All samples are clipped to the bound.
    assert np.isfinite(jax.jit(mode(std_alone))(jnp.full((), 500.0)))


# --------------------------------------------------------------------------- other dtypes


def walk(params, x, a):
    return x + 0.1 * a, -jnp.sum(x * x), 1.0


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("name", ["float32", "float64"])
@pytest.mark.parametrize("start", [None, "float32"])
def test_results_have_the_dtype_of_the_root(x64, name, start):
    with jax.enable_x64(x64):
        state = None if start is None else mppi.init(CONFIG, 1, start)
        root = jnp.ones(1, jnp.dtype(name) if x64 else jnp.float32)
        out = run(ModelFns(walk, lambda params, key, x: x[0], still), root, state)
        given = mppi.init(CONFIG, 1) if state is None else state
        assert out.next_state.mean.dtype == given.mean.dtype
        floats = jax.tree.leaves(out._replace(next_state=None))
        assert {x.dtype for x in floats} == {root.dtype, jnp.dtype(jnp.int32)}


NUMBERS = {
    "integers": (lambda r: r.astype(jnp.int32), jnp.int32(1), jnp.int32(2)),
    "booleans": (lambda r: r > -1.0, jnp.bool_(True), jnp.bool_(False)),
    "bfloat16": (lambda r: r.astype(jnp.bfloat16), jnp.bfloat16(1), jnp.bfloat16(2)),
    "Python": (lambda r: r, 1, 2.0),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_rewards_discounts_and_values_may_be_any_real_number(case):
    reward, discount, value = NUMBERS[case]
    given = ModelFns(lambda p, x, a: (x, reward(-10.0 * a[0]), discount), lambda p, k, x: value)
    plain = ModelFns(
        lambda p, x, a: (x, reward(-10.0 * a[0]).astype(jnp.float32), jnp.float32(discount)),
        lambda p, k, x: jnp.float32(value),
    )
    jax.tree.map(np.testing.assert_array_equal, run(given), run(plain))


@pytest.mark.parametrize("root", [{"x": 1.0, "n": 0}, {"x": np.ones(()), "n": np.int32(0)}])
@pytest.mark.parametrize("jit", [False, True])
def test_roots_may_have_numbers_of_python_and_numpy(root, jit):
    def step(params, z, a):
        assert z["n"].dtype == jnp.int32 and z["x"].dtype == jnp.float32
        return {"x": z["x"] + a[0], "n": z["n"] + 1}, -jnp.square(z["x"]), 1.0

    out = run(ModelFns(step, zero), root, jit=jit)
    assert out.mode.dtype == jnp.float32 and out.mode < -0.5


@pytest.mark.parametrize("narrow", [jnp.int32, jnp.bfloat16, jnp.bool_])
def test_a_latent_that_widens_is_promoted_and_never_cast_back(narrow):
    """A position that starts as an integer must be able to move by a fraction."""

    def step(params, x, a):
        x = x.astype(jnp.float32) + 0.01 * a
        return x, -jnp.square(x[0] - 0.015), 1.0

    roots = (jnp.zeros(1, narrow), jnp.zeros(1))
    outs = [run(ModelFns(step, zero), root) for root in roots]
    jax.tree.map(np.testing.assert_array_equal, *outs)
    assert outs[0].value > -1e-3


def test_latents_of_bfloat16_stay_so_and_the_plan_is_in_float32():
    seen = []

    def step(params, x, a):
        seen.append((x.dtype, a.dtype))
        return x + a.astype(x.dtype), -x[0], 1.0

    out = run(ModelFns(step, zero, still), jnp.ones(1, jnp.bfloat16))
    assert set(seen) == {(jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32))}
    assert out.action.dtype == jnp.float32 and out.value.dtype == jnp.float32


def test_healthy_plans_pass_the_debugger_of_nans():
    with jax.debug_nans(True):
        assert finite(run(ModelFns(walk, zero, still), jnp.ones(1), temperature=0.0))


# ------------------------------------------------------------------------------ shard_map


def sharded(model, in_spec):
    """Plans of two robots under ``jax.shard_map`` with its defaults, and without it."""
    config = config_lib.replace(CONFIG, {"iterations": 1})

    def one(key, root):
        state = mppi.init(config, 1)
        return mppi.plan(None, key, root, state, model=model, config=config, explore=0.0)

    many = jax.vmap(one, in_axes=(0, None if in_spec is None else 0))
    keys = jax.random.split(jax.random.key(0), 2)
    robots, spec = (
        PartitionSpec("robots"),
        PartitionSpec() if in_spec is None else PartitionSpec("robots"),
    )
    root = {"time": jnp.zeros((), jnp.int32), "x": jnp.ones(1)}
    if in_spec is not None:
        root = jax.tree.map(lambda x: jnp.stack([x, x]), root)
    mesh = Mesh(np.array(jax.devices()[:1]), ("robots",))
    spread = jax.shard_map(many, mesh=mesh, in_specs=(robots, spec), out_specs=robots)
    return jax.jit(spread)(keys, root), jax.jit(many)(keys, root)


def constant(params, z, a):
    """Neither reward, discount nor all of the latent depend on what varies over the mesh."""
    return {"time": jnp.zeros((), jnp.int32), "x": z["x"]}, jnp.ones(()), jnp.ones(())


def moving(params, z, a):
    return {"time": z["time"] + 1, "x": z["x"] + 0.1 * a}, -jnp.sum(z["x"] ** 2), jnp.ones(())


@pytest.mark.parametrize(
    "step,policy,in_spec", [(constant, still, None), (moving, still, "robots")]
)
def test_plans_are_the_same_under_shard_map(step, policy, in_spec):
    spread, plain = sharded(ModelFns(step, zero, policy), in_spec)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), spread, plain)


# ----------------------------------------------------------------------- mistakes, in one line

STEP = "model.step must return (next latent, reward [], discount []); "
ROOT = {"x": jnp.zeros(2), "n": jnp.zeros((), jnp.int32)}


def steps(latent=lambda z: z, reward=0.0, discount=1.0):
    return ModelFns(lambda params, z, a: (latent(z), reward, discount), zero)


def parts(**changes):
    """A model in three parts, one of which is replaced."""
    good = SplitStep(
        prepare=lambda params, z: z,
        advance=lambda params, z, a: (z, z["x"]),
        outcome=lambda params, x: (x[0], 1.0),
    )
    return ModelFns(good._replace(**changes), zero)


ADVANCE = "model.step.advance must return (next latent, seen); "
OUTCOME = "model.step.outcome must return (reward [], discount []); "
BAD = {
    "reward [1]": (steps(reward=np.zeros(1, np.float32)), STEP + "its reward is float32[1]"),
    "no discount": (steps(discount=None), STEP + "its discount is None"),
    "complex": (steps(reward=1j), STEP + "its reward is complex64[]"),
    "pair": (ModelFns(lambda p, z, a: (z, 0.0), zero), STEP + "it returned a tuple of 2"),
    "array": (ModelFns(lambda p, z, a: z["x"], zero), STEP + "it returned float32[2]"),
    "missing": (steps(lambda z: {"x": z["x"]}), STEP + "its next latent has no leaf ['n']"),
    "more": (
        steps(lambda z: z | {"y": 0.0}),
        STEP + "its next latent has a leaf ['y'] that the root has not",
    ),
    "shape": (
        steps(lambda z: z | {"x": z["x"][:1]}),
        STEP + "its next latent['x'] is float32[1], the root's float32[2]",
    ),
    "sign": (
        steps(lambda z: z | {"n": z["n"].astype(jnp.uint32)}),
        STEP + "its next latent['n'] is uint32[], the root's int32[]",
    ),
    "text": (steps(lambda z: z | {"n": "x"}), STEP + "its next latent['n'] is 'x'"),
    "list": (steps(lambda z: [z]), STEP + "its next latent "),
    "value": (
        steps()._replace(value=lambda p, k, z: z["x"]),
        "model.value must return a number []; it returned float32[2]",
    ),
    "policy []": (
        steps()._replace(sample_action=zero),
        "model.sample_action must return an action, floats [1]; it returned float32[]",
    ),
    "policy [2]": (
        steps()._replace(sample_action=(still, lambda p, k, z: z["x"])),
        "model.sample_action[1] must return an action, floats [1]; it returned float32[2]",
    ),
    "policy of integers": (
        steps()._replace(sample_action=lambda p, k, z: z["n"][None]),
        "model.sample_action must return an action, floats [1]; it returned int32[1]",
    ),
    "no policy": (steps()._replace(sample_action=()), "model.sample_action must be a function"),
    "no function": (steps()._replace(value=0.0), "model.value must be a function of (params, key"),
    "arguments": (
        ModelFns(lambda z, a: (z, 0.0, 1.0), zero),
        "model.step must take (params, latent, action); it takes (z, a)",
    ),
    "tuple": ((1, 2, 3), "model must be a ModelFns; it is a tuple"),
    "no part": (
        parts(prepare=None),
        "model.step.prepare must be a function of (params, latent); it is None",
    ),
    "arguments of a part": (
        parts(outcome=lambda x: (0.0, 1.0)),
        "model.step.outcome must take (params, seen); it takes (x)",
    ),
    "advance to an array": (
        parts(advance=lambda p, z, a: z["x"]),
        ADVANCE + "it returned float32[2]",
    ),
    "advance to three": (
        parts(advance=lambda p, z, a: (z, 0.0, 1.0)),
        ADVANCE + "it returned a tuple of 3",
    ),
    "advance to another latent": (
        parts(advance=lambda p, z, a: (z | {"x": z["x"][:1]}, z["x"])),
        STEP + "its next latent['x'] is float32[1], the root's float32[2]",
    ),
    "outcome alone": (parts(outcome=lambda p, x: x[0]), OUTCOME + "it returned float32[]"),
    "reward [2]": (parts(outcome=lambda p, x: (x, 1.0)), OUTCOME + "its reward is float32[2]"),
    "outcome without discount": (
        parts(outcome=lambda p, x: (x[0], None)),
        OUTCOME + "its discount is None",
    ),
}


def refused(message, **kwargs):
    with pytest.raises(ConfigError) as caught:
        run(**kwargs)
    assert re.fullmatch(rf"{re.escape(message)}[^\n]*", str(caught.value)), caught.value


@pytest.mark.parametrize("case", BAD)
def test_mistakes_of_a_models_author_are_named(case):
    model, message = BAD[case]
    refused(message, model=model, root=ROOT, jit=False)


@pytest.mark.parametrize(
    "root,message",
    [
        (None, "root must have arrays"),
        ({"x": "a"}, "root['x'] must be an array or a number; it is 'a'"),
        ({"x": 2**70}, "root['x'] = 1180591620717411303424: does not fit into int32"),
    ],
)
def test_roots_without_arrays_are_refused(root, message):
    refused(message, model=steps(), root=root, jit=False)


@pytest.mark.parametrize(
    "state,message",
    [
        (PlanState(jnp.zeros((3, 2))), STEP + "its next latent is float32[2], the root's float32["),
        (PlanState(jnp.zeros((4, 3, 1))), "state.mean has shape [4, 3, 1]: must be [H, A] ="),
        (PlanState(jnp.zeros((3, 1), jnp.int32)), "state.mean is int32[3,1]: must be floats"),
        (jnp.zeros((3, 1)), "state must be a PlanState"),
    ],
)  # fmt: skip
def test_warm_starts_that_do_not_fit_are_refused(state, message):
    refused(message, model=ModelFns(walk, zero), root=jnp.zeros(1), state=state, jit=False)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, None])
def test_actions_have_a_size(size):
    with pytest.raises(ConfigError, match=f"^action_size = {size}: must be an integer >= 1$"):
        mppi.init(MppiConfig(), size)


@pytest.mark.parametrize("error", [ZeroDivisionError, TypeError, ConfigError, KeyError])
def test_exceptions_of_the_model_pass_unchanged(error):
    mine = error("mine")

    def step(params, x, a):
        raise mine

    with pytest.raises(error) as caught:
        run(ModelFns(step, zero), jit=False)
    assert caught.value is mine


def test_params_may_be_anything_and_reach_the_model_as_they_are():
    params = {"mode": "fast", "n": 2}

    def step(given, x, a):
        assert given == params
        return x, -a[0] * given["n"], 1.0

    assert run(ModelFns(step, zero), params=params, jit=False).mode < 0.0


@pytest.mark.parametrize(
    "field,value",
    [
        ("temperature", NAN), ("temperature", INF), ("temperature", -0.1), ("std_min", NAN),
        ("std_max", INF), ("std_max", 0.01), ("std_min", -INF),
    ],
)  # fmt: skip
def test_plan_refuses_numbers_that_cannot_work_where_they_are_known(field, value):
    refused(f"mppi.{field} = {value}: must be a finite number >= ", model=steps(), **{field: value})


@pytest.mark.parametrize("explore", [NAN, INF, -1, "x", np.ones(4)])
def test_plan_refuses_exploration_that_cannot_work(explore):
    refused("explore ", model=steps(), explore=explore)


# --------------------------------------------------------------------- small populations


def test_populations_without_a_policy_need_no_word_about_proposals():
    out = run(ModelFns(walk, zero), jnp.zeros(1), num_samples=16, num_proposals=24, num_elites=4)
    assert out.diagnostics.proposal_share == 0.0


@pytest.mark.parametrize("field,hint", [("num_elites", 2), ("num_proposals", 0)])
def test_defaults_that_do_not_fit_are_named_with_what_would(field, hint):
    sizes = {"num_samples": 16, "num_elites": 4, "num_proposals": 4}
    sizes[field] = getattr(MppiConfig(), field)
    model = ModelFns(walk, zero, still)
    message = rf"mppi\.{field} = \d+: must be in .*, for instance {hint}"
    with pytest.raises(ConfigError) as caught:
        run(model, jnp.zeros(1), **sizes)
    assert re.fullmatch(message, str(caught.value)), caught.value
