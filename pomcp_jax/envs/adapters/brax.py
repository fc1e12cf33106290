"""Raw brax environments as tasks.

brax's training wrappers replace the last observation of an episode by the first
of the next and restart from one cached state; here only the raw environment is
used, and :func:`pomcp_jax.envs.protocol.make_env` does everything else. ``done`` of the
raw environment is a termination; time limits belong to the wrappers.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pomcp_jax.envs.physics import quiet_mjx, quiet_mujoco, relaxed
from pomcp_jax.envs.protocol import Scene, Task
from pomcp_jax.types import Key, PyTree

_EPISODE_STEPS = 1000
"""brax's default, ``episode_length`` of ``brax.envs.create``."""


class State(NamedTuple):
    """The part of brax's state that its dynamics read; info and metrics are dropped."""

    pipeline: PyTree
    obs: Float[Array, " O"]
    reward: Float[Array, ""]
    done: Float[Array, ""]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress output and warnings of brax's modules and models, which users cannot act on."""
    out, err = io.StringIO(), io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        warnings.simplefilter("ignore")
        yield


def make(name: str, backend: str = "mjx", episode_steps: int = _EPISODE_STEPS) -> Task:
    """brax environment of that name; ``backend`` is mjx, spring, positional or generalized."""
    quiet_mjx()
    with _quiet(), quiet_mujoco(), relaxed():
        from brax import envs

        env = envs.get_environment(name, backend=backend)

    def keep(state: Any) -> State:
        # Some environments return Python floats here, which cannot be carried through a scan.
        reward, done = jnp.asarray(state.reward), jnp.asarray(state.done)
        return State(state.pipeline_state, state.obs, reward, done)

    def reset(key: Key) -> State:
        with _quiet(), relaxed():
            return keep(env.reset(key))

    def step(state: State, action: Float[Array, " A"]) -> State:
        # Metrics and info start empty each step: brax only ever updates them.
        full = envs.State(state.pipeline, state.obs, state.reward, state.done, {}, {})
        with _quiet(), relaxed():
            return keep(env.step(full, action))

    key = jax.eval_shape(lambda: jax.random.key(0))
    return Task(
        name=f"brax/{name}",
        reset=reset,
        step=step,
        observe=lambda state: state.obs,
        reward=lambda state: state.reward,
        terminated=lambda state: state.done > 0.5,
        observation_size=jax.eval_shape(reset, key).obs.shape[0],
        action_size=env.action_size,
        episode_steps=episode_steps,
        scene=Scene(
            model=env.sys.mj_model,
            # brax's own names: all of its pipelines have them, with MuJoCo's layout.
            pose=lambda state: {"qpos": state.pipeline.q, "qvel": state.pipeline.qd},
            timestep=round(float(env.dt), 6),  # a float32
        ),
    )
