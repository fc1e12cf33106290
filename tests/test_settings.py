"""Settings beyond the paper, on problems with known answers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference as ref
from setting import STEPS, WINDOWS, A, Setting, near, scales

from pomcp_jax import actors, losses, policy_loss
from pomcp_jax import config as config_lib
from pomcp_jax.config import PolicyConfig


def transitions(case):
    return (np.asarray(case.batch.valid) & ~case.rows.last)[:-1]


def records(case):
    return case.rows.prior.mean[:-1], case.rows.prior.std[:-1]


# ------------------------------------------------------- strength by a dual variable

DUAL = {"policy.kl_tuning": "dual", "policy.dual_rate": 0.1, "world_model.mlp_width": 12}


@functools.cache
def constrained():
    """``(target, power) -> (KL per dimension, log m)`` of a policy trained with a dual.

    The divergence is the mean over the second half of training: the two players chase each
    other in circles around the solution.
    """
    case = Setting(DUAL)
    case.params.value["out"]["kernel_0"] *= 8.0  # worth deviating from the prior
    latents, adam = jnp.asarray(case.roll_out(), jnp.float32), optax.adam(1e-2)
    start = jax.tree.map(jnp.asarray, case.policy)
    half = 1500

    @jax.jit
    def train(config):
        loss = functools.partial(policy_loss.policy_loss, nets=case.nets, config=config)

        def body(i, carry):
            policy, opt, running, kl = carry
            grads, aux = jax.grad(loss, has_aux=True)(
                policy, case.agent, latents, case.batch, running, jax.random.key(0)
            )
            with jax.numpy_dtype_promotion("standard"):
                updates, opt = adam.update(grads, opt)
            kl = kl + jnp.where(i >= half, aux.kl / half, 0.0)
            return optax.apply_updates(policy, updates), opt, aux.scales, kl

        carry = start, adam.init(start), scales(1.0, 1.0), jnp.zeros(())
        return jax.lax.fori_loop(0, 2 * half, body, carry)[2:]

    @functools.cache
    def run(target, power):
        changes = {"policy.kl_target": target, "policy.kl_dim_power": power}
        running, kl = train(config_lib.replace(case.config, changes))
        return float(kl) / A ** (power + 1.0), float(running.log_multiplier)

    return run


@pytest.mark.parametrize("power", [0.0, -1.0])
@pytest.mark.parametrize("target", [0.05, 0.4])
def test_dual_reaches_its_target_per_dimension(target, power):
    kl, log_multiplier = constrained()(target, power)
    np.testing.assert_allclose(kl, target, rtol=0.02)
    assert abs(log_multiplier) < 9.0


def test_tighter_targets_need_larger_multipliers():
    assert constrained()(0.05, 0.0)[1] > constrained()(0.4, 0.0)[1] + 0.5


@pytest.mark.parametrize("target,bound", [(1e9, -10.0), (0.0, 10.0)])
def test_multiplier_stays_within_bounds(target, bound):
    """Targets that always hold, or that one update cannot meet."""
    kl = jnp.asarray(7.0)
    config = PolicyConfig(kl_tuning="dual", kl_target=target, dual_rate=5.0)
    step = jax.jit(lambda x: losses.dual_step(x, kl, A, config))
    value = jnp.zeros(())
    for _ in range(5):
        value = step(value)
        assert -10.0 <= value <= 10.0
    assert value == bound


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_multiplier_ignores_what_is_not_finite(bad):
    config = PolicyConfig(kl_tuning="dual")
    assert losses.dual_step(jnp.asarray(0.7), jnp.asarray(bad), A, config) == np.float32(0.7)


def test_multiplier_multiplies_the_coefficient():
    rng = np.random.default_rng(0)
    draws = [jnp.asarray(rng.normal(size=(3, 5, A)), jnp.float32) for _ in range(3)]
    sample = actors.squash(*draws, "clip")
    kl = jnp.asarray(rng.uniform(size=(3, 5)), jnp.float32)
    numbers = dict(scale_q=jnp.ones(()), scale_kl=jnp.ones(()), weight=1.0)
    twice = losses.policy_loss(
        sample, kl, kl, config=PolicyConfig(), multiplier=jnp.asarray(2.0), **numbers
    )
    double = losses.policy_loss(sample, kl, kl, config=PolicyConfig(kl_coef=2.0), **numbers)
    near(twice.loss, double.loss, 1e-6)


# ------------------------------------------------------------------------ mixture


@functools.cache
def mixture():
    """``mix -> prior`` of one setting, its learned prior, its floored records."""
    case = Setting({"policy.prior": "mixture", "policy.prior_std_min": 0.3})
    latents = jnp.asarray(case.roll_out()[:-1], jnp.float32)

    @jax.jit
    def run(config):
        return policy_loss.policy_prior(
            case.prior, latents, case.batch, nets=case.nets, config=config
        )

    learned = case.actor(case.prior, case.roll_out()[:-1])[0][1:]
    mean, std = records(case)
    assert np.mean(std < 0.3) > 0.1

    def mixed(mix):
        return run(config_lib.replace(case.config, {"policy.prior_mix": mix}))

    return mixed, learned, (mean, np.maximum(std, 0.3))


@pytest.mark.parametrize("mix", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_mixture_is_the_normalised_product_of_powers(mix):
    """Log-densities differ from the weighted sum by the same constant everywhere."""
    run, learned, record = mixture()
    out = run(mix)
    rng = np.random.default_rng(1)

    def excess():
        x = rng.uniform(-1.0, 1.0, size=out.mean.shape)
        parts = [ref.gaussian_log_prob(x, *p) for p in (out, learned, record)]
        return parts[0] - mix * parts[1] - (1.0 - mix) * parts[2]

    np.testing.assert_allclose(excess(), excess(), atol=2e-3)


def test_mixture_ends_in_the_record_and_in_the_learned_prior():
    run, learned, record = mixture()
    for mix, expected in ((0.0, record), (1.0, learned)):
        near(np.stack(run(mix)), np.stack(expected), 1e-5)


# --------------------------------------------------------------------------- gate


@pytest.mark.parametrize("critic", ["q", "v"])
def test_gate_drops_the_records_that_are_worth_less_than_the_prior(critic):
    case = Setting({"prior.gate": True, "world_model.critic": critic})
    latents, mask = case.roll_out(), transitions(case)
    (_, mean, _), raw, log_std = case.actor(case.prior, latents[:-1])
    inputs = (mean,) if critic == "q" else ()
    own = case.values(case.params.value, latents[:-1], *inputs).mean(axis=0)
    better = np.random.default_rng(2).random(own.shape) < 0.4
    worth = np.zeros((STEPS + 1, WINDOWS))
    worth[:-1] = own + np.where(better, 1e-3, -1e-3) * (1.0 + np.abs(own))
    rows = case.batch.rows._replace(prior_value=jnp.asarray(worth, jnp.float32))

    prior, value = jax.tree.map(jnp.asarray, (case.prior, case.params.value))
    before = scales(4.0, 1.5)._replace(prior=jnp.asarray(1.3))

    @jax.jit
    def run(batch):
        def loss(params):
            z = jnp.asarray(latents, jnp.float32)
            return policy_loss.prior_loss(
                params, value, z, batch, before, nets=case.nets, config=case.config
            )

        return jax.value_and_grad(loss, has_aux=True)(prior)

    (total, aux), gradient = run(case.batch._replace(rows=rows))
    fitted = mask & better
    kl = ref.learned_prior_fit(raw, log_std, *records(case), 1.0, "reverse")
    scale = ref.running_scale_update(1.3, ref.percentile_spread(kl[0][fitted[0]]))
    near(aux.scale, scale, 1e-5)
    near(total, ref.rho_mean(kl, fitted, case.config.optimizer.rho) / scale, 3e-5)
    near(aux.fitted, fitted.sum() / mask.sum(), 1e-6)
    assert 0.1 < aux.fitted < 0.9

    # Dropped records have no influence at all.
    kept = jnp.asarray(np.append(better, better[:1], 0))
    moved = jnp.where(kept[..., None], rows.prior.mean, 0.9)
    other = rows._replace(prior=rows.prior._replace(mean=moved))
    (again, _), same = run(case.batch._replace(rows=other))
    assert again == total
    jax.tree.map(np.testing.assert_array_equal, gradient, same)

    # Random actions have no plan's value: a 0 must not be the best where rewards are costs.
    unvalued = rows._replace(prior_value=jnp.where(rows.prior_value > 0.0, -1e3, 0.0))
    assert run(case.batch._replace(rows=unvalued))[0][1].fitted == 0.0

    # With nothing to fit there is no step, and all numbers stay finite.
    none = rows._replace(prior_value=jnp.full_like(rows.prior_value, -1e6))
    (total, aux), gradient = run(case.batch._replace(rows=none))
    assert total == 0.0 and aux.fitted == 0.0 and aux.scale == np.float32(1.3)
    assert not any(np.any(x) for x in jax.tree.leaves(gradient))


# ------------------------------------------------------------------ value weights


def test_value_weights_prefer_good_states_and_average_one():
    rng = np.random.default_rng(3)
    q, mask = rng.normal(scale=3.0, size=(3, 8)), rng.random((3, 8)) < 0.7
    mask[2] = False
    arrays = jnp.asarray(q, jnp.float32), jnp.asarray(mask), jnp.asarray(2.0)

    def weights(temperature):
        config = PolicyConfig(value_weight_temperature=temperature)
        return np.asarray(losses.value_weights(*arrays, config))

    for t in (0, 1):
        good = mask[t]
        expected = np.exp(q[t][good] / 2.0 / 0.5)
        np.testing.assert_allclose(weights(0.5)[t][good], expected / expected.mean(), rtol=1e-4)
        np.testing.assert_allclose(weights(1e6)[t][good], 1.0, rtol=1e-4)
    for temperature in (0.5, 1e6):
        out = weights(temperature)
        assert np.all(out[~mask] == 0.0) and np.all(np.isfinite(out))
