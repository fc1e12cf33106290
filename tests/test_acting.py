"""Acting: rejected arguments, x64, and derivatives of the world model in both modes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from pomcp_jax import acting, actors, maths, world_model
from pomcp_jax.acting import AgentParams
from pomcp_jax.config import ConfigError

OBS, A, N = 5, 2, 3
CONFIG = tiny.agent()
SPEC = acting.build(CONFIG, OBS, A)


def fresh(config=CONFIG):
    model, key = config.world_model, jax.random.key(0)
    actor = world_model.init_policy(key, model, A)
    return AgentParams(world_model.init(key, model, OBS, A), actor, actor)


def act(obs, num=N, first=N, config=CONFIG):
    plan = acting.init_plan(config, SPEC, num)
    call = functools.partial(acting.act, spec=acting.build(config, OBS, A), config=config)
    return call(fresh(config), jax.random.key(1), obs, plan, jnp.ones(first, bool))


@pytest.mark.parametrize(
    "function",
    [act, lambda o: acting.act_policy(fresh(), jax.random.key(0), o, spec=SPEC, config=CONFIG)],
)
@pytest.mark.parametrize(
    "shape,message",
    [
        ((N, 17), "observation has 17 entries; this agent was built for 5"),
        ((5,), "obs has shape [5]: must be [N, 5] for N environments"),
    ],
)
def test_observations_of_another_size_are_refused_by_name(function, shape, message):
    with pytest.raises(ConfigError) as caught:
        function(jnp.zeros(shape))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "sizes,message",
    [
        ({"num": 2}, "plan_state.mean has shape [2, 3, 2]: must be [3, 3, 2], obs has 3 rows"),
        ({"first": 2}, "is_first has shape [2]: must be [3], obs has 3 rows"),
    ],
)
def test_another_number_of_environments_is_refused_by_name(sizes, message):
    with pytest.raises(ConfigError) as caught:
        act(jnp.zeros((N, OBS)), **sizes)
    assert str(caught.value) == message


def test_agents_stay_in_float32_under_x64():
    with jax.enable_x64(True):
        params = fresh()
        out = jax.jit(act)(jnp.zeros((N, OBS)))
        action = acting.act_policy(
            params, jax.random.key(0), jnp.zeros((N, OBS)), spec=SPEC, config=CONFIG
        )
    dtypes = {x.dtype for x in jax.tree.leaves((params, out, action))}
    assert dtypes == {jnp.dtype(jnp.float32), jnp.dtype(jnp.int32)}


def test_networks_in_bfloat16_plan_in_float32():
    config = tiny.agent(world_model__compute_dtype="bfloat16")
    out = jax.jit(functools.partial(act, config=config))(jnp.ones((N, OBS)))
    assert out.action.dtype == jnp.float32 and np.all(np.isfinite(out.value))


# ------------------------------------------------------------------------- derivatives


def test_hessian_and_tangents_of_the_dynamics():
    """Forward over reverse, reverse over reverse and differences agree, in float64."""
    with jax.enable_x64(True):
        params = jax.tree.map(
            lambda x: x.astype(jnp.float64) + 0.3 * jax.random.normal(jax.random.key(2), x.shape),
            fresh().model.dynamics,
        )
        wide = world_model.build(CONFIG.world_model, A).dynamics.clone(dtype=jnp.float64)
        apply = lambda z: jnp.sum(wide.apply({"params": params}, z, jnp.ones(A)) ** 2)  # noqa: E731
        latent = jax.random.normal(jax.random.key(3), (16,))
        tangent = jax.random.normal(jax.random.key(4), (16,))
        gradient = jax.grad(apply)
        hessian = jax.jit(jax.hessian(apply))(latent)
        product = jax.jit(lambda z, t: jax.jvp(gradient, (z,), (t,))[1])(latent, tangent)
        step = 1e-5 * tangent
        near = (gradient(latent + step) - gradient(latent - step)) / 2e-5
    np.testing.assert_allclose(
        product, np.asarray(hessian) @ np.asarray(tangent), rtol=1e-8, atol=1e-12
    )
    np.testing.assert_allclose(product, near, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-10)
    assert np.max(np.abs(hessian)) > 1e-4


def test_tangents_of_layer_norm_are_those_of_its_formula():
    def formula(x, scale, offset):
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        return centred / jnp.sqrt(variance + 1e-5) * scale[None] + offset[None]

    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 6)
        shapes = ((4, 8), (8,), (8,))
        primals = tuple(jax.random.normal(k, s) for k, s in zip(keys[:3], shapes, strict=True))
        tangents = tuple(jax.random.normal(k, s) for k, s in zip(keys[3:], shapes, strict=True))
        for ours, theirs in zip(
            jax.jvp(maths.layer_norm, primals, tangents),
            jax.jvp(formula, primals, tangents),
            strict=True,
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-10)
        _, ours = jax.vjp(maths.layer_norm, *primals)
        _, theirs = jax.vjp(formula, *primals)
        for a, b in zip(ours(tangents[0]), theirs(tangents[0]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


def test_the_end_of_a_plan_without_noise():
    """The value of the policy's mode, under every key; drawn actions differ."""
    params, latent = fresh(), jax.nn.softmax(jnp.arange(CONFIG.world_model.latent_size * 1.0))

    def tails(choice):
        config = tiny.agent(critic__tail_action=choice)
        value = acting.model_fns(SPEC, config).value
        return jax.vmap(lambda key: value(loud, key, latent))(
            jax.random.split(jax.random.key(2), 8)
        )

    # Values of fresh heads are 0 for all actions.
    noise = jax.random.normal(jax.random.key(1), (64,))
    loud = params._replace(model=params.model._replace(value=jax.tree.map(
        lambda x: x + jnp.resize(noise, x.shape), params.model.value
    )))  # fmt: skip
    model = CONFIG.world_model
    mode = actors.mode(actors.distribution(SPEC.nets, params.policy, latent, model), model.squash)
    bins = world_model.bins(model)
    expected = jnp.mean(world_model.values(SPEC.nets, loud.model.value, latent, mode, bins))
    np.testing.assert_allclose(tails("mode"), expected, rtol=1e-5)
    assert np.std(tails("sample")) > 1e-3 * abs(expected)
