"""The family's limits: gradients of the whole policy loss, in the parameters of the policy.

The oracle is float64 numpy: forward passes of all networks, the published loss of
tests/reference.py, and central differences over every parameter.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
from setting import WINDOWS, A, Setting, mlp

from pomcp_jax import config as config_lib
from pomcp_jax import policy_loss, presets
from pomcp_jax.actors import AgentParams
from pomcp_jax.policy_loss import Scales

SMALL = {
    "world_model.latent_size": 8,
    "world_model.encoder_width": 6,
    "world_model.mlp_width": 6,
    "world_model.simnorm_group": 4,
    "world_model.num_bins": 21,
    "world_model.num_heads": 2,
    "policy.num_q_heads": 2,
}
SCALE_Q, SCALE_KL = 4.0, 1.5
ALPHA = 0.01  # large enough to be seen
TOLERANCE = {"float32": 1e-4, "float64": 1e-6}
TANH = {
    "world_model.squash": "tanh",
    "world_model.log_std_min": -10.0,
    "world_model.log_std_max": 2.0,
    "policy.divergence": "cross_entropy",
}


@functools.partial(jax.jit, static_argnames="nets")
def compiled(policy, params, prior, latents, batch, key, config, nets):
    scales = Scales(*(jnp.asarray(x, latents.dtype) for x in (SCALE_Q, SCALE_KL, 1.0, 0.0)))
    agent = AgentParams(params, policy, prior)
    loss = functools.partial(policy_loss.policy_loss, nets=nets, config=config)
    return jax.grad(loss, has_aux=True)(policy, agent, latents, batch, scales, key)[0]


def flat(tree):
    """Leaves as one float64 vector, and the way back."""
    leaves, structure = jax.tree.flatten(tree)
    ends = np.cumsum([0, *(x.size for x in leaves)])

    def rebuild(vector):
        parts = [
            vector[i : i + x.size].reshape(x.shape) for x, i in zip(leaves, ends, strict=False)
        ]
        return jax.tree.unflatten(structure, parts)

    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in leaves]), rebuild


def gap(actual, expected):
    """Relative error in the Euclidean norm."""
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


class Case:
    """A preset on a fixed batch with episode ends, in one precision."""

    def __init__(self, preset, dtype, changes=()):
        values = SMALL | {"world_model.compute_dtype": dtype, "policy.entropy_coef": ALPHA}
        config = config_lib.flatten(presets.get(preset)) | values | dict(changes)
        with jax.enable_x64(dtype == "float64"):
            self.setting = Setting(config, seed=3)
        # Values steep enough to weigh as much as the divergence.
        for layer in self.setting.params.value["out"], self.setting.params.reward["out"]:
            layer["kernel_0"] *= 8.0
        self.config, self.dtype = self.setting.config, dtype
        self.latents = self.setting.roll_out()
        steps = self.latents.shape[0] - (not self.config.policy.last_state)
        self.z = self.latents[:steps]
        valid = np.asarray(self.setting.batch.valid)
        self.mask = valid[:steps]
        if self.config.policy.uses_records:
            self.mask = (valid & ~self.setting.rows.last)[:steps]
        self.key = jax.random.key(7)
        with jax.enable_x64(dtype == "float64"):
            # The draws differ between precisions.
            key, shape = jax.random.split(self.key)[0], (steps, WINDOWS, A)
            self.noise = np.asarray(jax.random.normal(key, shape, dtype), np.float64)
        self.base, self.rebuild = flat(self.setting.policy)
        self.at = self.head(self.base)

    def gradient(self, **policy):
        """Gradient of the implementation with other numbers in the group ``policy``."""
        config = config_lib.replace(self.config, {f"policy.{k}": v for k, v in policy.items()})
        one, args = self.setting, (self.setting.policy, self.setting.params, self.setting.prior)

        def cast(x):
            x = np.asarray(x)
            return jnp.asarray(x, self.dtype if x.dtype.kind == "f" else x.dtype)

        with jax.enable_x64(self.dtype == "float64"):
            args = jax.tree.map(cast, (*args, self.latents, one.batch))
            grads = compiled(*args, self.key, config, one.nets)
            assert all(x.dtype == self.dtype for x in jax.tree.leaves(grads))
            return flat(grads)[0]

    def oracle(self, loss):
        """Central differences over all parameters of ``loss(raw, log_std)`` ``[T, B]``."""

        def total(vector):
            return ref.rho_mean(loss(*self.head(vector)), self.mask, self.config.optimizer.rho)

        return ref.numerical_gradient(total, self.base, 1e-5)

    def head(self, vector):
        """Raw mean and log-std of the policy with these parameters."""
        return self.setting.actor(self.rebuild(vector), self.z)[1:]

    def action(self, raw, log_std):
        """Straight-through: the amount cut off at the point itself carries no gradient."""
        kind = self.config.world_model.squash
        return ref.squash(kind, raw, log_std, self.noise, self.offset())[0]

    def offset(self):
        if self.config.world_model.squash != "clip_straight_through":
            return None
        unclipped = np.tanh(self.at[0]) + np.exp(self.at[1]) * self.noise
        return np.clip(unclipped, -1.0, 1.0) - unclipped

    def q(self, action):
        heads = self.setting.values(self.setting.params.value, self.z, action)
        return getattr(heads, self.config.policy.q_reduce)(axis=0)

    def model_q(self, action):
        """One step of the model, then V; nothing follows a state that is likely terminal."""
        one = self.setting
        reward = ref.two_hot_decode(mlp(one.params.reward, [self.z, action]))
        following = one.dynamics(self.z, action)
        value = one.values(one.params.value, following).mean(axis=0)
        if one.params.termination is not None:
            value = value * self.goes_on(following)
        return reward + self.config.optimizer.discount * value

    def goes_on(self, latent):
        return mlp(self.setting.params.termination, [latent])[..., 0] <= 0.0

    def prior(self):
        if self.config.policy.prior == "learned":
            return self.setting.actor(self.setting.prior, self.z)[0][1:]
        rows = self.setting.rows.prior
        return rows.mean[: len(self.z)], rows.std[: len(self.z)]

    def kl(self, raw, log_std):
        """Closed form, per dimension, of the Gaussian over actions."""
        return ref.gaussian_kl(np.tanh(raw), np.exp(log_std), *self.prior())

    def scale(self, old, values):
        """The running scale after this batch."""
        return ref.running_scale_update(old, ref.percentile_spread(values[0][self.mask[0]]))

    def scale_q(self, q):
        return self.scale(SCALE_Q, q(self.action(*self.at)))


# ------------------------------------------------- the members' losses, as published


def tdmpc2(case):
    """-Q / S_Q - alpha H, under the squash and the bounds of the configuration."""
    scale = case.scale_q(case.q)

    def loss(raw, log_std):
        action = case.action(raw, log_std)
        bonus = ref.entropy_bonus("gaussian", action, log_std, case.noise)
        return -case.q(action) / scale - ALPHA * bonus

    return case.oracle(loss)


def tdmpc_square(case):
    rest = case.noise, case.q, *case.prior(), case.scale_q(case.q), ALPHA
    return case.oracle(lambda *pair: ref.tdmpc_square(*pair, *rest))


def boom(case):
    ranked = np.where(case.mask, case.q(case.action(*case.at)), -np.inf)
    rest = case.noise, case.q, case.prior()[0], case.scale_q(case.q)
    frozen = np.exp(case.at[1]), ranked, ALPHA
    return case.oracle(lambda *pair: ref.boom(*pair, *rest, *frozen))


def bmpc(case, alpha=ALPHA):
    scale = case.scale(SCALE_KL, np.mean(case.kl(*case.at), axis=-1))
    rest = case.noise, *case.prior(), scale, alpha
    return case.oracle(lambda *pair: ref.bmpc(*pair, *rest))


def regularised(case, q, lambda_):
    """-Q / S_Q + lambda KL / S_K - alpha H."""
    scales = case.scale_q(q), case.scale(SCALE_KL, np.sum(case.kl(*case.at), axis=-1))
    rest = case.noise, q, *case.prior(), *scales, lambda_, ALPHA, case.offset()
    return case.oracle(lambda *pair: ref.po_mpc_direct(*pair, *rest))


MEMBERS = {
    "tdmpc2": tdmpc2,
    "tdmpc_square": tdmpc_square,
    "boom": boom,
    "bmpc_v3": bmpc,
    "po_mpc_direct": lambda case: regularised(case, case.q, 1.0),
    "po_mpc": lambda case: regularised(case, case.q, 1.0),
    "qbmpc": lambda case: regularised(case, case.model_q, 1.0),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", MEMBERS)
def test_gradient_of_every_member_is_the_published_one(name, dtype):
    case = Case(name, dtype)
    expected = MEMBERS[name](case)
    assert np.linalg.norm(expected) > 0.01
    assert gap(case.gradient(), expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_model_that_knows_terminations_expects_nothing_after_them(dtype):
    case = Case("qbmpc", dtype, {"world_model.termination": True})
    head = case.setting.params.termination
    logits = mlp(head, [case.setting.dynamics(case.z, case.action(*case.at))])
    # Half of the states are terminal, none of them so narrowly that a difference would show it.
    middle = np.sort(logits.ravel())[logits.size // 4 : -logits.size // 4]
    widest = np.argmax(np.diff(middle))
    head["out"]["bias"] -= np.float32(np.mean(middle[widest : widest + 2]))
    goes_on = case.goes_on(case.setting.dynamics(case.z, case.action(*case.at)))
    assert 0.1 < goes_on.mean() < 0.9
    assert gap(case.gradient(), MEMBERS["qbmpc"](case)) <= TOLERANCE[dtype]
    with_all = Case("qbmpc", dtype)
    assert gap(case.gradient(), MEMBERS["qbmpc"](with_all)) > 5 * TOLERANCE[dtype]


# ------------------------------------------------------------------------- limits

SHRINKING = (1e-2, 1e-4, 1e-6, 1e-8)


def check_convergence(case, field, expected):
    """The gradient approaches ``expected``, in proportion to the coefficient."""
    gaps = np.array([gap(case.gradient(**{field: c}), expected) for c in SHRINKING])
    floor = TOLERANCE[case.dtype]
    assert gap(case.gradient(**{field: 1.0}), expected) > 0.1
    assert gaps[-1] <= floor
    visible = gaps > floor
    assert visible[0] and np.all(np.diff(gaps[visible]) < 0.0)
    rate = gaps[visible] / np.array(SHRINKING)[visible]
    np.testing.assert_allclose(rate, rate[0], rtol=0.05)
    assert gap(case.gradient(**{field: 0.0}), expected) <= floor


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "preset,changes", [("po_mpc", ()), ("po_mpc_direct", TANH)], ids=["clip", "tanh"]
)
def test_without_kl_the_gradient_is_tdmpc2s(preset, changes, dtype):
    """Under the same squash and log-std bounds, over the states that the loss looks at."""
    case = Case(preset, dtype, changes)
    check_convergence(case, "kl_coef", tdmpc2(case))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_without_q_the_gradient_is_bmpcs(dtype):
    case = Case("po_mpc_direct", dtype, {"policy.kl_dim_power": -1.0})
    check_convergence(case, "q_coef", bmpc(case))


def test_with_strong_kl_the_direction_is_bmpcs():
    """Per unit of a growing lambda, Q and entropy vanish: Variant 3 of the BMPC paper."""
    case = Case("po_mpc_direct", "float64", {"policy.kl_dim_power": -1.0})
    expected = bmpc(case, alpha=0.0)
    gaps = [gap(case.gradient(kl_coef=c) / c, expected) for c in (1.0, 1e2, 1e4, 1e8)]
    assert np.all(np.diff(gaps) < 0.0) and gaps[-1] <= 1e-6
