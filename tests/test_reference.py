"""The numpy reference satisfies the identities it was derived from."""

import numpy as np
import pytest
import reference as ref


def hermite(mean, std, n=60):
    """Nodes and weights of an expectation under the scalar N(mean, std)."""
    x, w = np.polynomial.hermite_e.hermegauss(n)
    return mean + std * x, w / np.sum(w)


def close(a, b, tol=1e-10):
    np.testing.assert_allclose(a, b, rtol=tol, atol=tol)


# ---------------------------------------------------------------- known values


def test_symlog_inverse_and_known_values():
    x = np.array([-1e4, -3.0, -1e-9, 0.0, 0.5, np.e - 1.0, 2e4])
    close(ref.symexp(ref.symlog(x)), x, 1e-12)
    close(ref.symlog(np.e - 1.0), 1.0)


def test_two_hot_round_trip_edges_and_interpolation():
    x = np.array([[-2e4, -7.3, 0.0], [0.2, 1e3, 1e6]])
    target = ref.two_hot(x, 101, -10.0, 10.0)
    assert target.shape == (2, 3, 101)
    close(target.sum(-1), np.ones((2, 3)))
    assert np.all(np.sum(target > 0, axis=-1) <= 2)
    bins = np.linspace(-10, 10, 101)
    close(target @ bins, np.clip(ref.symlog(x), -10, 10))
    close(ref.two_hot(1e30)[-1], 1.0)
    close(ref.two_hot(-1e30)[0], 1.0)
    close(ref.two_hot(ref.symexp(0.1))[50:52], [0.5, 0.5])
    with np.errstate(divide="ignore"):
        logits = np.log(target + 1e-300)
    close(ref.two_hot_decode(logits), ref.symexp(np.clip(ref.symlog(x), -10, 10)), 1e-9)


def test_two_hot_cross_entropy():
    assert abs(ref.two_hot_decode(np.zeros(101))) < 1e-12
    close(ref.two_hot_cross_entropy(np.zeros((2, 101)), [3.0, -4.0]), np.log(101) * np.ones(2))
    # its gradient is softmax - target
    rng = np.random.default_rng(0)
    logits = rng.normal(size=21)
    gradient = ref.numerical_gradient(lambda y: ref.two_hot_cross_entropy(y, 5.0), logits)
    close(gradient, np.exp(ref.log_softmax(logits)) - ref.two_hot(5.0, 21), 1e-8)


def test_simnorm_is_the_permuted_contiguous_one():
    x = np.random.default_rng(0).normal(size=(3, 32))
    out = ref.simnorm(x, 8)
    contiguous = x.reshape(3, 8, 4).swapaxes(1, 2)  # [3, group, entry]
    expected = np.exp(contiguous) / np.exp(contiguous).sum(-1, keepdims=True)
    close(out.reshape(3, 8, 4).swapaxes(1, 2), expected)
    close(out.sum(-1), 4.0 * np.ones(3))


def test_layer_norm_mish_and_split_inputs():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
    normed = ref.layer_norm(x, np.ones(3), np.zeros(3), eps=0.0)
    close(normed.mean(-1), np.zeros(5))
    close((normed**2).mean(-1), np.ones(5))
    close(ref.mish(np.array([0.0, 1.0, 800.0, -800.0])), [0.0, 0.8650983882673103, 800.0, 0.0])
    kernel, bias = rng.normal(size=(5, 7)), rng.normal(size=7)
    whole = ref.normed_linear([np.concatenate([x, y], -1)], [kernel], bias, np.ones(7), bias)
    split = ref.normed_linear([x, y], [kernel[:3], kernel[3:]], bias, np.ones(7), bias)
    close(whole, split)


def test_log_std_bounds():
    close(ref.bounded_log_std([-50.0, 0.0, 50.0], -3, 1), [-3.0, -1.0, 1.0])


def test_percentiles_and_running_scale():
    x = np.random.default_rng(2).normal(size=(7, 11))
    close(ref.percentile_spread(x), np.percentile(x, 95) - np.percentile(x, 5))
    close(ref.percentile_spread(np.arange(101.0)), 90.0)
    close(ref.running_scale_update(1.0, 0.3), 1.0)  # floored before the average
    close(ref.running_scale_update(1.0, 11.0), 1.1)
    close(ref.running_scale_update(5.0, 0.0), 4.96)


def test_rho_mean():
    rng = np.random.default_rng(3)
    loss = rng.normal(size=(4, 6))
    full = sum(0.5**t * loss[t].mean() for t in range(4)) / 4
    close(ref.rho_mean(loss, np.ones((4, 6)), 0.5), full)
    mask = rng.integers(0, 2, size=(4, 6))
    poisoned = np.where(mask == 1, 2.0, 1e9)
    close(ref.rho_mean(poisoned, mask, 0.5), 2.0 * np.mean([1, 0.5, 0.25, 0.125]))
    assert ref.rho_mean(loss, np.zeros((4, 6)), 0.5) == 0.0


def test_targets():
    q = np.array([[1.0, 4.0], [3.0, 2.0]])
    close(ref.q_target([1.0, 1.0], [0.0, 1.0], 0.9, q, "min"), [1.9, 1.0])
    close(ref.q_target([1.0, 1.0], [0.0, 0.0], 0.9, q, "mean"), [2.8, 3.7])
    close(ref.q_target([1.0, 1.0], 0.0, 0.9, q, "mean", penalty=1.0), [1.9, 2.8])
    close(ref.v_target([1.0, 1.0], [0.0, 1.0], 0.9, q[0]), [1.9, 1.0])


# --------------------------------------------------------------------- planner


def plan(mode="sample", record="sampled_elite", value=lambda z: 0.0, seed=0, proposals=2, **kw):
    rng = np.random.default_rng(seed)
    target = np.array([0.3, -0.6])

    def step(z, a):
        return z + a, -10.0 * float(np.sum((a - target) ** 2)), kw.get("discount", 0.9)

    noise = rng.normal(size=(8, 60, 3, 2))
    return ref.mppi(
        step, value, np.zeros((3, 2)), rng.normal(size=(proposals, 3, 2)), noise,
        rng.gumbel(size=10), rng.normal(size=2), np.zeros(2), num_elites=10,
        temperature=0.5, std_min=0.05, std_max=2.0, select=mode, record=record,
        explore=kw.get('explore', 0.0),
    )  # fmt: skip


def test_mppi_finds_the_best_action():
    out = plan()
    np.testing.assert_allclose(out["mode"], [0.3, -0.6], atol=0.1)
    np.testing.assert_allclose(out["next_mean"][0], [0.3, -0.6], atol=0.2)
    close(out["next_mean"][-1], np.zeros(2))
    assert out["value"] <= 0.0


def test_mppi_records_and_selection():
    sampled, mean = plan(), plan(record="mean")
    best = plan("argmax", record="best_elite")
    close(sampled["action"], sampled["prior_mean"])  # no exploration noise
    close(mean["prior_mean"], mean["mode"])
    close(best["action"], best["prior_mean"])
    assert np.all(best["prior_std"] >= 1e-3)
    assert np.all(sampled["prior_std"] >= 0.05)
    assert np.all(np.abs(plan(explore=50.0)["action"]) <= 1.0)


def test_mppi_return_by_hand_and_nan():
    def step(z, a):
        return z + 1.0, z, 0.5

    # 1 + .5*2 + .25*3 + .125*4
    close(ref.rollout_return(step, lambda z: z, 1.0, np.zeros((3, 1))), 3.25)
    out = plan(value=lambda z: float("nan"))
    close([out["value"], *out["mode"], *out["action"]], 0.0)  # the warm start
    close(out["prior_std"], 2.0)
    ended = ref.rollout_return(lambda z, a: (z, 3.0, 0.0), lambda z: np.nan, 0.0, np.zeros((2, 1)))
    close(ended, 3.0)
    plan(proposals=0)


# -------------------------------------------------------------- [D] identities


def test_cross_entropy_is_kl_plus_entropy():
    mean, std, prior_mean, prior_std = 0.3, 0.4, -0.2, 0.7
    x, w = hermite(mean, std)
    cross = -np.sum(w * ref.gaussian_log_prob(x[:, None], prior_mean, prior_std))
    kl = ref.gaussian_kl(mean, std, prior_mean, prior_std)
    close(cross, kl + ref.gaussian_entropy([std]))
    own = ref.gaussian_log_prob(x[:, None], mean, std)
    close(kl, np.sum(w * (own - ref.gaussian_log_prob(x[:, None], prior_mean, prior_std))))


def test_cross_entropy_method_penalises_entropy():
    """Its expected loss is c/S (KL + H) - alpha A H: the KL alone is not its optimum."""
    size, scale, alpha = 61, 3.0, 1e-4
    log_std = np.log(0.3)
    total = ref.numerical_gradient(
        lambda s: size**2 / 61 / scale * (
            ref.gaussian_kl(0.1, np.exp(s), 0.1, 0.5) + ref.gaussian_entropy([np.exp(s)])
        ) - alpha * size * ref.gaussian_entropy([np.exp(s)]), log_std)  # fmt: skip
    kl = ref.numerical_gradient(lambda s: ref.gaussian_kl(0.1, np.exp(s), 0.1, 0.5), log_std)
    close(total, size**2 / 61 / scale * (kl + 1.0) - alpha * size, 1e-7)
    assert total > 0 > kl  # the entropy penalty shrinks the policy, the KL would widen it


def test_unrestricted_optimum_and_temperature():
    """pi* = p exp(Q/(lambda S)) / Z maximises E_pi Q/S - lambda KL(pi || p)."""
    rng = np.random.default_rng(4)
    p, q, lam, scale = rng.dirichlet(np.ones(6)), 5 * rng.normal(size=6), 0.7, 3.0
    best = p * np.exp(q / (lam * scale))
    best /= best.sum()

    def objective(pi, q=q, scale=scale):
        return np.sum(pi * q) / scale - lam * np.sum(pi * np.log(pi / p))

    for _ in range(200):
        assert objective(rng.dirichlet(np.ones(6))) <= objective(best)
        assert objective(0.99 * best + 0.01 * rng.dirichlet(np.ones(6))) <= objective(best)
    close(objective(best), lam * np.log(np.sum(p * np.exp(q / (lam * scale)))))
    # scaling Q and S together leaves the optimum alone
    close(objective(best, 10 * q, 10 * scale), objective(best))


def test_gaussian_optimum_for_a_quadratic_q():
    prior_mean, prior_std, g, h, lam, scale = 0.2, 0.6, 1.3, 2.5, 0.8, 4.0
    var = 1.0 / (prior_std**-2 + h / (lam * scale))
    optimum = np.array([prior_mean + var * g / (lam * scale), 0.5 * np.log(var)])

    def loss(parameters):
        mean, std = parameters[0], np.exp(parameters[1])
        x, w = hermite(mean, std, 20)
        q = 1.0 + g * (x - prior_mean) - 0.5 * h * (x - prior_mean) ** 2
        return -np.sum(w * q) / scale + lam * ref.gaussian_kl(mean, std, prior_mean, prior_std)

    close(ref.numerical_gradient(loss, optimum), np.zeros(2), 1e-8)
    for delta in np.random.default_rng(5).normal(scale=0.3, size=(50, 2)):
        assert loss(optimum + delta) > loss(optimum)


def records(n=7):
    rng = np.random.default_rng(6)
    return rng.normal(scale=0.4, size=n), rng.uniform(0.1, 0.9, size=n)


def test_several_records_reverse_kl_is_one_kl_to_the_geometric_mean():
    means, stds = records()
    precision = stds**-2.0
    bar_mean, bar_std = np.sum(precision * means) / precision.sum(), np.mean(precision) ** -0.5
    rng = np.random.default_rng(7)
    rest = [
        np.sum(ref.gaussian_kl(m, s, means, stds)) - 7 * ref.gaussian_kl(m, s, bar_mean, bar_std)
        for m, s in zip(rng.normal(size=20), rng.uniform(0.05, 2, size=20), strict=True)
    ]
    close(rest, rest[0] * np.ones(20), 1e-9)

    def fit(x):
        kl = ref.learned_prior_fit(np.full((7, 1), x[0]), np.full((7, 1), x[1]),
                                   means[:, None], stds[:, None], 1.0, 'reverse')  # fmt: skip
        return np.mean(kl)

    optimum = np.array([np.arctanh(bar_mean), np.log(bar_std)])
    close(ref.numerical_gradient(fit, optimum), np.zeros(2), 1e-7)
    # expected gradient of the direct prior = gradient of the converged learned one
    x = np.array([0.4, -0.3])
    learned = ref.numerical_gradient(
        lambda x: ref.gaussian_kl(np.tanh(x[0]), np.exp(x[1]), bar_mean, bar_std), x
    )
    np.testing.assert_allclose(ref.numerical_gradient(fit, x), learned, rtol=1e-6)


def test_forward_prior_matches_moments_and_is_wider():
    means, stds = records()
    mean = means.mean()
    std = np.sqrt(np.mean(stds**2 + (means - mean) ** 2))

    def fit(x):
        return np.mean(ref.learned_prior_fit(
            np.full((7, 1), x[0]), np.full((7, 1), x[1]),
            means[:, None], stds[:, None], 1.0, 'forward'))  # fmt: skip

    close(ref.numerical_gradient(fit, [np.arctanh(mean), np.log(std)]), np.zeros(2), 1e-7)
    for seed in range(50):
        rng = np.random.default_rng(seed)
        m, s = rng.normal(size=5), rng.uniform(0.05, 1.0, size=5)
        assert np.mean(s**2 + (m - m.mean()) ** 2) >= 1.0 / np.mean(s**-2.0)


def test_kl_regularised_backup_is_a_contraction():
    rng = np.random.default_rng(8)
    states, actions, gamma, lam = 4, 3, 0.9, 0.6
    pi, prior = rng.dirichlet(np.ones(3), 4), rng.dirichlet(np.ones(3), 4)
    transition = rng.dirichlet(np.ones(states), (states, actions))
    reward = rng.normal(size=(states, actions))
    kl = np.sum(pi * np.log(pi / prior), -1)

    def backup(q):
        return ref.q_target(
            reward, 0.0, gamma, (transition @ np.sum(pi * q, -1))[None], 'mean',
            penalty=lam * transition @ kl)  # fmt: skip

    for _ in range(20):
        a, b = rng.normal(size=(2, states, actions))
        assert np.max(np.abs(backup(a) - backup(b))) <= gamma * np.max(np.abs(a - b)) + 1e-12


@pytest.mark.parametrize("size,expected", [(61, 61.0), (38, 23.7), (21, 7.2), (6, 0.59)])
def test_cross_entropy_constant(size, expected):
    """The weight of the prior term, read off the loss itself."""
    zero = np.zeros((1, 1, size))

    def loss(prior):
        return ref.tdmpc_square(
            zero, zero, zero, lambda a: 0.0, zero + prior, zero + 1.0, 4.0, alpha=0.0)  # fmt: skip

    # moving every prior mean by 1 raises -log p by A/2
    weight = (loss(1.0) - loss(0.0)) / (0.5 * size) * 4.0
    np.testing.assert_allclose(weight.item(), expected, rtol=0.01)


@pytest.mark.parametrize("size,expected", [(61, 74.4), (38, 1.4), (21, 8.8)])
def test_boom_constant(size, expected):
    np.testing.assert_allclose(ref.boom_coefficient(size), expected, rtol=0.035)


def test_gates_open_above_two():
    rng = np.random.default_rng(9)
    raw, log_std, eps, mean = rng.normal(size=(4, 3, 5, 2))
    off = ref.tdmpc_square(raw, log_std, eps, lambda a: a.sum(-1), mean, np.exp(mean), 2.0)
    action = ref.squash("tanh", raw, log_std, eps)[0]
    bonus = ref.entropy_bonus("squashed", action, log_std, eps)
    close(off, -action.sum(-1) / 2.0 - 1e-4 * bonus)
    close(ref.boom(raw, log_std, eps, lambda a: a.sum(-1), mean, 2.0), off)


def test_lambda_and_beta_mixtures_agree():
    beta = np.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(beta / (1 - beta), [1 / 9, 1, 9])


def test_tdmpc2_entropy_gradient_is_alpha_times_actions():
    rng = np.random.default_rng(10)
    raw, log_std, eps = rng.normal(size=(3, 1, 1, 6))
    alpha = 0.01
    gradient = ref.numerical_gradient(
        lambda s: ref.tdmpc2(raw, s, eps, lambda a: np.zeros(a.shape[:-1]), 1.0, alpha).item(),
        log_std)  # fmt: skip
    close(gradient, -alpha * 6 * np.ones((1, 1, 6)), 1e-7)


def test_entropy_bonus_averages_to_the_gaussian_entropy():
    x, w = hermite(0.0, 1.0)
    log_std = np.full((60, 1), -0.4)
    bonus = ref.entropy_bonus("gaussian", np.tanh(x)[:, None], log_std, x[:, None])
    close(np.sum(w * bonus), ref.gaussian_entropy([np.exp(-0.4)]))


def test_kl_blow_up():
    np.testing.assert_allclose(ref.gaussian_kl(0.5, 1e-3, 0.0, 1e-3), 1.25e5)
    np.testing.assert_allclose(ref.gaussian_kl(0.5, 0.05, 0.0, 0.05), 50.0)
    assert abs(np.exp(-3) - 0.0498) < 1e-4


def test_limits_of_lambda():
    """A huge lambda orders policies as bmpc does (up to sum against mean over dims)."""
    rng = np.random.default_rng(11)
    raw, log_std, eps, mean = rng.normal(size=(4, 3, 5, 2))
    args = raw, log_std, eps
    std = np.exp(0.3 * mean)
    po = ref.po_mpc_direct(*args, lambda a: a.sum(-1), mean, std, 1.0, 1.0, 1e12, 0.0) / 1e12
    close(po, 2 * ref.bmpc(*args, mean, std, 1.0, 0.0), 1e-9)
    close(ref.bmpc(*args, mean, std, 3.0), ref.bmpc_v3(*args, mean, std, 3.0))
    zero = ref.po_mpc_direct(*args, lambda a: a.sum(-1), mean, std, 2.0, 1.0, 0.0, 0.0)
    close(zero, -ref.squash("clip", *args)[0].sum(-1) / 2.0)
    learned = ref.po_mpc_learned(*args, lambda a: a.sum(-1), raw, log_std, 1.0, 1.0, 9.0, 0.0)
    close(learned, -ref.squash("clip", *args)[0].sum(-1))


def test_boom_weights_sum_over_the_batch():
    rng = np.random.default_rng(12)
    raw, log_std, eps, mean = rng.normal(size=(4, 3, 5, 2))
    q = lambda a: 4 * a.sum(-1)  # noqa: E731
    out = ref.boom(raw, log_std, eps, q, mean, 3.0, alpha=0.0)
    action, _, std = ref.squash("tanh", raw, log_std, eps)
    prior = -ref.gaussian_log_prob(action, mean, np.maximum(std, 0.05))
    weight = np.exp(q(action) / 3.0) / np.exp(q(action) / 3.0).sum(1, keepdims=True)
    expected = -q(action).mean(1) / 3 + ref.boom_coefficient(2) * (weight * prior).sum(1) / 3
    close(out.mean(1), expected)


def test_numerical_gradient():
    x = np.random.default_rng(13).normal(size=(2, 3))
    close(ref.numerical_gradient(lambda x: np.sum(np.sin(x)), x), np.cos(x), 1e-8)
