"""Proposers of plans, values of plans, and the choice of windows to plan again."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
from setting import OBS, WINDOWS, A, Setting

from pomcp_jax import acting, mppi
from pomcp_jax import config as config_lib
from pomcp_jax.acting import AgentParams, AgentSpec
from pomcp_jax.config import MppiConfig
from pomcp_jax.mppi import ModelFns

PLANNER = {"mppi.num_samples": 12, "mppi.num_proposals": 3, "mppi.num_elites": 4}


def actors(case):
    """State for acting, and the static part."""
    params = AgentParams(case.params, case.policy, case.prior)
    return jax.tree.map(jnp.asarray, params), AgentSpec(case.nets, OBS, A)


# ---------------------------------------------------------------------- proposers


def steady(case, action):
    """Parameters of an actor that always gives this action, nearly without spread."""
    params = jax.tree.map(jnp.zeros_like, jax.tree.map(jnp.asarray, case.policy))
    raw = [np.arctanh(action)] * A + [-20.0] * A
    params["out"]["bias"] = jnp.asarray(raw, jnp.float32)
    return params


@pytest.mark.parametrize(
    "proposer,num,from_policy", [("policy", 3, 3), ("prior", 3, 0), ("both", 4, 2), ("both", 5, 3)]
)
def test_proposals_come_from_the_right_actor_in_the_right_share(proposer, num, from_policy):
    case = Setting({"policy.proposer": proposer, "mppi.num_proposals": num})
    params, spec = actors(case)
    params = params._replace(policy=steady(case, 0.5), prior=steady(case, -0.5))
    model = acting.model_fns(spec, case.config, (-9.0, -8.0))
    propose = jax.jit(functools.partial(mppi.propose, model=model, config=case.config.mppi))
    actions, _ = propose(params, jax.random.key(0), jnp.zeros(16))
    expected = np.where(np.arange(num) < from_policy, 0.5, -0.5)
    wide = np.broadcast_to(expected[:, None, None], actions.shape)
    np.testing.assert_allclose(actions, wide, atol=5e-3)


def constant(action):
    return lambda params, key, latent: jnp.full((1,), action)


def toy(*proposers):
    """One-step rewards are the action itself; returns are the planner's."""

    def step(params, latent, action):
        return latent, action[0], jnp.ones(())

    value = lambda params, key, latent: jnp.zeros(())  # noqa: E731
    return ModelFns(step, value, proposers)


@pytest.mark.parametrize(
    "num,shares", [(7, [3, 2, 2]), (6, [2, 2, 2]), (2, [1, 1, 0]), (1, [1, 0, 0])]
)
def test_several_proposers_share_evenly_and_the_first_take_the_rest(num, shares):
    config = MppiConfig(horizon=2, num_samples=16, num_proposals=num, num_elites=4)
    model = toy(constant(0.1), constant(0.2), constant(0.3))
    actions, returns = mppi.propose(
        None, jax.random.key(0), jnp.zeros(1), model=model, config=config
    )
    expected = np.repeat(np.float32([0.1, 0.2, 0.3]), shares)
    np.testing.assert_array_equal(actions, np.tile(expected[:, None, None], (1, 2, 1)))
    np.testing.assert_allclose(returns, 2.0 * expected, rtol=1e-6)


def test_planner_uses_the_better_of_two_proposers():
    """Where sampling cannot reach the optimum, a proposal of either actor is what is executed."""
    config = MppiConfig(
        horizon=1, num_samples=8, num_proposals=4, num_elites=2, iterations=1, std_max=1e-3,
        std_min=1e-3, select="argmax",
    )  # fmt: skip
    plan = jax.jit(mppi.plan, static_argnames="model")
    for model in (toy(constant(0.9), constant(-0.9)), toy(constant(-0.9), constant(0.9))):
        state = mppi.init(config, 1)
        key, root = jax.random.key(0), jnp.zeros(1)
        out = plan(None, key, root, state, model=model, config=config, explore=0.0)
        np.testing.assert_allclose(out.action, [0.9], rtol=1e-6)
        assert out.diagnostics.proposal_share == 1.0


# --------------------------------------------------------------- value of a plan's end


def test_penalty_lowers_the_value_by_the_disagreement_of_the_heads():
    case = Setting({"world_model.critic": "v", "policy.q_source": "model"})
    params, spec = actors(case)

    @jax.jit
    def value(config, latent):
        return acting.model_fns(spec, config).value(params, jax.random.key(0), latent)

    latent = case.encode(case.rows.obs)[0, 0]
    heads = case.values(case.params.value, latent)
    assert np.std(heads) > 0.01
    for penalty in (0.0, 0.5, 2.0):
        config = config_lib.replace(case.config, {"critic.tail_penalty": penalty})
        got = value(config, jnp.asarray(latent, jnp.float32))
        np.testing.assert_allclose(got, heads.mean() - penalty * heads.std(), rtol=2e-5)


@pytest.mark.parametrize("tail,expected", [(1, 1), (2, 2), (3, 3), (5, 3)])
def test_a_plan_uses_as_many_heads_as_asked_for(tail, expected):
    case = Setting({"world_model.num_heads": 3, "critic.num_tail_heads": tail})
    params, _ = actors(case)
    chosen = acting.plan_params(params, jax.random.key(1), case.config).model.value
    bias = np.asarray(chosen["out"]["bias"])
    assert bias.shape[0] == expected == len(np.unique(bias, axis=0))
    all_of_them = case.params.value["out"]["bias"]
    assert all(any(np.array_equal(one, x) for x in all_of_them) for one in bias)


# --------------------------------------------------------------------- re-planning


def program(function, config):
    """Program of ``function`` for a configuration, without addresses of objects."""
    return re.sub(r"0x[0-9a-f]+", "", str(jax.make_jaxpr(function)(config)))


def test_own_sizes_of_replanning_change_nothing_else():
    few = {"num_samples": 8, "iterations": 1}
    base = Setting(PLANNER | {"replan.batch_size": 2})
    own = config_lib.replace(base.config, {f"replan.{k}": v for k, v in few.items()})
    same = config_lib.replace(base.config, {f"mppi.{k}": v for k, v in few.items()})
    params, spec = actors(base)
    key, obs = jax.random.key(2), base.batch.rows.obs[0, :2]

    def replan(config):
        return acting.replan(params, key, base.batch, spec=spec, config=config)

    def act(config):
        plan, first = acting.init_plan(config, spec, 2), jnp.ones((2,), bool)
        return acting.act(params, key, obs, plan, first, spec=spec, config=config)

    assert program(act, own) == program(act, base.config)
    assert program(replan, own) == program(replan, same) != program(replan, base.config)


def order(case, updates=100):
    params, spec = actors(case)
    run = functools.partial(acting.replan_order, spec=spec, config=case.config)
    return np.asarray(jax.jit(run)(params, case.batch, updates)).tolist()


@pytest.mark.parametrize("select", ["oldest", "kl"])
def test_order_of_urgency(select):
    """Mean over the transitions of a window; one without any comes last."""
    case = Setting({"replan.select": select, "policy.prior_std_min": 0.2})
    rng, rows = np.random.default_rng(4), case.batch.rows
    made = rng.integers(0, 100, size=rows.made.shape)
    made[1:, 5] = -(10**6)  # of another episode
    made[:, 9] = 100  # just made: still before those without any transition
    last = np.asarray(rows.last).copy()
    last[0, 8] = True  # a window that starts at an episode's end
    valid = np.asarray(case.batch.valid).copy()
    valid[1:, 8] = False
    made[:, 8] = -(10**6)
    rows = rows._replace(made=jnp.asarray(made, jnp.int32), last=jnp.asarray(last))
    case.batch = case.batch._replace(rows=rows, valid=jnp.asarray(valid))
    mask = (valid & ~last)[:-1]
    if select == "oldest":
        urgency = (100 - made[:-1]).astype(float)
    else:
        (_, mean, std), _, _ = case.actor(case.policy, case.encode(case.rows.obs)[:-1])
        record = case.rows.prior.mean[:-1], np.maximum(case.rows.prior.std[:-1], 0.2)
        urgency = np.sum(ref.gaussian_kl(mean, std, *record), axis=-1)
    count = mask.sum(axis=0)
    mean = np.where(mask, urgency, 0.0).sum(axis=0) / np.maximum(count, 1)
    expected = np.argsort(-np.where(count > 0, mean, -np.inf)).tolist()
    got = order(case)
    empty = np.flatnonzero(count == 0).tolist()
    assert sorted(got[-len(empty) :]) == empty == [5, 8]
    assert got[: -len(empty)] == expected[: -len(empty)]
    assert sorted(got) == list(range(WINDOWS))
