"""Random small agent and batch with numpy forward passes, shared by the oracles of losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import reference as ref

from pomcp_jax import config as config_lib
from pomcp_jax import world_model
from pomcp_jax.actors import AgentParams
from pomcp_jax.config import AgentConfig, WorldModelConfig
from pomcp_jax.policy_loss import Scales
from pomcp_jax.replay import Batch, Index, Row
from pomcp_jax.types import Gaussian

A = 2


def near(actual, expected, tol):
    """Relative error, measured against the largest expected entry."""
    expected = np.asarray(expected, np.float64)
    scale = np.max(np.abs(expected)) if expected.size else 0.0
    np.testing.assert_allclose(actual, expected, rtol=tol, atol=tol * scale)


def draw(seed, *shape, scale=1.0):
    return np.random.default_rng(seed).normal(scale=scale, size=shape)


def mlp(params, inputs, final=None):
    """The network's forward pass in numpy, from its parameters."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    for name in sorted(k for k in params if k != "out"):
        inputs = [layer(params[name], inputs, ref.mish)]
    out = params["out"]
    if final is not None:
        return layer(out, inputs, final)
    return sum(x @ out[f"kernel_{i}"] for i, x in enumerate(inputs)) + out["bias"]


def scales(q, kl, log_multiplier=0.0):
    """Running scales as arrays; the prior's is 1."""
    return Scales(*(jnp.asarray(x, jnp.float32) for x in (q, kl, 1.0, log_multiplier)))


def layer(params, inputs, activation):
    linear = params["linear"]
    kernels = [linear[f"kernel_{i}"] for i in range(len(inputs))]
    if activation is ref.mish:
        return ref.normed_linear(inputs, kernels, linear["bias"], params["scale"], params["offset"])
    pre = sum(x @ k for x, k in zip(inputs, kernels, strict=True)) + linear["bias"]
    return activation(ref.layer_norm(pre, params["scale"], params["offset"]))


def random_params(init, seed, scale=0.4):
    """Random values in the shapes of ``init(key)``, which itself gives many zeros and ones."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(init, jax.random.key(0)))
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        tree, [rng.normal(scale=scale, size=x.shape).astype(np.float32) for x in leaves]
    )


SMALL = WorldModelConfig(
    latent_size=16, encoder_width=12, mlp_width=20, simnorm_group=4, num_bins=21, num_heads=2
)


STEPS, WINDOWS, OBS = 3, 11, 6


def make_batch(seed=0):
    """Windows of H + 1 rows; one ends early, one has its last action terminating."""
    rng = np.random.default_rng(seed)
    shape = (STEPS + 1, WINDOWS)
    last, valid = np.zeros(shape, bool), np.ones(shape, bool)
    last[1, 2], valid[2:, 2] = True, False
    last[0, 5], valid[1:, 5] = True, False
    last[3, 7] = True
    terminated = np.zeros(shape, bool)
    terminated[0, 2] = terminated[2, 7] = True

    def f32(x):
        return jnp.asarray(x, jnp.float32)

    rows = Row(
        obs=f32(rng.normal(size=(*shape, OBS))),
        action=f32(rng.uniform(-1, 1, size=(*shape, A))),
        reward=f32(rng.normal(scale=5.0, size=shape)),
        terminated=jnp.asarray(terminated),
        last=jnp.asarray(last),
        prior=Gaussian(
            f32(rng.uniform(-1, 1, size=(*shape, A))), f32(rng.uniform(0.05, 1, (*shape, A)))
        ),
        prior_value=jnp.zeros(shape),
        made=jnp.zeros(shape, jnp.int32),
    )
    zeros = jnp.zeros(shape, jnp.int32)
    return Batch(rows, Index(zeros, zeros), jnp.asarray(valid))


class Setting:
    """Random parameters of a small agent and its numpy forward passes."""

    def __init__(self, changes, seed=0):
        self.config = config_lib.replace(
            AgentConfig(world_model=SMALL), {"world_model.dropout": 0.0, **changes}
        )
        model = self.config.world_model
        self.nets = world_model.build(model, A)

        def init_model(key):
            return world_model.init(key, model, OBS, A)

        def init_policy(key):
            return world_model.init_policy(key, model, A)

        self.params = random_params(init_model, seed)
        self.target = random_params(init_model, seed + 1).value
        self.policy = random_params(init_policy, seed + 2)
        self.prior = random_params(init_policy, seed + 3)
        self.agent = AgentParams(self.params, self.policy, self.prior)
        self.batch = make_batch(seed)
        self.rows = jax.tree.map(
            lambda x: np.asarray(x, np.float64) if x.dtype == jnp.float32 else np.asarray(x),
            self.batch.rows,
        )

    def run(self, function, *args):
        """The implementation, compiled whole."""
        return jax.jit(functools.partial(function, nets=self.nets, config=self.config))(*args)

    def norm(self, x):
        return ref.simnorm(x, self.config.world_model.simnorm_group)

    def encode(self, obs):
        return mlp(self.params.encoder, [obs], self.norm)

    def dynamics(self, z, a):
        return mlp(self.params.dynamics, [z, a], self.norm)

    def actor(self, params, z, eps=0.0):
        model = self.config.world_model
        out = mlp(params, [z])
        log_std = ref.bounded_log_std(out[..., A:], model.log_std_min, model.log_std_max)
        return ref.squash(model.squash, out[..., :A], log_std, eps), out[..., :A], log_std

    def values(self, params, *inputs):
        num = jax.tree.leaves(params)[0].shape[0]
        return np.stack([
            ref.two_hot_decode(mlp(jax.tree.map(lambda x, i=i: x[i], params), list(inputs)))
            for i in range(num)
        ])  # fmt: skip

    def roll_out(self):
        latents = [self.encode(self.rows.obs[0])]
        for action in self.rows.action[:-1]:
            latents.append(self.dynamics(latents[-1], action))
        return np.stack(latents)
