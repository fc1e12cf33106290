"""Diagnostics of known value errors, known KL divergences and known gradient noise."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import plot
from pomcp_jax import (
    acting,
    actors,
    diagnostics,
    diagnostics_gradients,
    envs,
    evaluate,
    policy_loss,
    train,
)
from pomcp_jax import agent as agent_lib
from pomcp_jax.diagnostics import mismatch, value_bias
from pomcp_jax.diagnostics_gradients import Moments
from pomcp_jax.replay import Batch, Index, Row
from pomcp_jax.reporting import diagnostic_figures
from pomcp_jax.types import Gaussian
from tests import tiny

DISCOUNT = 1 - 1 / (np.e**2 - 1)
"""With it 1 / (1 - discount) lies on a bin of the tiny critic: symexp(2)."""


# ---------------------------------------------------------------------------
# Values


def reference_bias(reward, ends, terminated, value, discount):
    """Plain reference in float64, one episode after the other."""
    error, weight = 0.0, 0.0
    for e, end in enumerate(ends):
        for t in range(end):
            total, gamma = 0.0, 1.0
            for k in range(t, end):
                total += gamma * reward[k, e]
                gamma *= discount
            gamma *= not terminated[e]
            error += value[t, e] - total - gamma * value[end, e]
            weight += 1 - gamma
    return error / weight


def episodes_of(ends, terminated, steps):
    alive = np.arange(steps)[:, None] < np.array(ends)[None]
    led = (np.arange(steps)[:, None] == np.array(ends)[None] - 1) & np.array(terminated)[None]
    return jnp.asarray(alive), jnp.asarray(led)


def test_bias_of_values_is_that_of_a_slow_reference():
    rng = np.random.default_rng(0)
    ends, terminated = [6, 3, 6, 1], [False, True, True, False]
    reward, value = rng.normal(size=(7, 4)), rng.normal(size=(7, 4))
    alive, led = episodes_of(ends, terminated, 7)
    expected = reference_bias(reward, ends, terminated, value, 0.9)
    got = value_bias(jnp.float32(reward), alive, led, jnp.float32(value), 0.9)
    np.testing.assert_allclose(got.error, expected, rtol=1e-5)
    implied = np.mean(np.abs((value - expected)[np.asarray(alive)]))
    np.testing.assert_allclose(got.relative, expected / implied, rtol=1e-5)


@pytest.mark.parametrize("bias", [0.0, 3.0, -2.0])
def test_a_constant_bias_is_found_exactly_however_short_the_episode(bias):
    alive, led = episodes_of([5, 2], [False, False], 6)
    value = jnp.full((6, 2), 10.0 + bias)
    got = value_bias(jnp.ones((6, 2)), alive, led, value, 0.9)
    np.testing.assert_allclose(got.error, bias, atol=1e-4)
    np.testing.assert_allclose(got.relative, bias / 10, atol=1e-5)


def test_no_bias_without_episodes():
    nothing = jnp.zeros((6, 2), bool)
    got = value_bias(jnp.ones((6, 2)), nothing, nothing, jnp.ones((6, 2)), 0.9)
    assert np.isnan(got.error) and np.isnan(got.relative)


def fixed_head(params, logits):
    """A head with constant logits."""
    out = jax.tree.map(jnp.zeros_like, params["out"])
    return params | {"out": out | {"bias": jnp.broadcast_to(logits, out["bias"].shape)}}


def logits_of(value):
    """Logits over the integers -10 ... 10 whose two-hot decoding is ``value``."""
    place = np.sign(value) * np.log1p(abs(value))
    weights = np.maximum(1 - np.abs(place - np.arange(-10, 11)), 1e-30)
    return jnp.asarray(np.log(weights), jnp.float32)


def judge(task, preset, values, reward):
    """Metrics of seeds whose critics give ``values`` and whose models give ``reward``."""
    config = tiny.run(preset, {"optimizer__discount": DISCOUNT}, env__task=task)
    env = envs.make(task, 1)
    spec = acting.build(config.agent, env.observation_size, env.action_size)

    def one(value):
        params = agent_lib.init(jax.random.key(0), config.agent, spec).params
        model = params.model._replace(
            value=fixed_head(params.model.value, value),
            reward=fixed_head(params.model.reward, logits_of(reward)),
        )
        return params._replace(model=model)

    @jax.jit
    def play(values):
        params, keys = jax.vmap(one)(values), jax.random.split(jax.random.key(1), len(values))
        options = dict(env=env, spec=spec, config=config.agent, episodes=3)
        episodes, trace = evaluate.traced(params, keys, diagnostics.probe(spec), **options)
        metrics = diagnostics.acting_metrics(episodes, trace, config.agent)
        return metrics, episodes, evaluate.rollout(params, keys, **options)

    return play(jnp.stack([logits_of(value) for value in values]))


def test_right_values_of_an_endless_task_have_no_error_and_wrong_ones_their_bias():
    """probe/truncated: reward 1 in every step, cut after five steps."""
    right, high = np.e**2 - 1, np.e**3 - 1
    metrics, episodes, plain = judge("probe/truncated", "bmpc", [right, high], reward=1.0)
    np.testing.assert_allclose(metrics["diag/value_critic"], [right, high], rtol=1e-5)
    np.testing.assert_allclose(metrics["diag/value_error_critic"], [0, high - right], atol=1e-3)
    # The planner sees H = 3 rewards before the critic's value.
    planned = DISCOUNT**3 * (high - right)
    np.testing.assert_allclose(metrics["diag/value_error_planner"], [0, planned], atol=1e-3)
    relative = metrics["diag/value_error_relative_critic"]
    np.testing.assert_allclose(relative, [0, high / right - 1], atol=1e-3)
    for a, b in zip(episodes, plain, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(episodes.lengths, 5)


def test_values_end_where_the_episode_terminates():
    """probe/constant: reward 1, one step; a model that does not know the end plans on."""
    metrics, _, _ = judge("probe/constant", "po_mpc", [1.0], reward=1.0)
    np.testing.assert_allclose(metrics["diag/value_error_critic"], 0, atol=1e-4)
    planned = sum(DISCOUNT**t for t in range(1, 4))
    np.testing.assert_allclose(metrics["diag/value_error_planner"], planned, rtol=1e-4)


# ---------------------------------------------------------------------------
# Policy and planner


def test_divergences_and_distance_of_known_gaussians():
    policy = Gaussian(jnp.zeros((1, 2)), jnp.full((1, 2), 0.5))
    record = Gaussian(jnp.array([[0.6, 0.0]]), jnp.array([[1.0, 0.5]]))
    got = mismatch(policy, record, "clip")
    forth = np.log(2) + (0.25 + 0.36) / 2 - 0.5
    back = -np.log(2) + (1 + 0.36) / (2 * 0.25) - 0.5
    np.testing.assert_allclose(got.kl_policy, [forth], rtol=1e-5)
    np.testing.assert_allclose(got.kl_planner, [back], rtol=1e-5)
    np.testing.assert_allclose(got.distance, [0.6 / np.sqrt(2)], rtol=1e-5)


@pytest.mark.parametrize("mean, std", [(0.0, 0.02), (0.8, 0.3), (-1.5, 1.0), (0.3, 7.0)])
def test_a_tanh_policy_is_compared_by_its_moments_over_actions(mean, std):
    policy = Gaussian(jnp.full((1,), mean), jnp.full((1,), std))
    got = actors.over_actions(policy, "tanh")
    x = np.linspace(-9, 9, 200_001)
    weight = np.exp(-0.5 * x**2)
    weight /= weight.sum()
    action = np.tanh(mean + std * x)
    centre = weight @ action
    spread = np.sqrt(weight @ (action - centre) ** 2)
    np.testing.assert_allclose(got.mean[0], centre, atol=0.02 * spread)
    np.testing.assert_allclose(got.std[0], spread, rtol=0.02)
    np.testing.assert_allclose(actors.mode(policy, "tanh")[0], np.tanh(mean), rtol=1e-6)


# ---------------------------------------------------------------------------
# Gradients


def collect(gradients_of_terms):
    """Moments of ``[M, 3, P]``."""
    stack = jnp.asarray(gradients_of_terms, jnp.float32)
    moments = Moments(jnp.zeros(()), jnp.zeros(stack.shape[1:]), jnp.zeros((2,)))
    for terms in stack:
        moments = diagnostics_gradients.add_gradient(moments, terms)
    return moments


def test_identical_gradients_have_no_noise():
    one = np.random.default_rng(1).normal(size=(3, 7))
    moments = collect([one] * 4)
    np.testing.assert_array_equal(moments.squares, [0.0, 0.0])
    np.testing.assert_allclose(moments.mean, one, rtol=1e-6)
    assert np.isposinf(diagnostics_gradients.signal_to_noise(moments)).all()


def test_no_gradient_has_neither_signal_nor_noise():
    assert np.isnan(diagnostics_gradients.signal_to_noise(collect(np.zeros((4, 3, 7))))).all()


def test_signal_and_noise_are_those_of_numpy_even_where_they_nearly_cancel():
    stack = np.random.default_rng(2).normal(size=(9, 3, 7)) + 300.0
    got = diagnostics_gradients.signal_to_noise(collect(stack))
    for i, part in enumerate((stack.sum(axis=1), stack[:, 1])):
        noise = np.sum(np.var(part, axis=0, ddof=1))
        signal = np.sum(np.mean(part, axis=0) ** 2) - noise / 9
        np.testing.assert_allclose(got[i], signal / noise, rtol=1e-3)


def test_pure_noise_shows_no_signal_on_average():
    rng = np.random.default_rng(3)
    found = [
        diagnostics_gradients.signal_to_noise(collect(rng.normal(size=(8, 3, 50))))
        for _ in range(20)
    ]
    # Without the correction it would be 1 / 8.
    np.testing.assert_allclose(np.mean(found, axis=0), 0.0, atol=0.02)


def batches_of(spec, config, records, made, number=4):
    """``[M, T, B]`` windows of random observations with the same records everywhere."""
    shape = (number, config.mppi.horizon + 1, config.optimizer.batch_size)
    keys = jax.random.split(jax.random.key(5), 3)
    wide = jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, spec.action_size)), records)
    rows = Row(
        obs=jax.random.normal(keys[0], (*shape, spec.obs_size)),
        action=jax.random.uniform(keys[1], (*shape, spec.action_size), minval=-1.0),
        reward=jnp.ones(shape),
        terminated=jnp.zeros(shape, bool),
        last=jax.random.bernoulli(keys[2], 0.1, shape),
        prior=wide,
        prior_value=jnp.zeros(shape),
        made=jnp.broadcast_to(made, shape),
    )
    index = Index(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.int32))
    ended = jnp.cumsum(rows.last, axis=1, dtype=jnp.int32) - rows.last.astype(jnp.int32)
    return Batch(rows, index, ended == 0)


def test_terms_sum_to_the_gradient_of_the_loss():
    config = tiny.agent("po_mpc", policy__entropy_coef=0.3, policy__value_weight=True)
    spec = acting.build(config, 2, 3)
    state = agent_lib.init(jax.random.key(0), config, spec)
    records = Gaussian(jnp.float32(0.2), jnp.float32(0.3))
    batches = batches_of(spec, config, records, jnp.int32(0), number=1)
    batch = jax.tree.map(lambda x: x[0], batches)

    @jax.jit
    def both(state, batch):
        key, scale = jax.random.key(7), jnp.float32(2.0)
        terms = diagnostics_gradients.term_gradients(
            state, batch, key, scale, spec=spec, config=config
        )
        params = state.params
        latents = diagnostics_gradients.model_loss.roll_out(
            spec.nets, params.model, batch.rows.obs[0], batch.rows.action[:-1]
        )
        return terms, jax.grad(policy_loss.policy_loss, has_aux=True)(
            params.policy, params, latents, batch, state.scales._replace(kl=scale), key,
            nets=spec.nets, config=config,
        )[0]  # fmt: skip

    terms, whole = both(state, batch)
    for got, expected in zip(jax.tree.leaves(terms), jax.tree.leaves(whole), strict=True):
        size = 1e-5 * float(jnp.max(jnp.abs(expected)) + 1e-9)
        np.testing.assert_allclose(jnp.sum(got, axis=0), expected, atol=size)
    value, kl, entropy = (
        float(sum(jnp.sum(jnp.square(x[i])) for x in jax.tree.leaves(terms))) for i in range(3)
    )
    assert value == 0  # heads start at zero: the value has no slope yet
    assert kl > 0 and entropy > 0


def test_records_are_compared_with_what_learns():
    """It made them; the averages are only evaluated."""
    averaged = {"policy__average_updates": 10, "optimizer__average_updates": 10}
    config = tiny.agent("tdmpc2", **averaged)
    spec = acting.build(config, 2, 3)
    state = agent_lib.init(jax.random.key(0), config, spec)
    other = agent_lib.init(jax.random.key(1), config, spec).params
    records = Gaussian(jnp.float32(0.2), jnp.float32(0.3))
    batches = batches_of(spec, config, records, jnp.int32(0), number=2)
    measure = jax.jit(
        functools.partial(diagnostics.learning_metrics, updates=3, spec=spec, config=config)
    )
    elsewhere = state._replace(params=other)
    metrics = [measure(x, batches, key=jax.random.key(3)) for x in (state, elsewhere)]
    jax.tree.map(np.testing.assert_array_equal, *metrics)
    assert metrics[0]["diag/distance_record"] > 0


def test_gradients_are_those_of_the_policy_that_learns():
    """Of an averaged policy, an update moves the one behind it."""
    config = tiny.agent("po_mpc", policy__average_updates=10)
    spec = acting.build(config, 2, 3)
    state = agent_lib.init(jax.random.key(0), config, spec)
    other = agent_lib.init(jax.random.key(1), config, spec).params.policy
    records = Gaussian(jnp.float32(0.2), jnp.float32(0.3))
    batch = jax.tree.map(lambda x: x[0], batches_of(spec, config, records, jnp.int32(0), number=1))

    @jax.jit
    def terms(state):
        key, scale = jax.random.key(7), jnp.float32(2.0)
        return diagnostics_gradients.term_gradients(
            state, batch, key, scale, spec=spec, config=config
        )

    learns = state._replace(opt=state.opt._replace(learning_policy=other))
    shown = state._replace(params=state.params._replace(policy=other))
    loaded = shown._replace(opt=None)
    same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(same, terms(learns), terms(loaded))
    jax.tree.map(same, terms(state), terms(shown))
    apart = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), terms(learns), terms(state))
    assert max(jax.tree.leaves(apart)) > 1e-3


def learned(spec, config, prior):
    """Metrics with a learned prior whose output is ``prior(params)`` everywhere."""
    state = agent_lib.init(jax.random.key(0), config, spec)
    model = config.world_model
    bias = jnp.zeros((2 * spec.action_size,)).at[: spec.action_size].set(jnp.arctanh(0.4))
    out = jax.tree.map(jnp.zeros_like, state.params.prior["out"]) | {"bias": bias}
    state = state._replace(
        params=state.params._replace(prior=state.params.prior | {"out": out}),
        scales=state.scales._replace(kl=jnp.float32(5.0)),
    )
    std = float(np.exp(0.5 * (model.log_std_min + model.log_std_max)))
    records = Gaussian(jnp.float32(prior), jnp.float32(std))
    # The second row of every window is older.
    made = jnp.array([30, 10, 30, 30], jnp.int32)[None, :, None]
    batches = batches_of(spec, config, records, made)
    metrics = jax.jit(
        lambda state, batches: diagnostics.learning_metrics(
            state, batches, jnp.int32(40), jax.random.key(2), spec=spec, config=config
        )
    )(state, batches)
    return metrics, batches


def test_a_learned_prior_that_equals_its_records_has_the_same_signal_and_noise():
    config = tiny.agent("po_mpc", policy__entropy_coef=0.0)
    metrics, batches = learned(acting.build(config, 2, 3), config, prior=0.4)
    # Scales differ; the ratio of the KL's gradient does not depend on them.
    np.testing.assert_allclose(metrics["diag/snr_kl"], metrics["diag/snr_kl_stored"], rtol=2e-3)
    assert np.isfinite(metrics["diag/snr"]) and metrics["diag/snr_kl"] > 0
    assert metrics["diag/gradient_value"] == 0 and np.isnan(metrics["diag/cosine_value"])
    np.testing.assert_allclose(metrics["diag/cosine_kl"], 1.0, rtol=1e-5)
    total, kl = metrics["diag/gradient_total"], metrics["diag/gradient_kl"]
    np.testing.assert_allclose(total, kl, rtol=1e-5)

    # Ages: of the acted states that hold a record.
    mask = np.asarray(batches.valid & ~batches.rows.last)[:, :-1]
    ages = np.broadcast_to(np.array([10, 30, 10])[None, :, None], mask.shape)[mask]
    np.testing.assert_allclose(metrics["diag/record_age"], ages.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["diag/record_age_p95"], np.percentile(ages, 95), rtol=1e-5)


# ---------------------------------------------------------------------------
# A whole run


@pytest.mark.parametrize("preset, seeds", [("po_mpc", 2), ("tdmpc2", 1)])
def test_every_metric_of_a_run_and_what_means_nothing_is_nan(preset, seeds):
    config = tiny.run(preset, train__num_seeds=seeds)
    env = envs.make(config.env.task, 1)
    spec = acting.build(config.agent, env.observation_size, env.action_size)

    @jax.jit
    def play():
        state = train.init(config, env, spec)
        rows = state.replay.rows._replace(
            obs=jax.random.normal(jax.random.key(3), state.replay.rows.obs.shape),
            last=jnp.zeros_like(state.replay.rows.last),
            reward=jnp.ones_like(state.replay.rows.reward),
        )
        ring = state.replay._replace(rows=rows, inserted=jnp.int32(32))
        state = state._replace(replay=ring, updates=jnp.int32(12))
        return diagnostics.evaluate_run(state, config, env=env, spec=spec)

    episodes, metrics = play()
    assert episodes.returns.shape == (seeds, config.train.eval_episodes)
    assert set(metrics) == set(diagnostics.NAMES)
    assert all(value.shape == (seeds,) for value in metrics.values())
    np.testing.assert_array_equal(metrics["diag/record_age"], 12)
    # Reward 1 in every step, of which a fresh critic predicts nothing.
    np.testing.assert_allclose(metrics["diag/value_error_critic"], -100, rtol=1e-3)
    unknown = {name for name, value in metrics.items() if not np.isfinite(value).any()}
    expected = {"diag/cosine_value"}  # fresh heads have no slope
    if preset == "tdmpc2":
        expected |= {"diag/cosine_kl", "diag/snr_kl", "diag/snr_stored", "diag/snr_kl_stored"}
    assert unknown == expected


# ---------------------------------------------------------------------------
# Pictures


def a_run(folder, names=diagnostics.NAMES):
    folder.mkdir()
    env = {"task": "probe/lqr", "action_repeat": 1}
    (folder / "config.json").write_text(json.dumps({"env": env}))
    lines = ["decisions,seed," + ",".join(names)]
    for decisions in (100, 200):
        for seed in (0, 1):
            values = [
                "" if "stored" in n else str(decisions * (i + 1.0)) for i, n in enumerate(names)
            ]
            lines += [
                f"{decisions},{seed}," + ",".join(values),
                f"{decisions + 50},{seed}," + "," * (len(names) - 1),
            ]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_picture_of_all_diagnostics(tmp_path):
    runs = [a_run(tmp_path / "one"), a_run(tmp_path / "two")]
    out = tmp_path / "picture.png"
    assert plot.main(["--diagnostics", str(runs[0]), f"--out={out}"]) == 0
    single = out.read_bytes()
    assert plot.main(["--diagnostics", *map(str, runs), f"--out={out}"]) == 0
    assert single[:4] == b"\x89PNG" and out.read_bytes() != single
    share = next(p for p in diagnostic_figures.PANELS if "share" in p.title)
    found = [diagnostic_figures.curves(runs[0], line) for line in share.lines]
    np.testing.assert_array_equal(found[0][1].decisions, [100, 200])
    np.testing.assert_allclose(sum(curves[1].values for curves in found), 1.0)


def test_every_metric_that_is_drawn_exists_and_the_other_way_round():
    drawn = {f"diag/{line.column}" for panel in diagnostic_figures.PANELS for line in panel.lines}
    assert drawn <= set(diagnostics.NAMES)
    left = {name.removeprefix("diag/") for name in set(diagnostics.NAMES) - drawn}
    assert left == {"value_planner", "value_critic", "gradient_total"}


def test_a_run_without_diagnostics_is_refused_in_one_line(tmp_path, capsys):
    run = a_run(tmp_path / "old", names=("eval/return",))
    assert plot.main(["--diagnostics", str(run), f"--out={tmp_path / 'no.png'}"]) == 2
    assert plot.main(["--diagnostics", f"--results={tmp_path}"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "no diagnostics" in errors[0] and "--diagnostics" in errors[1]
    assert not (tmp_path / "no.png").exists()
