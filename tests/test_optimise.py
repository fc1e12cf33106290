"""Steps of the optimiser against Adam in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pomcp_jax import optimise
from pomcp_jax.config import OptimizerConfig

TARGET = np.array([1.0, -2.0, 0.5])


def reference(steps, decay, interval, rate=0.1, clip=1.5, epsilon=1e-8):
    """Adam (arXiv 1412.6980, algorithm 1) on sum((x - TARGET)^2) from 0, in float64."""
    x, m, v = np.zeros(3), np.zeros(3), np.zeros(3)
    for t in range(1, steps + 1):
        grad = 2 * (x - TARGET)
        grad *= min(1.0, clip / np.linalg.norm(grad))
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        move = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + epsilon)
        before = (t - 1) * interval
        x = x - (rate * min(1.0, decay / before) if decay and before else rate) * move
    return x


@pytest.mark.parametrize("decay, interval", [(0, 1), (5, 1), (5, 4), (100, 1)])
def test_step_sizes_fall_in_inverse_proportion_to_the_updates(decay, interval):
    config = OptimizerConfig(learning_rate=0.1, grad_clip=1.5, decay_updates=decay)

    def loss(x):
        return jnp.sum(jnp.square(x - jnp.asarray(TARGET, jnp.float32))), None

    @jax.jit
    def improve(params, opt):
        step = optimise.improve(loss, params, opt, config, interval=interval)
        return step.params, step.opt

    params = jnp.zeros(3)
    opt = optax.scale_by_adam().init(params)
    for _ in range(20):
        params, opt = improve(params, opt)
    np.testing.assert_allclose(params, reference(20, decay, interval), rtol=2e-5)


def test_the_schedule_begins_at_the_step_size_and_never_exceeds_it():
    config = OptimizerConfig(learning_rate=1e-3, decay_updates=1000)
    rates = [float(optimise.rate(jnp.int32(n), config)) for n in (0, 1, 1000, 2000, 10**9)]
    np.testing.assert_allclose(rates, [1e-3, 1e-3, 1e-3, 5e-4, 1e-9], rtol=1e-6)
    assert optimise.rate(jnp.int32(7), OptimizerConfig()) == OptimizerConfig().learning_rate
