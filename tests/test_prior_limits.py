"""Limits of the learned prior, and the identities behind them (docs/method.md)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from setting import STEPS, WINDOWS, Setting, scales

from pomcp_jax import actors, losses, policy_loss
from pomcp_jax.config import PolicyConfig
from pomcp_jax.types import Gaussian

TINY = {"world_model.mlp_width": 8, "world_model.latent_size": 8, "optimizer.rho": 1.0}


def one_state(changes, seed=0):
    """A setting whose windows all stay in one latent state, each with records of its own."""
    case = Setting(TINY | changes, seed)
    latent = np.random.default_rng(seed).normal(size=(1, 1, 8))
    latents = jnp.asarray(np.broadcast_to(latent, (STEPS + 1, WINDOWS, 8)), jnp.float32)
    mask = np.asarray(case.batch.transition)
    rows = case.rows.prior
    mean, std = (x[:-1][mask] for x in (rows.mean, rows.std))
    return case, latents, mean, std


def geometric_mean(mean, std):
    """Normalised geometric mean of K Gaussians ``[K, A]``."""
    precision = np.mean(std**-2.0, axis=0)
    return np.mean(mean * std**-2.0, axis=0) / precision, precision**-0.5


def moment_match(mean, std):
    centre = np.mean(mean, axis=0)
    return centre, np.sqrt(np.mean(std**2 + (mean - centre) ** 2, axis=0))


def minimise(loss, start, steps=1500, rate=0.03):
    """Adam with a rate that falls to zero, compiled whole."""
    adam = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def body(_, carry):
        params, opt = carry
        with jax.numpy_dtype_promotion("standard"):
            updates, opt = adam.update(jax.grad(loss)(params), opt)
        return optax.apply_updates(params, updates), opt

    run = jax.jit(lambda x: jax.lax.fori_loop(0, steps, body, (x, adam.init(x)))[0])
    return run(start)


def weighted_moment_match(mean, std):
    """Moments of a mixture whose components weigh by their precision, in each dimension."""
    weight = std**-2.0 / np.sum(std**-2.0, axis=0)
    centre = np.sum(weight * mean, axis=0)
    return centre, np.sqrt(np.sum(weight * (std**2 + (mean - centre) ** 2), axis=0))


@pytest.mark.parametrize(
    "fit,weight,optimum",
    [
        ("reverse", "equal", geometric_mean),
        ("forward", "equal", moment_match),
        ("forward", "precision", weighted_moment_match),
    ],
)
def test_learned_prior_converges(fit, weight, optimum):
    """Reverse: the precision-weighted geometric mean of its records; forward: their moments."""
    case, latents, mean, std = one_state({"prior.divergence": fit, "prior.weight": weight})

    def loss(params):
        return policy_loss.prior_loss(
            params, case.params.value, latents, case.batch, scales(1.0, 1.0),
            nets=case.nets, config=case.config,
        )[0]  # fmt: skip

    start = jax.tree.map(jnp.asarray, case.prior)
    params = minimise(loss, start)
    got = actors.distribution(case.nets, params, latents[0, 0], case.config.world_model)
    before = actors.distribution(case.nets, start, latents[0, 0], case.config.world_model)
    expected = optimum(mean, std)
    assert np.max(np.abs(before.mean - expected[0])) > 0.1
    np.testing.assert_allclose(got.mean, expected[0], atol=1e-3)
    np.testing.assert_allclose(got.std, expected[1], rtol=1e-3)


def test_precisions_weigh_the_records_that_count():
    rng = np.random.default_rng(0)
    std = rng.uniform(0.05, 1.0, (3, 8, 2)).astype(np.float32)
    mask = rng.random((3, 8)) < 0.6
    weights = losses.precision_weights(Gaussian(jnp.zeros((3, 8, 2)), jnp.asarray(std)), mask)
    np.testing.assert_allclose(weights[mask].mean(axis=0), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(weights[~mask], 0.0)
    ratio = weights[mask] * std[mask] ** 2
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:1], ratio.shape), rtol=1e-5)
    nothing = losses.precision_weights(
        Gaussian(jnp.zeros((3, 8, 2)), jnp.asarray(std)), jnp.zeros((3, 8), bool)
    )
    np.testing.assert_array_equal(nothing, 0.0)


def test_recent_records_weigh_more():
    """Half the weight at an age of a tenth of training; a mean of one over those that count."""
    made = jnp.asarray([[1000, 900, 800, 2000, 0]])
    mask = jnp.asarray([[True, True, True, False, True]])
    weights = losses.recency_weights(made, mask, 0.1)[0]
    np.testing.assert_allclose(weights[:3] / weights[0], [1.0, 0.5, 0.25], rtol=1e-6)
    np.testing.assert_allclose(weights[4] / weights[0], 2.0**-10, rtol=1e-5)
    assert weights[3] == 0.0
    np.testing.assert_allclose(weights.sum(), 4.0, rtol=1e-6)
    # Nothing to weigh by: records from before any update, or from demonstrations.
    np.testing.assert_allclose(losses.recency_weights(0 * made, mask, 0.1), mask, rtol=1e-6)
    np.testing.assert_array_equal(losses.recency_weights(made, jnp.zeros_like(mask), 0.1), 0.0)


def test_recent_records_move_the_prior():
    """The fit ends at the moments of the records, each weighted by its age."""
    changes = {"prior.divergence": "forward", "prior.weight": "recent", "prior.half_life": 0.25}
    case, latents, mean, std = one_state(changes)
    mask = np.asarray(case.batch.transition)
    made = np.random.default_rng(1).integers(0, 2000, case.batch.rows.made.shape)
    rows = case.batch.rows._replace(made=jnp.asarray(made, jnp.int32))
    ages = made[:-1][mask]
    weight = 2.0 ** ((ages - ages.max()) / ages.max() / 0.25)
    weight = (weight / weight.sum())[:, None]
    centre = np.sum(weight * mean, axis=0)
    spread = np.sqrt(np.sum(weight * (std**2 + (mean - centre) ** 2), axis=0))

    def loss(params):
        return policy_loss.prior_loss(
            params, case.params.value, latents, case.batch._replace(rows=rows), scales(1.0, 1.0),
            nets=case.nets, config=case.config,
        )[0]  # fmt: skip

    params = minimise(loss, jax.tree.map(jnp.asarray, case.prior))
    got = actors.distribution(case.nets, params, latents[0, 0], case.config.world_model)
    assert np.max(np.abs(centre - mean.mean(axis=0))) > 0.02
    np.testing.assert_allclose(got.mean, centre, atol=1e-3)
    np.testing.assert_allclose(got.std, spread, rtol=1e-3)


def test_advantages_of_records_that_are_all_bad():
    """Only differences count below the bound, however low all are; above it records are equal."""
    advantage = jnp.asarray([-5000.0, -5001.0, 7.0, -5000.0 - np.log(4.0)])
    mask = jnp.asarray([True, True, False, True])
    weights = losses.advantage_weights(advantage, mask)
    shares = np.array([1.0, np.exp(-1.0), 0.0, 0.25])
    np.testing.assert_allclose(weights, 3.0 * shares / shares.sum(), rtol=1e-3)
    np.testing.assert_allclose(losses.advantage_weights(advantage + 6000.0, mask), mask, rtol=1e-6)
    np.testing.assert_array_equal(losses.advantage_weights(advantage, ~mask), ~mask)
    nothing = losses.advantage_weights(advantage, jnp.zeros_like(mask))
    np.testing.assert_array_equal(nothing, 0.0)


def test_forward_is_the_wider_prior():
    _, _, mean, std = one_state({})
    assert np.all(moment_match(mean, std)[1] > 1.2 * geometric_mean(mean, std)[1])


def test_divergences_to_many_records_are_one_to_their_mean():
    """sum_k KL(pi || p_k) = K KL(pi || mean) + const, so both have the policy's gradient."""
    case, latents, mean, std = one_state(
        {
            "policy.prior": "stored", "policy.q_source": "none", "policy.q_coef": 0.0,
            "policy.kl_scale": "none", "policy.last_state": False,
        }
    )  # fmt: skip
    rows, one = case.batch.rows, geometric_mean(mean, std)
    same = jax.tree.map(
        lambda x, m: jnp.broadcast_to(jnp.asarray(m, jnp.float32), x.shape),
        rows.prior,
        Gaussian(*one),
    )
    merged = case.batch._replace(rows=rows._replace(prior=same))

    @jax.jit
    def loss_and_gradient(policy, batch):
        loss = functools.partial(policy_loss.policy_loss, nets=case.nets, config=case.config)
        return jax.value_and_grad(loss, has_aux=True)(
            policy, case.agent, latents, batch, scales(1.0, 1.0), jax.random.key(0)
        )

    constants = []
    for policy in (case.policy, case.prior):
        (many, _), gradient = loss_and_gradient(policy, case.batch)
        (single, _), other = loss_and_gradient(policy, merged)
        constants.append(many - single)
        size = max(np.max(np.abs(x)) for x in jax.tree.leaves(gradient))
        assert size > 0.1
        jax.tree.map(
            lambda a, b, size=size: np.testing.assert_allclose(a, b, atol=2e-5 * size),
            gradient,
            other,
        )
    assert constants[0] > 0.1
    np.testing.assert_allclose(constants[0], constants[1], rtol=1e-4)


@pytest.mark.parametrize("lambda_,scale", [(0.1, 1.0), (1.0, 3.0), (9.0, 1.0), (1.0, 1.0)])
def test_optimum_of_a_gaussian_prior_and_a_quadratic_value(lambda_, scale):
    """1/sigma^2 = 1/sigma_p^2 + h / (lambda S) and mu = mu_p + sigma^2 g / (lambda S)."""
    config = PolicyConfig(kl_coef=lambda_, entropy_coef=0.0, kl_scale="none", prior="stored")
    prior = Gaussian(jnp.array([0.1, -0.3, 0.0]), jnp.array([0.1, 0.2, 0.05]))
    slope, bend = jnp.array([0.1, -0.2, 0.5]), jnp.array([20.0, 3.0, 50.0])

    def loss(pair):
        # Two symmetric draws give the exact expectation of a quadratic.
        noise = jnp.array([[1.0], [-1.0]]) * jnp.ones((1, 3))
        mean, log_std = (jnp.broadcast_to(x[None], noise.shape) for x in pair)
        sample = actors.squash(mean, log_std, noise, "clip_straight_through")
        offset = sample.action - prior.mean[None]
        q = jnp.sum(slope[None] * offset - 0.5 * bend[None] * offset**2, axis=-1)
        wide = jax.tree.map(lambda x: x[None], prior)
        out = losses.policy_loss(
            sample, q, losses.divergence(sample, wide, config), scale_q=jnp.asarray(scale),
            scale_kl=jnp.ones(()), weight=1.0, config=config,
        )  # fmt: skip
        return jnp.mean(out.loss)

    mean, log_std = minimise(loss, (jnp.zeros(3), jnp.full(3, -1.0)), steps=4000)
    variance = 1.0 / (prior.std**-2.0 + bend / (lambda_ * scale))
    np.testing.assert_allclose(jnp.exp(log_std), jnp.sqrt(variance), rtol=1e-3)
    expected = prior.mean + variance * slope / (lambda_ * scale)
    np.testing.assert_allclose(jnp.tanh(mean), expected, atol=1e-3)


@pytest.mark.parametrize("size,unit,strength", [(1, 1e-3, 1.0), (38, 1.0, 1.0), (6, 1e3, 0.5)])
def test_a_strength_that_carries_over(size, unit, strength):
    """``q_scale = prior``: KL 1 / (2 lambda^2) at the optimum, whatever A and the unit of Q."""
    rng = np.random.default_rng(size)
    slope, std = unit * rng.normal(size=size), rng.uniform(0.1, 1.0, size)
    slope, std = jnp.asarray(slope, jnp.float32), jnp.asarray(std, jnp.float32)
    prior = Gaussian(jnp.zeros(size), std)
    config = PolicyConfig(kl_coef=strength, entropy_coef=0.0, kl_scale="none", q_scale="prior")
    # What the running scale estimates from draws: the standard deviation of Q under the prior.
    spread = jnp.sqrt(jnp.sum(jnp.square(slope * std)))
    # Both signs of a noise have the mean of any other pair: Q is linear.
    noise = jnp.stack([jnp.ones(size), -jnp.ones(size)])

    def drawn(params):
        dist = Gaussian(params[0] * std, std * jnp.exp(params[1]))
        dist = jax.tree.map(lambda x: jnp.broadcast_to(x, noise.shape), dist)
        return actors.PolicySample(dist, noise, dist.mean + dist.std * noise)

    def divergence(params):
        return losses.divergence(drawn(params), prior, config)

    def loss(params):
        sample = drawn(params)
        used = dict(scale_q=spread, scale_kl=jnp.ones(()), weight=1.0, config=config)
        return jnp.mean(
            losses.policy_loss(sample, sample.action @ slope, divergence(params), **used).loss
        )

    with jax.numpy_rank_promotion("allow"):
        best = minimise(loss, jnp.zeros((2, size)))
        np.testing.assert_allclose(divergence(best), 1.0 / (2.0 * strength**2), rtol=1e-2)
