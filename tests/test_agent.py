"""Learning on problems with known values, and rejection of non-finite updates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from pomcp_jax import acting, agent, envs, fine_tuning, maths, replay, world_model
from pomcp_jax import config as config_lib
from pomcp_jax.agent import FAULT_TERMS, Scales
from pomcp_jax.replay import Batch, Index, Row
from pomcp_jax.types import Gaussian

DISCOUNT = 0.8
LEARN = {
    "optimizer__discount": DISCOUNT,
    "optimizer__learning_rate": 3e-3,
    "optimizer__encoder_rate_scale": 1.0,
    "optimizer__target_rate": 0.1,
    "optimizer__batch_size": 32,
    "policy__kl_coef": 0.1,
}


ROWS = 200


@functools.cache
def learner(config):
    """Updates on sampled batches, compiled once for all probes of one observation."""
    spec = acting.build(config, 1, 1)

    @jax.jit
    def run(ring, updates):
        def body(i, state):
            key_batch, key_update = jax.random.split(jax.random.fold_in(jax.random.key(1), i))
            length = config.mppi.horizon + 1
            batch = replay.sample(ring, key_batch, config.optimizer.batch_size, length)
            return agent.update(state, batch, key_update, spec=spec, config=config)[0]

        start = agent.init(jax.random.key(0), config, spec)
        return jax.lax.fori_loop(0, updates, body, start)

    return spec, run


@functools.cache
def experience(task):
    """Random actions in two environments, as training's seeding phase stores them."""
    env = envs.make(task)

    def act(carry, key):
        (state, timestep), ring = carry
        action = jax.random.uniform(key, (2, 1), minval=-1.0)
        following = env.step(state, action)
        after = following[1]
        row = Row(
            obs=timestep.obs,
            action=action,
            reward=after.reward,
            terminated=after.terminated,
            last=after.is_first,
            prior=Gaussian(action, jnp.ones_like(action)),
            prior_value=jnp.zeros((2,)),
            made=jnp.zeros((2,), jnp.int32),
        )
        return (following, replay.insert(ring, row)), None

    keys = jax.random.split(jax.random.key(2), ROWS)
    start = env.reset(jax.random.split(jax.random.key(3), 2)), replay.init(ROWS, 2, 1, 1)
    return jax.jit(lambda start: jax.lax.scan(act, start, keys)[0][1])(start)


def learn(task, preset="po_mpc", updates=800, **changes):
    """An agent trained on random experience of a probe."""
    config = tiny.agent(preset, **(LEARN | changes))
    spec, run = learner(config)
    return config, spec, run(experience(task), updates)


def values(config, spec, params, obs):
    """The critic's mean value of the policy's mean action at observations ``[B, O]``."""
    latent = world_model.encode(spec.nets, params.model.encoder, obs)
    action = None
    if config.world_model.critic == "q":
        key = jax.random.key(0)
        action = acting.act_policy(params, key, obs, spec=spec, config=config, explore=0.0)
    logits = world_model.value_logits(spec.nets, params.model.value, latent, action)
    bins = world_model.bins(config.world_model)
    return np.mean(maths.two_hot_decode(logits, bins), axis=0)


SIGNS = jnp.array([[1.0], [-1.0]])


@functools.cache
def match():
    return learn("probe/match", updates=1500)


@pytest.mark.parametrize(
    "task,obs,expected",
    [
        # An end stops the bootstrap: 1, not 1 / (1 - 0.8).
        ("probe/constant", [[0.0]], [1.0]),
        # A cut does not: 5, not the 3.36 of five steps.
        ("probe/truncated", [[0.0]], [5.0]),
        ("probe/delayed", [[0.0], [1.0]], [DISCOUNT, 1.0]),
    ],
)
def test_critic_reaches_the_known_value(task, obs, expected):
    config, spec, state = learn(task)
    got = values(config, spec, state.params, jnp.array(obs))
    np.testing.assert_allclose(got, expected, rtol=0.07)


def test_v_critic_does_not_bootstrap_through_an_end():
    """BMPC's targets come from the model, so the end has to be stored with the state."""
    config, spec, state = learn(
        "probe/constant", "bmpc", replan__interval=0, policy__prior="stored"
    )
    got = values(config, spec, state.params, jnp.zeros((1, 1)))
    np.testing.assert_allclose(got, 1.0, rtol=0.07)


def test_policy_finds_the_best_action_of_every_observation():
    config, spec, state = match()
    key = jax.random.key(0)
    best = acting.act_policy(state.params, key, SIGNS, spec=spec, config=config, explore=0.0)
    np.testing.assert_allclose(best, SIGNS / 2, atol=0.12)
    np.testing.assert_allclose(values(config, spec, state.params, SIGNS), 1.0, rtol=0.07)


def test_planner_finds_it_too():
    config, spec, state = match()
    plan = acting.init_plan(config, spec, 2)
    out = acting.act(
        state.params, jax.random.key(1), SIGNS, plan, jnp.ones((2,), bool),
        spec=spec, config=config, explore=0.0,
    )  # fmt: skip
    np.testing.assert_allclose(out.mode, SIGNS / 2, atol=0.15)


# ------------------------------------------------------------------- broken numbers


@functools.cache
def jitted_update():
    config, spec, state = match()
    return jax.jit(functools.partial(agent.update, spec=spec, config=config))


def some_batch():
    rng = np.random.default_rng(0)
    shape = (4, 32)
    f32 = lambda *s: jnp.asarray(rng.uniform(-0.5, 0.5, s), jnp.float32)  # noqa: E731
    no = jnp.zeros(shape, bool)
    prior = Gaussian(f32(*shape, 1), jnp.full((*shape, 1), 0.5))
    zero = jnp.zeros(shape, jnp.int32)
    rows = Row(f32(*shape, 1), f32(*shape, 1), f32(*shape), no, no, prior, f32(*shape), zero)
    return Batch(rows, Index(zero, zero), ~no)


def spoil(name):
    """A batch and a state in which one term is not finite."""
    _, _, state = match()
    batch, nan = some_batch(), jnp.float32(jnp.nan)
    rows, params = batch.rows, state.params
    if name == "reward":
        rows = rows._replace(reward=rows.reward.at[1, 2].set(nan))
    elif name == "prior":
        mean = rows.prior.mean.at[0, 1].set(nan)
        rows = rows._replace(prior=rows.prior._replace(mean=mean))
    elif name == "policy":
        broken = jax.tree.map(lambda x: x * nan, params.policy)
        params = params._replace(policy=broken)
    return state._replace(params=params), batch._replace(rows=rows)


def test_a_good_batch_counts_no_fault():
    """Guards the tests below."""
    _, _, state = match()
    after, _ = jitted_update()(state, some_batch(), jax.random.key(0))
    assert int(after.faults.total) == int(state.faults.total) == 0
    moved = jax.tree.map(lambda a, b: jnp.any(a != b), after.params, state.params)
    assert all(any(jax.tree.leaves(part)) for part in (moved.model, moved.policy, moved.prior))


@pytest.mark.parametrize("name,part", [("reward", "model"), ("prior", "prior")])
def test_a_nan_never_reaches_parameters(name, part):
    state, batch = spoil(name)
    after, _ = jitted_update()(state, batch, jax.random.key(0))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))
    before, now = getattr(state.params, part), getattr(after.params, part)
    jax.tree.map(np.testing.assert_array_equal, before, now)
    assert after.faults.total == after.faults.consecutive == 1
    assert name in FAULT_TERMS[int(after.faults.term)]


def test_consecutive_faults_are_counted_and_forgotten():
    state, batch = spoil("reward")
    for expected in (1, 2, 3):
        state, _ = jitted_update()(state, batch, jax.random.key(expected))
        assert int(state.faults.consecutive) == expected
    state, _ = jitted_update()(state, some_batch(), jax.random.key(9))
    assert int(state.faults.consecutive) == 0 and int(state.faults.total) == 3


def test_a_broken_policy_does_not_spoil_the_target_network():
    state, batch = spoil("policy")
    after, _ = jitted_update()(state, batch, jax.random.key(0))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.target_value))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.params.model))


# ------------------------------------------------------------- updates without the actors


@functools.cache
def rare_update():
    """The same updates with policy and prior in every third one."""
    config, spec, _ = match()
    config = config_lib.replace(config, {"policy.interval": 3})
    return jax.jit(functools.partial(agent.update, spec=spec, config=config))


def test_an_update_without_the_actors_changes_the_model_alone():
    _, _, state = match()
    key = jax.random.key(0)
    whole, everything = jitted_update()(state, some_batch(), key)
    after, metrics = rare_update()(state, some_batch(), key, due=False)
    jax.tree.map(np.testing.assert_array_equal, state.params.policy, after.params.policy)
    jax.tree.map(np.testing.assert_array_equal, state.params.prior, after.params.prior)
    jax.tree.map(np.testing.assert_array_equal, state.scales, after.scales)
    near = functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-6)
    jax.tree.map(near, whole.params.model, after.params.model)
    jax.tree.map(near, whole.target_value, after.target_value)
    assert set(metrics) == set(everything)
    missing = {name for name in metrics if name.startswith(agent.ACTOR_METRICS)}
    assert {"loss/policy", "loss/prior", "policy/kl", "prior/kl", "grad/policy"} <= missing
    assert all(metrics[name] == 0.0 for name in missing)
    assert float(metrics["loss/model"]) == pytest.approx(float(everything["loss/model"]), rel=1e-5)


def test_an_update_with_the_actors_is_that_of_every_other_agent():
    _, _, state = match()
    key = jax.random.key(0)
    whole, _ = jitted_update()(state, some_batch(), key)
    after, _ = rare_update()(state, some_batch(), key, due=True)
    near = functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-6)
    jax.tree.map(near, whole.params, after.params)
    jax.tree.map(near, whole.scales, after.scales)


def test_no_work_is_done_for_actors_of_several_seeds_that_are_not_due():
    config, spec, state = match()
    config = config_lib.replace(config, {"policy.interval": 3})
    states, batches = jax.tree.map(lambda x: jnp.stack([x, x]), (state, some_batch()))

    def learn(states, batches, keys, due):
        one = functools.partial(agent.update, spec=spec, config=config, due=due)
        return jax.vmap(one)(states, batches, keys)

    keys = jax.random.split(jax.random.key(0), 2)
    program = str(jax.make_jaxpr(learn)(states, batches, keys, jnp.array(True)))
    assert " cond[" in program  # a select would compute both sides


@functools.cache
def update_on_long_windows(td_lambda):
    """An update whose model is unrolled over one transition of windows of three."""
    config, spec, _ = match()
    changes = {"mppi.horizon": 1, "critic.return_steps": 3, "critic.td_lambda": td_lambda}
    config = config_lib.replace(config, changes | {"critic.target_action": "mode"})
    return jax.jit(functools.partial(agent.update, spec=spec, config=config))


def test_later_rows_of_a_window_are_only_in_the_returns():
    config, spec, state = match()
    batch, key = some_batch(), jax.random.key(0)
    changes = {"mppi.horizon": 1, "critic.target_action": "mode"}
    short = functools.partial(agent.update, spec=spec, config=config_lib.replace(config, changes))
    expected, _ = jax.jit(short)(state, batch.head(2), key)
    found, _ = update_on_long_windows(0.0)(state, batch, key)
    near = functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-6)
    jax.tree.map(near, expected.params, found.params)

    def target(td_lambda, row):
        reward = batch.rows.reward.at[row].add(1.0)
        after = batch._replace(rows=batch.rows._replace(reward=reward))
        return float(update_on_long_windows(td_lambda)(state, after, key)[1]["value/target"])

    gamma = float(config.optimizer.discount)
    for td_lambda, weights in ((0.0, [1.0, 0.0, 0.0, 0.0]), (1.0, [1.0, gamma, gamma**2, 0.0])):
        gains = [target(td_lambda, row) - target(td_lambda, 3) for row in range(4)]
        np.testing.assert_allclose(gains, weights, atol=1e-4)


def test_an_update_refuses_windows_of_another_length_and_missing_outcomes():
    config, spec, state = match()
    batch, key = some_batch(), jax.random.key(0)
    with pytest.raises(ValueError, match="batch: has windows of 3 rows; must have 4"):
        agent.update(state, batch.head(3), key, spec=spec, config=config)
    calibrated = config_lib.replace(config, {"policy.kl_tuning": "calibrated"})
    with pytest.raises(ValueError, match="must be given when policy.kl_tuning is 'calibrated'"):
        agent.update(state, batch, key, spec=spec, config=calibrated)


def test_a_prior_that_is_always_refused_does_not_look_healthy_in_between():
    state, batch = spoil("prior")
    counts = []
    for i in range(6):
        due = jnp.array(i % 3 == 0)
        state, _ = rare_update()(state, batch, jax.random.key(i), due=due)
        counts.append(int(state.faults.consecutive))
    assert counts == [1, 1, 1, 2, 2, 2]
    # Pre-training without the actors says nothing of them either, and never will.
    options = {"train_actors": jnp.array(False), "due": jnp.array(True)}
    state, _ = rare_update()(state, some_batch(), jax.random.key(9), **options)
    assert int(state.faults.consecutive) == 0
    state, _ = rare_update()(state, spoil("reward")[1], jax.random.key(9), **options)
    state, _ = rare_update()(
        state, some_batch(), jax.random.key(9), **options | {"due": jnp.array(False)}
    )
    assert int(state.faults.consecutive) == 0 and int(state.faults.total) == 3


def test_updates_that_train_the_actors_are_the_first_of_each_interval():
    config, _, _ = match()
    every, third = config, config_lib.replace(config, {"policy.interval": 3})
    due = [bool(agent.actors_due(jnp.int32(i), third)) for i in range(9)]
    assert due == [True, False, False] * 3
    for begin in range(7):
        for end in range(begin, 9):
            assert agent.count_due(begin, end, third) == sum(due[begin:end])
            assert agent.count_due(begin, end, every) == end - begin


# ------------------------------------------------------------------ averaged policies


def with_count(opt, count):
    """Optimisers of ``count`` updates, after which an average has its final rate."""
    return opt._replace(
        policy=opt.policy._replace(count=jnp.int32(count)),
        prior=opt.prior._replace(count=jnp.int32(count)),
        model=opt.model._replace(count=jnp.int32(count)),
    )


@functools.cache
def averaged_update():
    """The same updates with actors that are averages over 4, and a state that they begin with."""
    config, spec, state = match()
    config = config_lib.replace(config, {"policy.average_updates": 4})
    opt = agent.init(jax.random.key(0), config, spec).opt
    learning = opt.learning_policy, opt.learning_prior
    opt = with_count(state.opt, 100)._replace(
        learning_policy=learning[0], learning_prior=learning[1]
    )
    return jax.jit(functools.partial(agent.update, spec=spec, config=config)), opt


def test_actors_follow_those_that_learn():
    _, _, state = match()
    state = state._replace(opt=with_count(state.opt, 100))
    update, _ = averaged_update()
    policy, prior = state.params.policy, state.params.prior
    begun = state._replace(opt=state.opt._replace(learning_policy=policy, learning_prior=prior))
    alone, _ = jitted_update()(state, some_batch(), jax.random.key(0))
    after, _ = update(begun, some_batch(), jax.random.key(0))
    near = functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-6)
    # The first step is that of an agent without an average, and a quarter of it is seen.
    jax.tree.map(near, after.opt.learning_policy, alone.params.policy)
    quarter = lambda old, new: old + (new - old) / 4  # noqa: E731
    jax.tree.map(
        near, after.params.policy, jax.tree.map(quarter, state.params.policy, alone.params.policy)
    )
    jax.tree.map(near, after.opt.learning_prior, alone.params.prior)
    jax.tree.map(near, after.params.prior, jax.tree.map(quarter, prior, alone.params.prior))
    jax.tree.map(near, after.params.model, alone.params.model)


def test_losses_and_targets_are_those_of_the_actors_that_learn():
    _, _, state = match()
    update, opt = averaged_update()
    begun, key = state._replace(opt=opt), jax.random.key(0)
    nowhere = jax.tree.map(jnp.zeros_like, (state.params.policy, state.params.prior))
    elsewhere = state.params._replace(policy=nowhere[0], prior=nowhere[1])
    metrics = [
        update(begun._replace(params=params), some_batch(), key)[1]
        for params in (state.params, elsewhere)
    ]
    jax.tree.map(np.testing.assert_array_equal, *metrics)


def test_averages_wait_with_the_actors():
    _, _, state = match()
    update, opt = averaged_update()
    begun = state._replace(opt=opt)
    after, _ = update(begun, some_batch(), jax.random.key(0), train_actors=False)
    same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
    same(begun.params.policy, after.params.policy)
    same(begun.params.prior, after.params.prior)
    same(begun.opt.learning_policy, after.opt.learning_policy)
    same(begun.opt.learning_prior, after.opt.learning_prior)


@functools.cache
def averaged_model_update():
    """The same updates with a world model that is an average over 4."""
    config, spec, state = match()
    config = config_lib.replace(config, {"optimizer.average_updates": 4})
    learning = jax.tree.map(lambda x: x + 0.01 * jnp.cos(x), state.params.model)
    opt = with_count(state.opt, 100)._replace(learning_model=learning)
    return jax.jit(functools.partial(agent.update, spec=spec, config=config)), opt


def test_the_world_model_that_is_evaluated_follows_the_one_that_learns():
    _, _, state = match()
    update, opt = averaged_model_update()
    begun = state._replace(opt=opt)
    alone = begun._replace(
        params=state.params._replace(model=opt.learning_model),
        opt=opt._replace(learning_model=None),
    )
    after, metrics = update(begun, some_batch(), jax.random.key(0))
    alone, expected = jitted_update()(alone, some_batch(), jax.random.key(0))
    near = functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-6)
    # Everything is learned as without an average: losses, policy, prior, targets.
    jax.tree.map(near, metrics, expected)
    jax.tree.map(near, after.target_value, alone.target_value)
    jax.tree.map(near, after.opt.learning_model, alone.params.model)
    jax.tree.map(near, after.params.policy, alone.params.policy)
    jax.tree.map(near, after.params.prior, alone.params.prior)
    quarter = lambda old, new: old + (new - old) / 4  # noqa: E731
    jax.tree.map(
        near, after.params.model, jax.tree.map(quarter, state.params.model, alone.params.model)
    )


@pytest.mark.parametrize("count,rate", [(0, 9 / 10), (8, 1 / 2), (26, 9 / 36), (1_000, 1 / 4)])
def test_an_average_forgets_its_beginning_at_once(count, rate):
    _, _, state = match()
    update, opt = averaged_model_update()
    begun = state._replace(opt=with_count(opt, count))
    after, _ = update(begun, some_batch(), jax.random.key(0))
    old, learns, plans = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
        for tree in (begun.params.model, after.opt.learning_model, after.params.model)
    )
    way = learns - old
    np.testing.assert_allclose((plans - old) @ way / (way @ way), rate, rtol=1e-3)


def test_a_trained_agent_begins_with_itself_as_average():
    config, spec, trained = match()
    changes = {"policy.average_updates": 4, "optimizer.average_updates": 4}
    config = config_lib.replace(config, changes)
    params, target = jax.device_get((trained.params, trained.target_value))
    learned = fine_tuning.adapted(params, target, config, spec, config, spec)
    fresh = agent.init(jax.random.key(5), config, spec)
    begun = fine_tuning.begin(jax.tree.map(lambda x: x[None], fresh), learned)
    same = functools.partial(jax.tree.map, lambda a, b: np.testing.assert_array_equal(a[0], b))
    for policy in (begun.params.policy, begun.opt.learning_policy):
        same(policy, params.policy)
    for prior in (begun.params.prior, begun.opt.learning_prior):
        same(prior, params.prior)
    for model in (begun.params.model, begun.opt.learning_model):
        same(model, params.model)


# ------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    "kl_scale,power,expected",
    [("own", 0.0, 2 * 6 / 3), ("q", 1.0, 2 * 4), ("none", -1.0, 2 / 4 * 6)],
)
def test_price_of_a_nat_is_the_ratio_of_the_two_coefficients(kl_scale, power, expected):
    """The policy pays kl_coef A^k / S_K per nat and earns 1 / S_Q per unit of value."""
    config = config_lib.replace(
        tiny.agent(),
        {"policy.kl_scale": kl_scale, "policy.kl_dim_power": power, "policy.kl_coef": 2.0},
    )
    scales = Scales(jnp.float32(6.0), jnp.float32(3.0), jnp.float32(1.0), jnp.log(jnp.float32(1.0)))
    np.testing.assert_allclose(agent._kl_price(scales, 4, config), expected, rtol=1e-6)
    half = config_lib.replace(config, {"policy.q_coef": 0.5})
    np.testing.assert_allclose(agent._kl_price(scales, 4, half), 2.0 * expected, rtol=1e-6)
    closed = config_lib.replace(config, {"policy.kl_gate": 7.0})
    assert agent._kl_price(scales, 4, closed) == 0.0


def test_replanned_records_go_where_they_belong():
    batch = some_batch()
    new = Gaussian(jnp.full((3, 5, 1), 7.0), jnp.full((3, 5, 1), 8.0))
    made = jnp.full((3, 5), 11, jnp.int32)
    changed, index = agent.apply_replan(batch, new, jnp.full((3, 5), 9.0), made)
    assert index.row.shape == (3, 5)
    assert np.all(changed.rows.prior.mean[:3, :5] == 7.0)
    assert np.all(changed.rows.prior.std[:3, :5] == 8.0)
    assert np.all(changed.rows.prior_value[:3, :5] == 9.0)
    assert np.all(changed.rows.made[:3, :5] == 11) and np.all(changed.rows.made[:3, 5:] == 0)
    rest = np.ones((4, 32), bool)
    rest[:3, :5] = False
    np.testing.assert_array_equal(changed.rows.prior.mean[rest], batch.rows.prior.mean[rest])
    np.testing.assert_array_equal(changed.rows.obs, batch.rows.obs)
