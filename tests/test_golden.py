"""The implementation against the float64 numpy reference of tests/reference.py."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
from setting import (
    SMALL,
    STEPS,
    WINDOWS,
    A,
    Setting,
    draw,
    layer,
    mlp,
    near,
    random_params,
    scales,
)

from pomcp_jax import (
    actors,
    diagnostics,
    losses,
    maths,
    model_loss,
    mppi,
    networks,
    policy_loss,
    presets,
    world_model,
)
from pomcp_jax import config as config_lib
from pomcp_jax.config import MppiConfig, PolicyConfig
from pomcp_jax.maths import Bins
from pomcp_jax.types import Gaussian

F32 = 1e-5
F64 = 1e-11


def both(implementation, reference, *arrays, f32=F32, f64=F64):
    """Compare in float32, then in float64, on identical inputs."""
    arrays = [np.asarray(a, np.float32) for a in arrays]
    expected = reference(*(a.astype(np.float64) for a in arrays))
    implementation = jax.jit(implementation)
    near(implementation(*(jnp.asarray(a) for a in arrays)), expected, f32)
    with jax.enable_x64(True):
        out = implementation(*(jnp.asarray(a.astype(np.float64)) for a in arrays))
        assert out.dtype == jnp.float64
        near(out, expected, f64)


# ----------------------------------------------------------------------- maths


def test_symlog_symexp():
    x = np.concatenate([draw(0, 50, scale=30.0), [0.0, 1e-6, -1e-6, 2e4, -2e4]])
    both(maths.symlog, ref.symlog, x)
    both(maths.symexp, ref.symexp, x[:50] / 10)


@pytest.mark.parametrize("num,low,high", [(101, -10.0, 10.0), (21, -3.0, 5.0)])
def test_two_hot(num, low, high):
    bins = Bins(num, low, high)
    x = np.concatenate([draw(1, 60, scale=50.0), [0.0, 1e9, -1e9, 2.2e4, -2.2e4, 1e-4]])
    x = x.reshape(3, 22)
    logits = draw(2, 3, 22, num, scale=3.0)
    # float32 places x among 100 bins to within 1e-5 of a bin.
    both(lambda x: maths.two_hot(x, bins), lambda x: ref.two_hot(x, num, low, high), x, f32=3e-5)
    both(
        lambda y: maths.two_hot_decode(y, bins), lambda y: ref.two_hot_decode(y, low, high), logits
    )
    both(
        lambda y, x: maths.two_hot_cross_entropy(y, x, bins),
        lambda y, x: ref.two_hot_cross_entropy(y, x, low, high),
        logits,
        x,
    )


def test_two_hot_decode_and_cross_entropy_gradients():
    bins = Bins(21, -10.0, 10.0)
    logits, x = draw(3, 21), 17.0

    def sums(y, weight):
        decode = maths.two_hot_decode(y, bins)
        return weight * decode + (1.0 - weight) * maths.two_hot_cross_entropy(y, target, bins)

    with jax.enable_x64(True):
        target = jnp.asarray(x)
        gradient = jax.jit(jax.grad(sums))
        decode, cross = gradient(jnp.asarray(logits), 1.0), gradient(jnp.asarray(logits), 0.0)
    near(decode, ref.numerical_gradient(ref.two_hot_decode, logits), 1e-7)
    near(cross, ref.numerical_gradient(lambda y: ref.two_hot_cross_entropy(y, x), logits), 1e-7)


def test_mish_and_its_gradient():
    x = np.concatenate([draw(4, 60, scale=8.0), [0.0, 19.9, 20.1, 60.0, -60.0, 88.0, -100.0]])
    both(maths.mish, ref.mish, x)
    numerical = ref.numerical_gradient(lambda x: np.sum(ref.mish(x)), x[:60])
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(maths.mish(x))))
    near(gradient(jnp.asarray(x[:60], jnp.float32)), numerical, F32)
    with jax.enable_x64(True):
        near(gradient(jnp.asarray(x[:60])), numerical, 1e-6)
    assert np.all(np.isfinite(gradient(jnp.asarray([1e4, -1e4, 3e38], jnp.float32))))


@pytest.mark.parametrize("group", [4, 8])
def test_simnorm(group):
    x = draw(5, 2, 3, 64, scale=4.0)
    both(lambda x: maths.simnorm(x, group), lambda x: ref.simnorm(x, group), x)


def test_gaussians():
    x, mean, mean2 = draw(6, 3, 4, 5, 6)
    std, std2 = np.exp(draw(7, 2, 4, 5, 6, scale=0.7))
    both(
        lambda x, m, s: maths.gaussian_log_prob(x, Gaussian(m, s)),
        ref.gaussian_log_prob,
        x,
        mean,
        std,
    )
    both(lambda s: maths.gaussian_entropy(Gaussian(s, s)), ref.gaussian_entropy, std)
    both(
        lambda *a: maths.gaussian_kl(Gaussian(*a[:2]), Gaussian(*a[2:])),
        ref.gaussian_kl,
        mean,
        std,
        mean2,
        std2,
    )
    both(
        lambda x: actors.bounded_log_std(x, -3.0, 1.0),
        lambda x: ref.bounded_log_std(x, -3.0, 1.0),
        3 * x,
    )


def test_percentiles_and_scale():
    x, mask = draw(8, 9, 31, scale=5.0), draw(9, 9, 31) > 0
    both(maths.percentile_range, ref.percentile_spread, x)
    both(lambda x: maths.percentile_range(x, jnp.asarray(mask)),
         lambda x: ref.percentile_spread(x[mask]), x)  # fmt: skip
    for spread in (0.2, 1.0, 37.0):
        both(lambda s, d: maths.update_scale(s, d, 0.01), ref.running_scale_update, 3.0, spread)


@pytest.mark.parametrize("rho", [0.5, 1.0])
def test_rho_mean(rho):
    loss = draw(10, 4, 17)
    for mask in (np.ones((4, 17), bool), draw(11, 4, 17) > 0.3, np.zeros((4, 17), bool)):
        poisoned = np.where(mask, loss, np.nan)
        clean = np.where(mask, loss, 0.0)
        for values in (clean, poisoned):
            both(
                lambda x, mask=mask: maths.rho_mean(x, jnp.asarray(mask), rho),
                lambda x, mask=mask: ref.rho_mean(np.nan_to_num(x), mask, rho),
                values,
            )


# -------------------------------------------------------------------- networks


def test_normed_linear():
    x, y = draw(12, 7, 5), draw(13, 7, 3)
    module = networks.NormedLinear(11)
    params = random_params(lambda key: networks.init(module, key, 5, 3), 0)
    both_inputs = [np.asarray(a, np.float32) for a in (x, y)]
    expected = layer(
        jax.tree.map(lambda a: np.asarray(a, np.float64), params), both_inputs, ref.mish
    )
    apply = jax.jit(functools.partial(networks.apply, module))
    near(apply(params, *both_inputs), expected, F32)


def test_world_model_forward():
    nets = world_model.build(SMALL, 3)
    params = random_params(lambda key: world_model.init(key, SMALL, 6, 3), 1)
    policy = random_params(lambda key: world_model.init_policy(key, SMALL, 3), 2)
    obs, action = (np.asarray(draw(s, 9, n), np.float32) for s, n in ((14, 6), (15, 3)))
    norm = functools.partial(ref.simnorm, group=4)
    latent = mlp(params.encoder, [obs], norm)
    z, a = jnp.asarray(latent, jnp.float32), jnp.asarray(action)

    @jax.jit
    def forward(params, policy):
        return dict(
            latent=world_model.encode(nets, params.encoder, jnp.asarray(obs)),
            next=world_model.dynamics(nets, params.dynamics, z, a),
            reward=world_model.reward_logits(nets, params.reward, z, a),
            value=world_model.value_logits(nets, params.value, z, a),
            policy=world_model.policy(nets, policy, z),
        )

    out = forward(params, policy)
    near(out["latent"], latent, F32)
    near(out["next"], mlp(params.dynamics, [latent, action], norm), F32)
    near(out["reward"], mlp(params.reward, [latent, action]), F32)
    for head in range(2):
        one = jax.tree.map(lambda x, head=head: x[head], params.value)
        near(out["value"][head], mlp(one, [latent, action]), F32)
    raw = mlp(policy, [latent])
    near(np.concatenate(out["policy"], axis=-1), raw, F32)


# --------------------------------------------------------------------- planner

H, N, P, E, J = 3, 40, 6, 8, 5


def toy_params(seed, *, gamma=0.9, offset=0.0, bad=np.inf):
    """A nonlinear model; returns are NaN where the first latent passes ``bad``."""
    rng = np.random.default_rng(seed)
    return {
        "z": rng.normal(size=(3, 3)),
        "a": rng.normal(size=(3, A)),
        "r": rng.normal(size=3),
        "v": rng.normal(size=3),
        "pi": rng.normal(size=(A, 3)),
        "gamma": np.asarray(gamma),
        "offset": np.asarray(offset),
        "bad": np.asarray(bad),
    }


def toy_step(xp, p, z, a):
    new = xp.tanh(p["z"] @ z + p["a"] @ a)
    reward = 3.0 * xp.cos(2.0 * p["r"] @ new) - 0.5 * a @ a + p["offset"]
    discount = p["gamma"] * (1.0 - 0.3 * new[1] * new[1])
    return new, xp.where(new[0] > p["bad"], xp.nan, reward), discount


def toy_value(xp, p, z):
    return 5.0 * xp.sin(p["v"] @ z)


MODEL = mppi.ModelFns(
    step=lambda p, z, a: toy_step(jnp, p, z, a),
    value=lambda p, key, z: toy_value(jnp, p, z),
    sample_action=lambda p, key, z: jnp.tanh(
        p["pi"] @ z + 0.5 * jax.random.normal(key, (A,), z.dtype)
    ),
)
PLAN = {
    True: jax.jit(functools.partial(mppi.plan, model=MODEL)),
    False: jax.jit(functools.partial(mppi.plan, model=MODEL._replace(sample_action=None))),
}
PROPOSE = jax.jit(
    functools.partial(
        mppi.propose, model=MODEL, config=MppiConfig(horizon=H, num_proposals=P, num_samples=N)
    )
)

SCENARIOS = {
    "cold": dict(),
    "warm": dict(warm=True),
    "discounts": dict(warm=True, gamma=0.4),
    "nan_best": dict(offset=-20.0, bad=0.7),  # zero would outrank every other return
    "nan_worst": dict(offset=20.0, bad=-0.2),
    "all_nan": dict(bad=-2.0),
    "greedy": dict(explore=0.0, warm=True),
    "noisy": dict(explore=2.5),
}


def run_plan(config, with_proposals, name, seed, dtype):
    """The implementation's plan and the reference's, fed with the same numbers."""
    scenario = dict(SCENARIOS[name])
    explore, warm = scenario.pop("explore", 1.0), scenario.pop("warm", False)
    host = jax.tree.map(lambda x: x.astype(dtype), toy_params(seed, **scenario))
    root = draw(seed + 100, 3).astype(dtype)
    mean = (draw(seed + 200, H, A, scale=0.5) if warm else np.zeros((H, A))).astype(dtype)
    params = jax.tree.map(jnp.asarray, host)
    key = jax.random.key(seed)
    out = PLAN[with_proposals](
        params, key, jnp.asarray(root), mppi.PlanState(jnp.asarray(mean)), config=config,
        explore=explore,
    )  # fmt: skip

    key_propose, key_noise, _, key_select, key_explore = jax.random.split(key, 5)
    proposals = np.zeros((0, H, A))
    if with_proposals:
        proposals, returns = PROPOSE(params, key_propose, jnp.asarray(root))
        proposals = np.asarray(proposals)
    wide = jax.tree.map(lambda x: x.astype(np.float64), host)
    step = functools.partial(toy_step, np, wide)
    value = functools.partial(toy_value, np, wide)
    shape = (N - len(proposals), H, A)
    expected = ref.mppi(
        step,
        value,
        mean,
        proposals,
        [mppi.sample_noise(key_noise, i, shape) for i in range(J)],
        jax.random.gumbel(key_select, (E,)),
        jax.random.normal(key_explore, (A,)),
        root.astype(np.float64),
        num_elites=E,
        temperature=config.temperature,
        std_min=config.std_min,
        std_max=config.std_max,
        select=config.select,
        explore=explore,
        record=config.record,
    )
    if with_proposals:
        own = [ref.rollout_return(step, value, root.astype(np.float64), p) for p in proposals]
        np.testing.assert_allclose(returns, own, rtol=1e-4 if dtype == np.float32 else 1e-9)
    return out, expected


def compare_plan(out, expected, tol):
    actual = {
        "action": out.action,
        "actions": out.actions,
        "mode": out.mode,
        "prior_mean": out.prior.mean,
        "prior_std": out.prior.std,
        "value": out.value,
        "next_mean": out.next_state.mean,
    }
    for name, value in expected.items():
        # actions and stds are of order one; values of order ten
        size = max(1.0, float(np.max(np.abs(value))))
        np.testing.assert_allclose(actual[name], value, rtol=0, atol=tol * size, err_msg=name)


def mppi_config(select, record, temperature=0.5):
    return MppiConfig(
        horizon=H, num_samples=N, num_proposals=P, num_elites=E, iterations=J,
        temperature=temperature, select=select, record=record,
    )  # fmt: skip


@pytest.mark.parametrize(
    "record,select,with_proposals",
    [
        ("sampled_elite", "sample", True),
        ("sampled_elite", "argmax", True),
        ("mean", "sample", False),
        ("best_elite", "argmax", True),
    ],
)
def test_plan(record, select, with_proposals):
    config = mppi_config(select, record)
    with jax.enable_x64(True):
        for seed, name in enumerate(SCENARIOS):
            out, expected = run_plan(config, with_proposals, name, seed, np.float64)
            compare_plan(out, expected, 1e-9)


def test_plan_in_float32_and_other_numbers():
    """Other temperatures and bounds reuse the compiled plan."""
    base = mppi_config("sample", "sampled_elite")
    for seed, name in enumerate(SCENARIOS):
        out, expected = run_plan(base, True, name, seed, np.float32)
        compare_plan(out, expected, F32)
    for change in (
        {"temperature": 2.0}, {"std_min": 0.3, "std_max": 0.8}, {"temperature": 0.0}
    ):  # fmt: skip
        config = config_lib.replace(base, change)
        out, expected = run_plan(config, True, "warm", 3, np.float32)
        compare_plan(out, expected, F32)


def test_proposals_follow_the_policy_with_fresh_noise():
    with jax.enable_x64(True):
        host = toy_params(0)
        params, root = jax.tree.map(jnp.asarray, host), draw(1, 3)
        actions, _ = PROPOSE(params, jax.random.key(0), jnp.asarray(root))
        actions = np.asarray(actions)
    eps = np.zeros_like(actions)
    for p in range(P):
        z = root
        for t in range(H):
            eps[p, t] = (np.arctanh(actions[p, t]) - host["pi"] @ z) / 0.5
            z, _, _ = toy_step(np, host, z, actions[p, t])
    assert len(np.unique(np.round(eps, 6))) == eps.size
    assert 0.5 < np.std(eps) < 1.5 and np.max(np.abs(eps)) < 5.0


# --------------------------------------------------------------- policy losses

T, B, D = 3, 5, 4
RAW, EPS, CENTRE = draw(20, 3, T, B, D)
LOG_STD = draw(21, T, B, D, scale=0.5) - 0.7
PRIOR_MEAN = np.tanh(draw(22, T, B, D))
PRIOR_STD = np.clip(np.exp(draw(23, T, B, D) - 1.5), 0.01, 2.0)
PRIOR_STD[0, 0] = 0.02  # under the floor of .05
MASK = np.ones((T, B), bool)
MASK[1:, 2] = MASK[2, 4] = False
SCALE_Q, SCALE_KL = 3.0, 1.7


def heads(xp, action, centre):
    one = 3.0 * xp.sum(xp.sin(2.0 * action + centre), axis=-1)
    return one, 4.0 * xp.sum(xp.cos(action - centre), axis=-1) - 2.0


def q_np(reduce):
    return lambda a: {"min": np.min, "mean": np.mean}[reduce](heads(np, a, CENTRE), axis=0)


def row(squash="clip", **policy):
    return squash, PolicyConfig(**policy)


# Every row by hand, from the published table of the methods.
ROWS = {
    "tdmpc2": row("tanh", q_coef=1.0, kl_coef=0.0, prior="none"),
    "tdmpc_square": row(
        "tanh", q_coef=1.0, kl_coef=1 / 61, kl_dim_power=2.0, divergence="cross_entropy",
        prior="stored", prior_std_min=0.05, kl_scale="q", kl_gate=2.0, entropy="squashed",
        last_state=False,
    ),
    "bmpc": row(
        q_coef=0.0, kl_coef=1.0, kl_dim_power=-1.0, prior="replanned", last_state=False,
    ),
    "bmpc_v3": row(
        q_coef=0.0, kl_coef=1.0, kl_dim_power=-1.0, prior="replanned", last_state=False,
    ),
    "boom": row(
        "tanh", q_coef=1.0, kl_coef=1 / 50, kl_dim_power=2.0, divergence="cross_entropy",
        prior="stored", prior_std_from="policy", prior_std_min=0.05, kl_scale="q", kl_gate=2.0,
        value_weight=True, q_reduce="min", entropy="squashed", last_state=False,
    ),
    "po_mpc_direct": row(prior="stored"),
    "po_mpc_direct_clip_straight_through": row("clip_straight_through", prior="stored"),
    "po_mpc_direct_0.1": row(prior="stored", kl_coef=0.1),
    "po_mpc_learned": row(prior="learned"),
    "po_mpc_learned_9": row(prior="learned", kl_coef=9.0),
}  # fmt: skip


def reference_loss(name, raw, log_std, scale_q, alpha, frozen=None):
    """Loss [T, B] of a row; ``frozen`` is the (raw, log_std) where a derivative is taken."""
    pair = (raw, log_std)
    at = pair if frozen is None else frozen
    q = q_np("min" if name == "boom" else "mean")
    stored = (PRIOR_MEAN, PRIOR_STD)
    if name == "tdmpc2":
        return ref.tdmpc2(*pair, EPS, q, scale_q, alpha)
    if name == "tdmpc_square":
        return ref.tdmpc_square(*pair, EPS, q, *stored, scale_q, alpha)
    if name == "bmpc":
        return ref.bmpc(*pair, EPS, *stored, SCALE_KL, alpha)
    if name == "bmpc_v3":
        return ref.bmpc_v3(*pair, EPS, *stored, SCALE_KL, alpha)
    if name == "boom":
        return ref.boom(
            *pair, EPS, q, PRIOR_MEAN, scale_q, alpha=alpha,
            frozen_std=np.exp(at[1]), frozen_q=q(ref.squash("tanh", *at, EPS)[0]),
        )  # fmt: skip
    coef = ROWS[name][1].kl_coef
    if name.startswith("po_mpc_learned"):
        phi = np.arctanh(PRIOR_MEAN), np.log(PRIOR_STD)
        return ref.po_mpc_learned(*pair, EPS, q, *phi, scale_q, SCALE_KL, coef, alpha)
    offset = None
    if name.endswith("straight_through"):
        unclipped = np.tanh(at[0]) + np.exp(at[1]) * EPS
        offset = np.clip(unclipped, -1.0, 1.0) - unclipped
    return ref.po_mpc_direct(
        *pair, EPS, q, *stored, scale_q, SCALE_KL, coef, alpha, offset=offset
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames="squash")
def jax_loss(raw, log_std, data, scale_q, config, squash):
    sample = actors.squash(raw, log_std, data["eps"], squash)
    q = model_loss.reduce_heads(
        jnp.stack(heads(jnp, sample.action, data["centre"])), config.q_reduce
    )
    kl, weight = None, 1.0
    if config.value_weight:
        weight = losses.value_weights(q, jnp.ones(q.shape, bool), scale_q, config)
    if config.prior != "none":
        prior = Gaussian(data["mean"], data["std"])
        kl = losses.divergence(sample, losses.prepare_prior(prior, sample, config), config)
    out = losses.policy_loss(
        sample, q, kl, scale_q=scale_q, scale_kl=data["scale_kl"], weight=weight, config=config
    )
    return maths.rho_mean(out.loss, data["mask"], 0.5), out.loss


jax_loss_and_gradient = jax.jit(
    jax.value_and_grad(jax_loss, argnums=(0, 1), has_aux=True), static_argnames="squash"
)


def numbers(dtype):
    data = dict(eps=EPS, centre=CENTRE, mean=PRIOR_MEAN, std=PRIOR_STD, scale_kl=SCALE_KL)
    data = {k: jnp.asarray(v, dtype) for k, v in data.items()}
    return data | {"mask": jnp.asarray(MASK)}


@pytest.mark.parametrize("name", ROWS)
def test_policy_loss_and_gradient(name):
    squash, config = ROWS[name]
    config = config_lib.replace(config, {"entropy_coef": 0.01})  # large enough to be seen
    point = RAW, LOG_STD
    expected = reference_loss(name, *point, SCALE_Q, 0.01)

    def total(x):
        loss = reference_loss(name, x[0], x[1], SCALE_Q, 0.01, frozen=point)
        return ref.rho_mean(loss, MASK, 0.5)

    numerical = ref.numerical_gradient(total, np.stack(point))
    assert np.max(np.abs(numerical)) > 1e-3
    for x64, tol, gradient_tol in ((False, F32, 3e-5), (True, 1e-9, 1e-6)):
        with jax.enable_x64(x64):
            dtype = jnp.float64 if x64 else jnp.float32
            arrays = [jnp.asarray(x, dtype) for x in point]
            (mean, loss), gradient = jax_loss_and_gradient(
                *arrays, numbers(dtype), jnp.asarray(SCALE_Q, dtype), config, squash
            )
            near(loss, expected, tol)
            near(mean, ref.rho_mean(expected, MASK, 0.5), tol)
            near(np.stack(gradient), numerical, gradient_tol)


@pytest.mark.parametrize("name", ["tdmpc_square", "boom", "tdmpc2", "po_mpc_direct"])
@pytest.mark.parametrize("scale_q", [1.5, 2.0, 2.001])
def test_gates(name, scale_q):
    squash, config = ROWS[name]
    expected = reference_loss(name, RAW, LOG_STD, scale_q, 1e-4)
    with jax.enable_x64(True):
        _, loss = jax_loss(
            jnp.asarray(RAW), jnp.asarray(LOG_STD), numbers(jnp.float64),
            jnp.asarray(scale_q), config, squash,
        )  # fmt: skip
        near(loss, expected, 1e-9)


# Loss of the row, log-std bounds, target reduction, Q reduction, critic, re-planning interval.
PRESET_ROWS = {
    "tdmpc2": ("tdmpc2", (-10.0, 2.0), "min", "mean", "q", 0),
    "tdmpc_square": ("tdmpc_square", (-10.0, 2.0), "min", "mean", "q", 0),
    "boom": ("boom", (-10.0, 2.0), "min", "min", "q", 0),
    "bmpc": ("bmpc", (-3.0, 1.0), "mean", "mean", "v", 10),
    "bmpc_v3": ("bmpc_v3", (-3.0, 1.0), "mean", "mean", "q", 10),
    "po_mpc_direct": ("po_mpc_direct_clip_straight_through", (-3.0, 1.0), "min", "mean", "q", 0),
    "po_mpc": ("po_mpc_learned", (-3.0, 1.0), "min", "mean", "q", 0),
    "po_mpc_forward": ("po_mpc_learned", (-3.0, 1.0), "min", "mean", "q", 0),
}


@pytest.mark.parametrize("name", PRESET_ROWS)
def test_presets_have_the_loss_of_their_row(name):
    """With the preset's own configuration instead of the one written by hand."""
    row_name, bounds, target_reduce, q_reduce, critic, interval = PRESET_ROWS[name]
    agent = presets.get(name)
    expected = reference_loss(row_name, RAW, LOG_STD, SCALE_Q, 1e-4)
    with jax.enable_x64(True):
        _, loss = jax_loss(
            jnp.asarray(RAW), jnp.asarray(LOG_STD), numbers(jnp.float64),
            jnp.asarray(SCALE_Q), agent.policy, agent.world_model.squash,
        )  # fmt: skip
        near(loss, expected, 1e-9)
    assert (agent.world_model.log_std_min, agent.world_model.log_std_max) == bounds
    assert (agent.critic.target_reduce, agent.policy.q_reduce) == (target_reduce, q_reduce)
    assert (agent.world_model.critic, agent.replan.interval) == (critic, interval)
    assert agent.prior.divergence == ("forward" if name == "po_mpc_forward" else "reverse")
    assert agent.policy.last_state == (name in ("tdmpc2", "po_mpc", "po_mpc_forward"))
    wide = name in ("tdmpc_square", "boom")
    record = ("action", np.exp(2.0)) if wide else ("standard", 1.0)
    assert (agent.policy.seed_record, agent.policy.seed_std) == record


def test_presets_of_other_strengths():
    strong = presets.po_mpc(9.0)
    assert strong.policy.kl_coef == 9.0 and presets.po_mpc() != strong
    assert presets.get("boom_many_actions").policy.kl_coef == 1e-3
    assert presets.get("boom_many_actions") == presets.boom(1e-3)
    relative, gated = (
        config_lib.flatten(preset(2.0))
        for preset in (presets.po_mpc_relative, presets.po_mpc_gated)
    )
    changed = {name: value for name, value in gated.items() if value != relative[name]}
    assert changed == {"prior.gate": True, "prior.gate_value": "critic"}


@pytest.mark.parametrize("kind", ["tanh", "clip", "clip_straight_through"])
def test_squash(kind):
    for index in range(3):
        both(
            lambda *a, i=index: (
                lambda s: (s.action, s.dist.mean, s.dist.std)[i]
            )(actors.squash(*a, kind)),
            lambda *a, i=index: ref.squash(kind, *a)[i],
            RAW,
            LOG_STD,
            3 * EPS,
        )  # fmt: skip


@pytest.mark.parametrize("kind", ["gaussian", "squashed"])
def test_entropy_bonus(kind):
    config = PolicyConfig(entropy=kind)
    both(
        lambda *a: losses.entropy_bonus(actors.squash(*a, "tanh"), config),
        lambda m, s, e: ref.entropy_bonus(kind, ref.squash("tanh", m, s, e)[0], s, e),
        RAW, LOG_STD, EPS, f32=3e-5,
    )  # fmt: skip


def test_forward_and_nll_divergences():
    def implementation(kind):
        config = PolicyConfig(divergence=kind)
        return lambda m, s, e, pm, ps: losses.divergence(
            actors.squash(m, s, e, "clip"), Gaussian(pm, ps), config
        )

    arrays = RAW, LOG_STD, EPS, PRIOR_MEAN, PRIOR_STD
    both(
        implementation("forward"),
        lambda m, s, e, pm, ps: np.sum(
            ref.gaussian_kl(pm, ps, *ref.squash("clip", m, s, e)[1:]), axis=-1
        ),
        *arrays,
    )
    both(
        implementation("nll"),
        lambda m, s, e, pm, ps: -ref.gaussian_log_prob(pm, *ref.squash("clip", m, s, e)[1:]),
        *arrays,
    )


def test_td_targets():
    rng = np.random.default_rng(30)
    reward, terminated, next_q = rng.normal(size=7), rng.integers(0, 2, 7), rng.normal(size=(2, 7))
    for reduce in ("min", "mean"):
        both(
            lambda r, d, q, k=reduce: losses.td_target(r, d, model_loss.reduce_heads(q, k), 0.97),
            lambda r, d, q, k=reduce: ref.q_target(r, d, 0.97, q, k),
            reward, terminated, next_q,
        )  # fmt: skip
    both(
        lambda r, d, v: losses.td_target(r, d, v, 0.97),
        lambda r, d, v: ref.v_target(r, d, 0.97, v),
        reward, terminated, next_q[0],
    )  # fmt: skip


# ------------------------------------------------------- whole updates, float32


@pytest.mark.parametrize("reduce,actor", [("min", "policy"), ("mean", "prior")])
def test_q_targets(reduce, actor):
    case = Setting({"critic.target_reduce": reduce, "critic.target_actor": actor})
    key = jax.random.key(5)
    out = case.run(
        model_loss.targets,
        case.agent, case.target, case.batch, key,
    )  # fmt: skip
    eps = np.asarray(jax.random.normal(jax.random.split(key)[0], (STEPS, WINDOWS, A)), np.float64)
    latents = case.encode(case.rows.obs)
    (action, _, _), _, _ = case.actor(getattr(case, actor), latents[1:], eps)
    expected = ref.q_target(
        case.rows.reward[:-1], case.rows.terminated[:-1], case.config.optimizer.discount,
        case.values(case.target, latents[1:], action), reduce,
    )  # fmt: skip
    near(out.next_latent, latents[1:], F32)
    near(out.value, expected, 3e-5)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_lambda_returns(weight):
    """Against the weighted sum of n-step returns, per window, with ends at every place."""
    rng = np.random.default_rng(31)
    reward, value = rng.normal(size=(2, 4, 32))
    terminated, transition = rng.random((2, 4, 32)) < np.array([0.2, 0.7])[:, None, None]
    found = losses.lambda_returns(
        *(jnp.asarray(x, jnp.float32) for x in (reward, terminated, value)),
        jnp.asarray(transition), discount=0.9, td_lambda=weight,
    )  # fmt: skip
    for window in range(32):
        at = (slice(None), window)
        expected = ref.lambda_returns(
            reward[at], terminated[at], 0.9, value[at], transition[at], weight
        )
        near(found[at], expected, F32)


def test_what_follows_an_end_is_not_in_a_return():
    ones = jnp.ones((3, 1))
    broken = ones.at[1:].set(jnp.nan)
    returns = losses.lambda_returns(
        broken, 0.0 * ones, ones, jnp.array([[True], [False], [False]]), discount=0.5, td_lambda=1.0
    )
    assert returns[0, 0] == 1.5


@pytest.mark.parametrize("squash", ["tanh", "clip"])
def test_targets_without_noise(squash):
    changes = {"critic.target_action": "mode", "world_model.squash": squash}
    if squash == "tanh":
        changes |= {"policy.prior": "none", "policy.kl_coef": 0.0}
    case = Setting(changes)
    out = case.run(model_loss.targets, case.agent, case.target, case.batch, jax.random.key(5))
    latents = case.encode(case.rows.obs)[1:]
    (action, _, _), _, _ = case.actor(case.policy, latents, 0.0)
    expected = ref.q_target(
        case.rows.reward[:-1], case.rows.terminated[:-1], case.config.optimizer.discount,
        case.values(case.target, latents, action), "min",
    )  # fmt: skip
    near(out.value, expected, 3e-5)


@pytest.mark.parametrize("actor", ["stored", "best"])
def test_targets_of_stored_plans(actor):
    case = Setting({"critic.target_actor": actor, "critic.td_lambda": 0.6})
    key = jax.random.key(11)
    out = case.run(model_loss.targets, case.agent, case.target, case.batch, key)
    eps = np.asarray(jax.random.normal(jax.random.split(key)[0], (STEPS, WINDOWS, A)), np.float64)
    z, rows = case.encode(case.rows.obs)[1:], case.rows
    (action, _, _), _, _ = case.actor(case.policy, z, eps)
    own = case.values(case.target, z, action).min(0)
    planned = case.values(case.target, z, np.clip(rows.prior.mean[1:], -1, 1)).min(0)
    assert np.any(planned > own) and np.any(own > planned)
    value = planned if actor == "stored" else np.maximum(planned, own)
    value = np.where(rows.last[1:], own, value)
    mask = np.asarray(case.batch.transition)
    for window in range(WINDOWS):
        at = (slice(None), window)
        expected = ref.lambda_returns(
            rows.reward[:-1][at], rows.terminated[:-1][at], case.config.optimizer.discount,
            value[at], mask[at], 0.6,
        )  # fmt: skip
        # Rows after an episode's end are masked and have no meaning.
        near(np.asarray(out.value)[at][mask[at]], expected[mask[at]], 3e-5)


def test_v_targets():
    case = Setting({"world_model.critic": "v", "critic.target_reduce": "mean"})
    key = jax.random.key(6)
    agent = case.agent._replace(prior=None)
    out = case.run(model_loss.targets, agent, case.target, case.batch, key)
    eps = np.asarray(jax.random.normal(jax.random.split(key)[0], (STEPS, WINDOWS, A)), np.float64)
    here = case.encode(case.rows.obs)[:-1]
    (action, _, _), _, _ = case.actor(case.policy, here, eps)
    reward = ref.two_hot_decode(mlp(case.params.reward, [here, action]))
    following = case.values(case.target, case.dynamics(here, action)).mean(0)
    expected = ref.v_target(
        reward, case.rows.terminated[:-1], case.config.optimizer.discount, following
    )
    near(out.value, expected, 3e-5)


def test_model_loss():
    case = Setting({})
    opt = case.config.optimizer
    target = model_loss.Targets(
        jnp.asarray(case.encode(case.rows.obs)[1:], jnp.float32),
        jnp.asarray(draw(40, STEPS, WINDOWS, scale=20.0), jnp.float32),
    )
    total, terms = case.run(model_loss.loss, case.params, case.batch, target, jax.random.key(0))
    latents = case.roll_out()
    mask = (np.asarray(case.batch.valid) & ~case.rows.last)[:-1]
    gap = np.mean((latents[1:] - np.asarray(target.next_latent, np.float64)) ** 2, axis=-1)
    inputs = [latents[:-1], case.rows.action[:-1]]
    reward = ref.two_hot_cross_entropy(mlp(case.params.reward, inputs), case.rows.reward[:-1])
    value = np.mean([
        ref.two_hot_cross_entropy(
            mlp(jax.tree.map(lambda x, i=i: x[i], case.params.value), inputs),
            np.asarray(target.value, np.float64),
        )
        for i in range(2)
    ], axis=0)  # fmt: skip
    parts = [ref.rho_mean(x, mask, opt.rho) for x in (gap, reward, value)]
    near(terms.latents, latents, F32)
    near([terms.consistency, terms.reward, terms.value], parts, 3e-5)
    near(total, 20 * parts[0] + 0.1 * parts[1] + 0.1 * parts[2], 3e-5)


@pytest.mark.parametrize("kind", ["reverse", "forward"])
def test_prior_loss(kind):
    case = Setting({"prior.divergence": kind})
    latents = case.roll_out()
    total, aux = case.run(
        policy_loss.prior_loss,
        case.prior, case.params.value, jnp.asarray(latents, jnp.float32), case.batch,
        scales(4.0, 1.5)._replace(prior=jnp.asarray(1.3)),
    )  # fmt: skip
    _, raw, log_std = case.actor(case.prior, latents[:-1])
    record = case.rows.prior.mean[:-1], case.rows.prior.std[:-1]
    kl = ref.learned_prior_fit(raw, log_std, *record, 1.0, kind)
    mask = (np.asarray(case.batch.valid) & ~case.rows.last)[:-1]
    scale = ref.running_scale_update(1.3, ref.percentile_spread(kl[0][mask[0]]))
    near(aux.scale, scale, F32)
    near(total, ref.rho_mean(kl, mask, case.config.optimizer.rho) / scale, 3e-5)
    near(aux.kl, kl[mask].mean(), 3e-5)


@pytest.mark.parametrize(
    "tuning,log_multiplier,tolerance",
    [("fixed", 2.0, 0.0), ("calibrated", 2.0, 0.004), ("calibrated", 0.5, 0.0)],
)
def test_gate_by_the_critic(tuning, log_multiplier, tolerance):
    """Records whose mean action the critic prefers to the prior's own mean are fitted.

    A calibrated strength m also lets through what is worth less by
    ``tolerance = gate_tolerance S_Q (log m - 1)``, and a strength below e nothing more.
    """
    case = Setting({"prior.gate": True, "prior.gate_value": "critic", "policy.kl_tuning": tuning,
                    "prior.gate_tolerance": 0.004})  # fmt: skip
    latents = case.roll_out()
    _, aux = case.run(
        policy_loss.prior_loss,
        case.prior, case.params.value, jnp.asarray(latents, jnp.float32), case.batch,
        scales(4.0, 1.5)._replace(
            prior=jnp.asarray(1.3), log_multiplier=jnp.asarray(log_multiplier)),
    )  # fmt: skip
    z = latents[:-1]
    own = case.values(case.params.value, z, case.actor(case.prior, z)[0][1]).mean(0)
    record = np.clip(case.rows.prior.mean[:-1], -1, 1)
    mask = np.asarray(case.batch.transition)
    gain = (case.values(case.params.value, z, record).mean(0) - own)[mask]
    fitted = gain >= -tolerance * 4.0
    assert 0 < fitted.mean() < 1 and (tolerance == 0.0 or np.any(fitted & (gain < 0.0)))
    near(aux.fitted, fitted.mean(), F32)


def test_prior_weighted_by_advantage():
    """Records weigh ``exp(advantage / (temperature S_Q))``, at most e^3, with a mean of one."""
    changes = {"prior.weight": "advantage", "prior.advantage_temperature": 0.02}
    case = Setting(changes | {"prior.gate_value": "critic", "prior.divergence": "forward"})
    latents, mask = case.roll_out(), np.asarray(case.batch.transition)
    total, aux = case.run(
        policy_loss.prior_loss,
        case.prior, case.params.value, jnp.asarray(latents, jnp.float32), case.batch,
        scales(4.0, 1.5)._replace(prior=jnp.asarray(1.3)),
    )  # fmt: skip
    z, (mean, std) = latents[:-1], (x[:-1] for x in case.rows.prior)
    (_, own, _), raw, log_std = case.actor(case.prior, z)
    own, record = (
        case.values(case.params.value, z, a).mean(0) for a in (own, np.clip(mean, -1, 1))
    )
    advantage = (record - own) / (0.02 * 4.0)
    assert 0.1 < (advantage[mask] > 3.0).mean() < 0.9
    weight = np.where(mask, np.exp(np.minimum(advantage, 3.0)), 0.0)
    weight *= mask.sum() / weight.sum()
    kl = ref.learned_prior_fit(raw, log_std, mean, std, 1.0, "forward")
    scale = ref.running_scale_update(1.3, ref.percentile_spread((weight * kl)[0][mask[0]]))
    near(aux.scale, scale, 3e-5)
    near(total, ref.rho_mean(weight * kl, mask, case.config.optimizer.rho) / scale, 3e-5)
    near(aux.kl, kl[mask].mean(), 3e-5)


@pytest.mark.parametrize("prior,last_state", [("stored", False), ("learned", True)])
def test_actor_policy_loss(prior, last_state):
    """Scales from t = 0 of this batch, masks, T in {H, H + 1}, random noise."""
    case = Setting({"policy.prior": prior, "policy.last_state": last_state, "policy.kl_coef": 9.0})
    latents, key = case.roll_out(), jax.random.key(7)
    total, aux = case.run(
        policy_loss.policy_loss,
        case.policy, case.agent, jnp.asarray(latents, jnp.float32), case.batch,
        scales(4.0, 1.5), key,
    )  # fmt: skip
    steps = STEPS + last_state
    z = latents[:steps]
    eps = np.asarray(jax.random.normal(jax.random.split(key)[0], (steps, WINDOWS, A)), np.float64)
    (action, mean, std), raw, log_std = case.actor(case.policy, z, eps)
    mask = np.asarray(case.batch.valid)[:steps]
    if prior == "stored":
        mask = mask & ~case.rows.last[:steps]
        target = case.rows.prior.mean[:steps], case.rows.prior.std[:steps]
    else:
        target = case.actor(case.prior, z)[0][1:]

    def q(a):
        return case.values(case.params.value, z, a).mean(0)

    kl = np.sum(ref.gaussian_kl(mean, std, *target), axis=-1)
    first = mask[0]
    scale_q = ref.running_scale_update(4.0, ref.percentile_spread(q(action)[0][first]))
    scale_kl = ref.running_scale_update(1.5, ref.percentile_spread(kl[0][first]))
    loss = ref.po_mpc_direct(raw, log_std, eps, q, *target, scale_q, scale_kl, 9.0)
    near(aux.scales.q, scale_q, F32)
    near(aux.scales.kl, scale_kl, F32)
    near(total, ref.rho_mean(loss, mask, case.config.optimizer.rho), 3e-5)


@pytest.mark.parametrize("prior", ["stored", "learned"])
def test_values_relative_to_their_spread_over_the_priors_actions(prior):
    case = Setting({"policy.prior": prior, "policy.q_scale": "prior", "policy.last_state": False})
    latents, key = case.roll_out(), jax.random.key(12)
    _, aux = case.run(
        policy_loss.policy_loss,
        case.policy, case.agent, jnp.asarray(latents, jnp.float32), case.batch,
        scales(4.0, 1.5), key,
    )  # fmt: skip
    z = latents[:1]
    if prior == "stored":
        mean, std = case.rows.prior.mean[:1], case.rows.prior.std[:1]
    else:
        mean, std = case.actor(case.prior, z)[0][1:]
    noise = jax.random.normal(jax.random.fold_in(key, 2), (2, *mean[0].shape))
    q = [
        case.values(case.params.value, z, np.clip(mean + std * eps, -1.0, 1.0)).mean(0)
        for eps in np.asarray(noise, np.float64)
    ]
    mask = np.asarray(case.batch.transition)[:1]
    spread = np.sqrt(np.mean(np.square(q[0] - q[1])[mask]) / 2.0)
    near(aux.scales.q, 4.0 + 0.01 * (spread - 4.0), 3e-5)


def test_states_without_a_record_have_no_part_in_the_spread_under_it():
    """What fills a missing record is a placeholder, whatever its width; without any, nothing."""
    case = Setting({"policy.prior": "stored", "policy.q_scale": "prior", "policy.last_state": False,
                    "policy.data_record": "none"})  # fmt: skip
    latents, lacking = case.roll_out(), np.arange(WINDOWS) % 2 == 0

    def scale(made, width):
        prior = case.batch.rows.prior
        std = jnp.where(jnp.asarray(made < 0)[None, :, None], width, prior.std)
        rows = case.batch.rows._replace(
            prior=prior._replace(std=std),
            made=jnp.broadcast_to(jnp.asarray(made, jnp.int32), case.batch.valid.shape),
        )
        return case.run(
            policy_loss.policy_loss,
            case.policy, case.agent, jnp.asarray(latents, jnp.float32),
            case.batch._replace(rows=rows), scales(4.0, 1.5), jax.random.key(12),
        )[1].scales.q  # fmt: skip

    some = np.where(lacking, -1, 0)
    assert scale(some, 0.1) == scale(some, 1.0) != 4.0
    assert scale(some, 0.1) != scale(np.zeros_like(some), 0.1)
    assert scale(np.full_like(some, -1), 0.1) == 4.0


def test_without_a_value_term_a_gate_waits_for_nothing():
    case = Setting({"policy.prior": "stored", "policy.last_state": False, "policy.kl_gate": 2.0,
                    "policy.q_source": "none", "policy.q_coef": 0.0})  # fmt: skip
    opened = Setting({"policy.prior": "stored", "policy.last_state": False, "policy.kl_gate": 0.0,
                      "policy.q_source": "none", "policy.q_coef": 0.0})  # fmt: skip
    totals = [
        one.run(
            policy_loss.policy_loss,
            one.policy, one.agent, jnp.asarray(one.roll_out(), jnp.float32), one.batch,
            scales(1.0, 1.5), jax.random.key(2),
        )[0]
        for one in (case, opened)
    ]  # fmt: skip
    assert totals[0] == totals[1] > 1e-3


@pytest.mark.parametrize("choice", ["sample", "mode"])
@pytest.mark.parametrize("who", ["policy", "prior"])
def test_the_critic_is_judged_by_the_action_of_its_targets(choice, who):
    case = Setting({"critic.target_action": choice, "critic.target_actor": who})
    z, key = case.roll_out()[0], jax.random.key(4)
    spec = SimpleNamespace(nets=case.nets)
    seen = diagnostics.critic_value(spec, case.agent, key, jnp.asarray(z, jnp.float32), case.config)
    eps = np.asarray(jax.random.normal(key, (*z.shape[:-1], A)), np.float64)
    action = case.actor(getattr(case, who), z, eps if choice == "sample" else 0.0)[0][0]
    if choice == "mode":
        action = case.actor(getattr(case, who), z)[0][1]
    near(seen, case.values(case.params.value, z, np.clip(action, -1, 1)).mean(0), 3e-5)


def test_soft_target():
    """Q minus the price of the clipped KL, summed over dimensions."""
    case = Setting({"critic.soft_target": True})
    key = jax.random.key(8)
    out = case.run(
        functools.partial(model_loss.targets, kl_weight=0.3),
        case.agent, case.target, case.batch, key,
    )  # fmt: skip
    eps = np.asarray(jax.random.normal(jax.random.split(key)[0], (STEPS, WINDOWS, A)), np.float64)
    z = case.encode(case.rows.obs)[1:]
    (action, mean, std), _, _ = case.actor(case.policy, z, eps)
    kl = np.sum(ref.gaussian_kl(mean, std, *case.actor(case.prior, z)[0][1:]), axis=-1)
    expected = ref.q_target(
        case.rows.reward[:-1], case.rows.terminated[:-1], case.config.optimizer.discount,
        case.values(case.target, z, action), "min", penalty=0.3 * np.clip(kl, 0.0, 10.0),
    )  # fmt: skip
    near(out.value, expected, 3e-5)


@pytest.mark.parametrize("value_weight", [False, True])
def test_states_of_another_episode_do_not_matter(value_weight):
    """Neither the loss nor a scale may depend on the latents behind an episode's end."""
    case = Setting(
        {
            "policy.prior": "stored",
            "policy.last_state": False,
            "policy.value_weight": value_weight,
        }
    )
    latents = case.roll_out()
    elsewhere = np.where(np.asarray(case.batch.valid)[..., None], latents, latents[:, ::-1] ** 2)
    assert np.max(np.abs(elsewhere - latents)) > 0.05
    totals = [
        case.run(
            policy_loss.policy_loss,
            case.policy,
            case.agent,
            jnp.asarray(z, jnp.float32),
            case.batch,
            scales(1.0, 1.0),
            jax.random.key(9),
        )[0]
        for z in (latents, elsewhere)
    ]
    near(totals[1], totals[0], 1e-6)
