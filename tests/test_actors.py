"""Policies as distributions over actions: modes, draws, densities, bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
from setting import SMALL, A, random_params

from pomcp_jax import actors, maths, world_model
from pomcp_jax.types import Gaussian

KINDS = ("tanh", "clip", "clip_straight_through")
RAW = jnp.linspace(-2.0, 2.0, 12).reshape(6, 2)
LOG_STD = jnp.linspace(-3.0, 0.5, 12).reshape(6, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_mode_is_the_draw_without_noise(kind):
    dist = actors.gaussian(RAW, LOG_STD, kind)
    drawn = actors.draw(dist, jnp.zeros_like(RAW), kind)
    np.testing.assert_array_equal(actors.mode(dist, kind), drawn.action)
    np.testing.assert_allclose(drawn.action, np.tanh(RAW), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_actions_stay_within_their_bounds_and_saturate(kind):
    dist = actors.gaussian(RAW, LOG_STD, kind)
    action = actors.draw(dist, jnp.full_like(RAW, 500.0), kind).action
    np.testing.assert_allclose(action, 1.0, atol=1e-6)


@pytest.mark.parametrize("kind,slope", [("clip", 0.0), ("clip_straight_through", 1.0)])
def test_gradient_of_a_saturated_action(kind, slope):
    def action(mean):
        dist = Gaussian(mean, jnp.ones_like(mean))
        return jnp.sum(actors.draw(dist, jnp.full_like(mean, 3.0), kind).action)

    np.testing.assert_array_equal(jax.grad(action)(jnp.zeros(2)), slope)


def test_log_prob_of_the_noise_is_that_of_the_action():
    dist = actors.gaussian(RAW, LOG_STD, "clip")
    noise = 0.01 * jax.random.normal(jax.random.key(0), RAW.shape)
    drawn = actors.draw(dist, noise, "clip")
    assert np.max(np.abs(drawn.action)) < 1.0
    expected = maths.gaussian_log_prob(drawn.action, dist)
    np.testing.assert_allclose(actors.log_prob(drawn), expected, rtol=1e-3)


def test_density_after_the_tanh_sums_to_one():
    """Over a grid of actions, from the noise that leads to each."""
    action = np.linspace(-0.9999, 0.9999, 4001, dtype=np.float32)[:, None]
    dist = Gaussian(jnp.full((4001, 1), 0.3), jnp.full((4001, 1), 0.6))
    noise = (np.arctanh(action) - dist.mean) / dist.std
    drawn = actors.draw(dist, noise, "tanh")
    density = np.exp(actors.log_prob(drawn) - actors.log_tanh_slope(drawn))
    np.testing.assert_allclose(np.trapezoid(density, action[:, 0]), 1.0, atol=2e-3)


@pytest.mark.parametrize("limits", [None, (-9.0, -8.0)])
def test_distribution_of_an_actor(limits):
    """Raw outputs of the network, bounded by the configured log-std or by the caller's."""
    nets = world_model.build(SMALL, A)
    params = random_params(lambda key: world_model.init_policy(key, SMALL, A), 0)
    latent = jax.random.normal(jax.random.key(0), (50, SMALL.latent_size))
    mean, raw = (np.asarray(x) for x in world_model.policy(nets, params, latent))
    dist = actors.distribution(nets, params, latent, SMALL, limits)
    low, high = limits or (SMALL.log_std_min, SMALL.log_std_max)
    assert np.std(raw) > 0.1
    np.testing.assert_allclose(dist.mean, np.tanh(mean), rtol=1e-5)
    np.testing.assert_allclose(np.log(dist.std), ref.bounded_log_std(raw, low, high), rtol=1e-4)
