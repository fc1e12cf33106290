"""Models arranged for a CPU and for a GPU: the same plans and updates, in another order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from pomcp_jax import acting, agent, envs, mppi, packing, train
from pomcp_jax import config as config_lib
from pomcp_jax.config import MppiConfig
from pomcp_jax.mppi import ModelFns
from pomcp_jax.packing import Packed
from pomcp_jax.planner_model import SplitStep
from pomcp_jax.replay import Batch, Index, Row
from pomcp_jax.types import Gaussian

OBS, ACTIONS, BATCH = 3, 2, 8

# ------------------------------------------------------------------- a user's model, in parts


def advance(params, prepared, action):
    """A mass that is pushed; the part of its next state without the action is prepared."""
    x, clock = prepared
    return {"x": x + params * action, "clock": clock + 1}, (x, action, clock)


def outcome(params, seen):
    """The episode ends at the third step, and nothing behind it is a number."""
    x, action, clock = seen
    reward = jnp.where(clock > 2, jnp.nan, 1.0 - jnp.sum(jnp.square(x)) - 0.1 * action[0])
    return reward, jnp.where(clock == 2, 0.0, 0.9)


def prepare(params, latent):
    return latent["x"] * 0.9, latent["clock"]


def whole(params, latent, action):
    following, seen = advance(params, prepare(params, latent), action)
    return following, *outcome(params, seen)


def test_a_model_given_in_parts_plans_as_the_whole():
    config = MppiConfig(horizon=4, num_samples=64, num_proposals=5, num_elites=8, iterations=3)
    root = {"x": jnp.array([0.4, -0.2]), "clock": jnp.zeros((), jnp.int32)}
    rest = (
        lambda params, key, z: jnp.sum(z["x"]) + jax.random.normal(key),
        lambda params, key, z: -z["x"] + 0.1 * jax.random.normal(key, (2,)),
    )
    key, params = jax.random.key(0), jnp.float32(0.3)
    actions = jax.random.uniform(key, (6, 4, 2), minval=-1.0)

    def everything(step):
        model = ModelFns(step, *rest)

        @jax.jit
        def run(params, key, root):
            keys = jax.random.split(key, 6)
            return (
                mppi.imagine(params, key, root, mppi.init(config, 2), model=model, config=config),
                mppi.propose(params, key, root, model=model, config=config),
                mppi.score(params, keys, root, actions, model=model),
            )

        return run(params, key, root)

    outs = everything(whole), everything(SplitStep(prepare, advance, outcome))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *outs)


# ------------------------------------------------------------------------- agents


def contiguous(config, tree):
    """``tree`` of an agent for a CPU, every latent in the order of an agent for a GPU.

    Entry ``j G + g``, member j of group g of G, moves to ``g n + j``.
    """
    size, n = config.world_model.latent_size, config.world_model.simnorm_group
    order = np.arange(size).reshape(n, -1).T.reshape(-1)

    def moved(path, x):
        names = jax.tree_util.keystr(path, simple=True, separator=" ").split()
        makes_latents = "out" in names and {"encoder", "dynamics"} & {*names}
        reads_latents = "encoder" not in names and names[-3:] == ["layer_0", "linear", "kernel_0"]
        if makes_latents:
            return jnp.take(x, order, axis=-1)
        return jnp.take(x, order, axis=-2) if reads_latents else x

    return jax.tree_util.tree_map_with_path(moved, tree)


@functools.cache
def shaken(critic, termination):
    """An agent for a CPU that learned for a while: no layer is zero, Adam's steps are smooth."""
    config = tiny.agent(
        world_model__critic=critic,
        world_model__termination=termination,
        world_model__dropout=0.0 if critic == "v" else 0.1,
        policy__q_source="model" if critic == "v" else "critic",
        optimizer__learning_rate=0.1,
    )
    spec = acting.build(config, OBS, ACTIONS)
    rng = np.random.default_rng(0)
    shake = lambda x: x + jnp.asarray(rng.normal(0.0, 0.3, x.shape), x.dtype)  # noqa: E731
    state = jax.jit(lambda key: agent.init(key, config, spec))(jax.random.key(0))
    state = state._replace(
        params=jax.tree.map(shake, state.params),
        target_value=jax.tree.map(shake, state.target_value),
        # A first step divides every gradient by its own size: rounding would turn signs.
        opt=jax.tree.map(lambda x: jnp.ones_like(x) if x.ndim else x, state.opt),
    )
    return config, state


def for_gpu(config):
    return config_lib.replace(config, {"world_model.arranged_for": "gpu"})


CASES = [("q", False, 1), ("q", True, 3), ("v", False, 3)]


@pytest.mark.parametrize("critic,termination,horizon", CASES)
def test_both_arrangements_plan_the_same(critic, termination, horizon):
    config, state = shaken(critic, termination)
    config = config_lib.replace(config, {"mppi.horizon": horizon})
    obs = jnp.asarray(np.random.default_rng(1).normal(size=(2, OBS)), jnp.float32)

    def decide(config, params):
        spec = acting.build(config, OBS, ACTIONS)
        act = jax.jit(functools.partial(acting.act, spec=spec, config=config))
        start = acting.init_plan(config, spec, 2)
        return act(params, jax.random.key(1), obs, start, jnp.ones(2, bool))

    outs = (
        decide(config, state.params),
        decide(for_gpu(config), contiguous(config, state.params)),
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), *outs)
    assert np.ptp(outs[0].value) > 0.01  # two different plans


def windows(length):
    rng = np.random.default_rng(2)
    shape = (length, BATCH)
    f32 = lambda *s: jnp.asarray(rng.uniform(-0.7, 0.7, s), jnp.float32)  # noqa: E731
    ends = jnp.zeros(shape, bool).at[-1, :2].set(True)
    record = Gaussian(f32(*shape, ACTIONS), jnp.full((*shape, ACTIONS), 0.5))
    zero = jnp.zeros(shape, jnp.int32)
    rows = Row(
        f32(*shape, OBS), f32(*shape, ACTIONS), f32(*shape), ends, ends, record, f32(*shape), zero
    )
    return Batch(rows, Index(zero, zero), jnp.ones(shape, bool))


@pytest.mark.parametrize("critic,termination", [("q", True), ("v", False)])
def test_both_arrangements_learn_the_same(critic, termination):
    """On a GPU with the small parameters of each network as one vector, as training has them."""
    config, state = shaken(critic, termination)

    def learn(config, state):
        spec = acting.build(config, OBS, ACTIONS)
        update = jax.jit(functools.partial(agent.update, spec=spec, config=config))
        return update(state, windows(config.mppi.horizon + 1), jax.random.key(2))

    cpu, losses = learn(config, state)
    gpu, others = learn(for_gpu(config), packing.pack(contiguous(config, state)))
    assert len(jax.tree.leaves(gpu)) < 0.6 * len(jax.tree.leaves(cpu))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4)
    jax.tree.map(functools.partial(close, atol=1e-5), losses, others)
    jax.tree.map(functools.partial(close, atol=2e-6), contiguous(config, cpu), packing.unpack(gpu))
    steps = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), cpu.params, state.params)
    assert max(jax.tree.leaves(steps)) > 1e-3


# ------------------------------------------------------------------- packed parameters


def test_packed_parameters_come_back_as_they_were():
    """Of two seeds, as a chunk of training packs them, heads included."""
    _, state = shaken("q", True)
    seeds = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), state)
    packed = packing.pack(seeds)
    jax.tree.map(np.testing.assert_array_equal, packing.unpack(packed), seeds)
    value = packed.params.model.value
    assert [x.ndim for x in value.kernels] == [4] * 4 and value.vector.shape[:2] == (2, 3)
    assert isinstance(packed.opt.prior.mu, Packed)


def test_training_packs_inside_of_a_chunk_only():
    def traced(arranged_for):
        config = tiny.run(agent_changes={"world_model__arranged_for": arranged_for})
        env = envs.make(config.env.task)
        spec = acting.build(config.agent, env.observation_size, env.action_size)
        state = jax.eval_shape(lambda: train.init(config, env, spec))
        chunk = jax.make_jaxpr(
            functools.partial(train.chunk, env=env, spec=spec), return_shape=True
        )
        program, (after, _) = chunk(state, config, train.Work(1, 1, 1, False, True, False))
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)
        loop = [eqn for eqn in program.eqns if eqn.primitive.name == "while"][-1]
        return len(loop.outvars)

    assert traced("gpu") < 0.7 * traced("cpu")
