"""States without a planner record, against the float64 reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
from setting import WINDOWS, Setting, near, scales

from pomcp_jax import config as config_lib
from pomcp_jax import model_loss, policy_loss

NONE = {"policy.data_record": "none"}


def setting(changes):
    """A setting in which every third window has no records, and one state of each other."""
    case = Setting(NONE | changes)
    made = np.zeros(case.rows.last.shape, np.int32)
    made[:, ::3] = -1
    made[1] = -1
    case.batch = case.batch._replace(rows=case.batch.rows._replace(made=jnp.asarray(made)))
    return case, made >= 0


@functools.cache
def stored():
    """The policy loss with stored records, its noise, and which states have a record."""
    case, has = setting({"policy.prior": "stored", "policy.prior_std_min": 0.2})
    latents, key = case.roll_out(), jax.random.key(3)
    run = functools.partial(case.run, policy_loss.policy_loss)
    loss, aux = run(
        case.policy, case.agent, jnp.asarray(latents, jnp.float32), case.batch, scales(1, 1), key
    )
    noise = jax.random.normal(jax.random.split(key)[0], (*latents.shape[:2], 2))
    return case, has, latents, np.asarray(noise, np.float64), loss, aux


def test_value_and_entropy_of_states_without_a_record_stay():
    case, has, latents, noise, loss, aux = stored()
    (action, mean, std), _, log_std = case.actor(case.policy, latents, noise)
    q = case.values(case.params.value, latents, action).mean(axis=0)
    record = case.rows.prior
    kl = ref.gaussian_kl(mean, std, record.mean, np.maximum(record.std, 0.2)).sum(axis=-1)
    mask = np.asarray(case.batch.valid) & ~case.rows.last
    both = mask & has
    assert 0 < both[0].sum() < mask[0].sum() and not both[1].any()
    scale_q = ref.running_scale_update(1.0, ref.percentile_spread(q[0][mask[0]]))
    scale_kl = ref.running_scale_update(1.0, ref.percentile_spread(kl[0][both[0]]))
    bonus = ref.entropy_bonus("gaussian", action, log_std, noise)
    total = -q / scale_q + has * kl / scale_kl - 1e-4 * bonus
    near(loss, ref.rho_mean(total, mask, 0.5), 1e-4)
    near(aux.kl, kl[both].mean(), 1e-4)
    near([aux.scales.q, aux.scales.kl], [scale_q, scale_kl], 1e-4)


def test_the_learned_prior_is_fitted_to_records_alone():
    case, has = setting({"policy.prior": "learned"})
    latents = case.roll_out()
    loss, aux = case.run(
        policy_loss.prior_loss,
        case.prior, case.params.value, jnp.asarray(latents, jnp.float32), case.batch,
        scales(1.0, 1.0),
    )  # fmt: skip
    (_, mean, std), _, _ = case.actor(case.prior, latents[:-1])
    record = jax.tree.map(lambda x: x[:-1], case.rows.prior)
    kl = ref.gaussian_kl(mean, std, record.mean, record.std).sum(axis=-1)
    mask = (np.asarray(case.batch.valid) & ~case.rows.last & has)[:-1]
    scale = ref.running_scale_update(1.0, ref.percentile_spread(kl[0][mask[0]]))
    near(loss, ref.rho_mean(kl / scale, mask, 0.5), 1e-4)
    near(aux.kl, kl[mask].mean(), 1e-4)


@pytest.mark.parametrize("kind", ["none", "all"])
def test_a_mixture_and_targets_of_plans_fall_back_where_there_is_no_record(kind):
    """Without any record the learned prior and the policy are left; with all, nothing changes."""
    case, _ = setting({"policy.prior": "mixture", "critic.target_actor": "stored"})
    made = jnp.full_like(case.batch.rows.made, -1 if kind == "none" else 0)
    batch = case.batch._replace(rows=case.batch.rows._replace(made=made))
    latents = jnp.asarray(case.roll_out(), jnp.float32)
    same = {"none": {"policy.prior": "learned", "critic.target_actor": "policy"},
            "all": {"policy.data_record": "action"}}[kind]  # fmt: skip
    other = config_lib.replace(case.config, same)

    @jax.jit
    def results(config, agent, target):
        prior = policy_loss.policy_prior(agent.prior, latents, batch, nets=case.nets, config=config)
        target = model_loss.targets(
            agent, target, batch, jax.random.key(0), nets=case.nets, config=config
        )
        return prior, jnp.where(batch.transition, target.value, 0.0)

    ours, theirs = (results(config, case.agent, case.target) for config in (case.config, other))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), ours, theirs)


def test_a_batch_without_any_record_changes_no_scale_and_no_multiplier():
    case, *_ = stored()
    made = jnp.full_like(case.batch.rows.made, -1)
    batch = case.batch._replace(rows=case.batch.rows._replace(made=made))
    dual = config_lib.replace(
        case.config, {"policy.kl_tuning": "dual", "policy.dual_rate": 0.1}
    )  # fmt: skip
    loss = functools.partial(policy_loss.policy_loss, nets=case.nets, config=dual)
    latents = jnp.asarray(case.roll_out(), jnp.float32)
    start = scales(1.0, 3.0, 0.5)
    value, aux = jax.jit(loss)(case.policy, case.agent, latents, batch, start, jax.random.key(0))
    assert np.isfinite(value) and batch.valid.shape[1] == WINDOWS
    assert (aux.scales.kl, aux.scales.log_multiplier, aux.kl) == (3.0, 0.5, 0.0)
