"""Export of a trained agent as one StableHLO program, for processes without pomcp_jax.

Parameters are constants of the program. :mod:`jax.export` guarantees that it can be read by later
releases of JAX (six months at least) and by other runtimes of StableHLO.

Symbols: N observations at once, O observation size, A action size, H horizon.
"""

import functools
import importlib.util
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from pomcp_jax import acting, controller
from pomcp_jax.acting import AgentParams, AgentSpec
from pomcp_jax.config import AgentConfig
from pomcp_jax.controller import ControllerState
from pomcp_jax.mppi import PlanState

PLATFORMS = ("cpu", "cuda", "tpu")


def export(
    params: AgentParams,
    config: AgentConfig,
    spec: AgentSpec,
    *,
    actor: str = "planner",
    select: str = "argmax",
    num: int = 1,
    platforms: Sequence[str] = ("cpu",),
) -> jax_export.Exported:
    """The agent as an exported function of arrays.

    Args:
      params: parameters of one seed.
      config: configuration of the agent.
      spec: static part of the agent.
      actor: ``planner``, ``policy`` or ``prior``.
      select: elite that the planner executes, see :func:`controller.make_fns`.
      num: N, the number of observations of a call.
      platforms: of :data:`PLATFORMS`; the program holds a version for each.

    Returns:
      For the planner ``(key uint32[2], obs [N, O], plan [N, H, A], is_first bool[N]) ->
      (action [N, A], key, plan)``: key and plan are those of the next call, ``is_first`` drops
      the plan. With ``mppi.action_rate_cost`` the plan is a tuple of ``[N, H, A]`` and the last
      action ``[N, A]``. For the others ``obs [N, O] -> action [N, A]``. Actions are in
      ``[-1, 1]``, without exploration noise.

    Raises:
      ValueError: one line, as :func:`controller.make_fns`, or for N or platforms.
    """
    if isinstance(num, bool) or not isinstance(num, int) or num < 1:
        raise ValueError(f"num = {num!r}: must be an integer >= 1")
    for name in platforms:
        if name not in PLATFORMS:
            raise ValueError(f"platforms = {name!r}: must be of {', '.join(PLATFORMS)}")
    if not platforms:
        raise ValueError("platforms is empty: must name at least one")
    fns = controller.make_fns(config, spec, actor=actor, select=select)  # type: ignore[arg-type]
    obs = jax.ShapeDtypeStruct((num, spec.obs_size), jnp.float32)
    lower = functools.partial(jax_export.export, platforms=tuple(platforms))
    if actor != "planner":
        state = fns.init(jax.random.key(0), num)
        # Without noise the key is drawn from but has no effect.
        return lower(jax.jit(lambda obs: fns.act(params, state, obs)[1]))(obs)

    def plan(key: Any, obs: Any, given: Any, is_first: Any) -> tuple:
        warm = PlanState(*given) if isinstance(given, tuple) else PlanState(given)
        state = ControllerState(jax.random.wrap_key_data(key), warm, is_first)
        state, action = fns.act(params, state, obs)
        return action, jax.random.key_data(state.key), _arrays(state.plan)

    start = acting.init_plan(config, spec, num)
    return lower(jax.jit(plan))(
        jax.ShapeDtypeStruct((2,), jnp.uint32),
        obs,
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _arrays(start)),
        jax.ShapeDtypeStruct((num,), jnp.bool),
    )


def _arrays(state: PlanState) -> Any:
    """A plan's state without our classes: an array, or a tuple if it has the last action."""
    return state.mean if state.action is None else (state.mean, state.action)


def check_serialisable() -> None:
    """Check that JAX finds the library with which it writes programs.

    Raises:
      ValueError: one line with the command that installs it.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ValueError("a .stablehlo file needs flatbuffers: pip install flatbuffers")


def serialised(exported: jax_export.Exported, suffix: str) -> bytes:
    """Content of a file: for :func:`jax.export.deserialize`, or as text for ``.mlir``."""
    if suffix == ".mlir":
        return exported.mlir_module().encode()
    return bytes(exported.serialize())


def deviation(exported: jax_export.Exported, fns: Any, params: AgentParams, obs: Any) -> float:
    """Largest difference of the exported program's first actions from the agent's own.

    Args:
      exported: from :func:`export`, for this machine's platform.
      fns: from :func:`controller.make_fns`, for the same agent.
      params: parameters of that agent.
      obs: ``[N, O]``.
    """
    num = len(obs)
    state = fns.init(jax.random.key(0), num)
    _, expected = jax.jit(fns.act)(params, state, obs)
    if len(exported.in_avals) == 1:
        action = exported.call(obs)
    else:
        key = jax.random.key_data(state.key)
        action = exported.call(key, obs, _arrays(state.plan), state.is_first)[0]
    return float(np.max(np.abs(np.asarray(action) - np.asarray(expected))))
