"""Raw MuJoCo Playground environments as tasks.

Playground's wrappers replace the last observation of an episode by the first of the
next and restart from one cached state; here only the raw environment is used, and
:func:`pomcp_jax.envs.protocol.make_env` does the rest. ``done`` of the raw environment
is a termination unless the physics diverged: then the reward is NaN and ``make_env``
masks the step. Actions are passed unchanged, as Playground's own agents do. If
observations are dictionaries, the entry ``state`` is used.

Playground's ports of dm_control differ from the original tasks. Nothing is downloaded.
"""

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pomcp_jax import nearest
from pomcp_jax.envs.physics import quiet_mjx, quiet_mujoco, relaxed
from pomcp_jax.envs.protocol import Scene, Task
from pomcp_jax.types import Key


@contextlib.contextmanager
def _loose() -> Iterator[None]:
    """Suppress output and warnings, also of MuJoCo's C code, and allow dtype promotion."""
    sink = io.StringIO()
    out, err = contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink)
    with out, err, quiet_mujoco(), warnings.catch_warnings(), relaxed():
        warnings.simplefilter("ignore")
        yield


def names() -> tuple[str, ...]:
    """Every name that :func:`make` knows; none if Playground is not installed."""
    if importlib.util.find_spec("mujoco_playground") is None:
        return ()
    with _loose():
        from mujoco_playground import registry
    return tuple(registry.ALL_ENVS)


def check_name(name: str) -> None:
    """Raise a one-line error unless Playground is installed and has ``name``."""
    _config(name)


def _config(name: str) -> Any:
    """Default configuration of the environment of that name."""
    known = names()
    if not known:
        raise ModuleNotFoundError(
            'playground tasks need MuJoCo Playground: pip install "pomcp_jax[playground]"'
        )
    if name not in known:
        hint = nearest.hint(name, known, "playground/{}") or f" (known: {', '.join(known)})"
        raise ValueError(f"unknown environment 'playground/{name}'{hint}")
    from mujoco_playground import registry

    return registry.get_default_config(name)


def action_repeat(name: str) -> int:
    """Action repeat with which Playground trains this environment; its task has none."""
    return int(_config(name).action_repeat)


def _load(name: str, config: Any) -> tuple[Any, Any, Any]:
    """Raw environment, the shapes of its state, and MJX data to fill in."""
    import mujoco
    from mujoco_playground import dm_control_suite, registry
    from mujoco_playground._src import mjx_env

    robots = mjx_env.MENAGERIE_PATH
    if name not in dm_control_suite.ALL_ENVS and not robots.exists():
        # registry.load would run git clone: no library call should download behind the user's back.
        raise FileNotFoundError(
            f"playground/{name} needs mujoco_menagerie: clone https://github.com/google-deepmind/"
            f"mujoco_menagerie to {robots} and check out {mjx_env.MENAGERIE_COMMIT_SHA}"
        )
    try:
        with _loose():
            env = registry.load(name, config=config)
            shapes = jax.eval_shape(env.reset, jax.random.key(0))
            sizes = {size: config.get(size) for size in ("naconmax", "naccdmax", "njmax")}
            impl = env.mjx_model.impl.value
            return env, shapes, quiet_mjx().make_data(env.mj_model, impl=impl, **sizes)
    except Exception as error:
        failed = f"playground/{name} does not load under mujoco {mujoco.__version__}"
        raise RuntimeError(f"{failed}: {' '.join(str(error).split())}") from error


def _is_finite(state: Any) -> Bool[Array, ""]:
    return jnp.all(jnp.isfinite(jnp.concatenate([state.data["qpos"], state.data["qvel"]])))


def make(name: str, impl: str = "jax", **overrides: Any) -> Task:
    """Playground environment of that name; ``overrides`` go to its configuration."""
    # Locked, so that a misspelt override is an error instead of a new entry.
    config = _config(name).lock()
    # AeroCubeRotateZAxis has no such setting.
    wanted = ({"impl": impl} if "impl" in config else {}) | overrides
    try:
        config.update_from_flattened_dict(wanted)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()).partition(" Other fields")[0]
        raise ValueError(f"playground/{name} refuses {overrides}: {reason}") from error
    env, shapes, blank = _load(name, config)

    def observe(state: Any) -> Any:
        return state.obs.get("state") if isinstance(state.obs, dict) else state.obs

    seen = observe(shapes)
    if len(getattr(seen, "shape", ())) != 1:
        raise ValueError(f"playground/{name} has no flat observation but {shapes.obs}")

    def keep(state: Any) -> Any:
        # Drop the engine's scratch space: Warp shares part of it between rows, and every step
        # computes it again.
        kept = [field.name for field in fields(state.data) if field.name != "_impl"]
        return state.replace(data={key: getattr(state.data, key) for key in kept})

    def reset(key: Key) -> Any:
        with _loose():
            return keep(env.reset(key))

    def step(state: Any, action: Float[Array, " A"]) -> Any:
        # Copy the containers: Playground writes into the dictionaries that it is given, and these
        # belong to the caller's trace.
        state = jax.tree.map(lambda leaf: leaf, state)
        with _loose():
            full = state.replace(data=blank.replace(**state.data))
            return keep(env.step(full, action.astype(full.data.ctrl.dtype)))

    def pose(state: Any) -> dict[str, Array]:
        # Targets and references of its robots are mocap bodies.
        return {key: state.data[key] for key in ("qpos", "qvel", "mocap_pos", "mocap_quat")}

    return Task(
        name=f"playground/{name}",
        reset=reset,
        step=step,
        observe=observe,
        reward=lambda state: jnp.where(_is_finite(state), state.reward, jnp.nan),
        terminated=lambda state: state.done.astype(bool) & _is_finite(state),
        observation_size=seen.shape[0],
        action_size=env.action_size,
        episode_steps=int(config.episode_length),
        scene=Scene(env.mj_model, pose, float(env.dt)),
    )
