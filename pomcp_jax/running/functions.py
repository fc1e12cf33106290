"""Compiled functions of a run: the training program, evaluation, and resets of diverged agents."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from pomcp_jax import (
    compiled,
    diagnostics,
    envs,
    evaluate,
    prefill,
    seed_axis,
    state_edits,
    train,
)
from pomcp_jax.compiled import Compiled
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.envs import history
from pomcp_jax.envs.protocol import Env
from pomcp_jax.evaluate import Episodes
from pomcp_jax.running.metrics import Results
from pomcp_jax.train import Program, TrainState


class Functions(NamedTuple):
    """Compiled functions of a run, evaluation included."""

    program: Program
    evaluate_planner: Callable[[TrainState, Config], tuple[Episodes, Results]]
    """Episodes of the planner, and diagnostics; compiled while training runs if ``Compiled``."""
    evaluate_policy: Callable[[TrainState, Config], Episodes]
    """Likewise."""
    reset_agents: Callable[[TrainState, Config, np.ndarray], TrainState]
    """Donates its state argument."""
    buffer: Callable[[], prefill.Prefill] | None = None
    """Reads ``train.buffer`` and checks it; None without one."""


def build(config: Config, env: Env | None = None) -> Functions:
    """Build the functions of a run without compiling them; ``config.env`` names a missing ``env``.

    Raises:
      ConfigError: a package, a file or a capability of the physics is missing.
    """
    env = environment(config) if env is None else history.stacked(env, config.env.history)
    # Run.go reports the same doubts as progress lines; a warning would repeat them with a path.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        program = train.build(config, env)
    buffer = None
    if config.train.buffer:
        # Kept between the check at the start and the initial state: files may be large.
        buffer = functools.lru_cache(maxsize=1)(lambda: prefill.load(config, env))
        program = program._replace(init=prefill.filling(program.init, buffer, program.mesh))

    def planner(state: TrainState, config: Config) -> tuple[Episodes, Any]:
        played = diagnostics.evaluate_run(state, config, env=env, spec=program.spec)
        return played[0], compiled.hide_nans(played[1])

    # NaNs leave the program as masks: under jax_debug_nans a NaN that means "no value" would
    # raise. They are put back on the host.
    def with_nans(out: tuple[Episodes, Any], *_: Any) -> tuple[Episodes, Results]:
        return out[0], compiled.show_nans(*out[1])

    def policy(state: TrainState, config: Config) -> Episodes:
        return evaluate.rollout(
            state.agent.params,
            train.fold_keys(state, train.EVALUATION, state.iteration),
            env=env,
            spec=program.spec,
            config=config.agent,
            episodes=config.train.eval_episodes,
            planner=False,
        )

    def renew(state: TrainState, config: Config, which: jax.Array) -> TrainState:
        return state_edits.reset_agents(state, config, program.spec, which)

    def spread(function: Callable, in_specs: tuple, out_specs: Any) -> Callable:
        return seed_axis.spread(function, program.mesh, in_specs, out_specs)

    # ``reads`` are the settings that the traces depend on: without them every change of, say,
    # checkpoint_keep would compile again.
    only_state, reads = (train.SPECS, None), diagnostics.READS
    renewed = spread(renew, (*only_state, seed_axis.SPLIT), train.SPECS)
    return Functions(
        program,
        Compiled(jax.jit(spread(planner, only_state, seed_axis.SPLIT)), reads, finish=with_nans),
        Compiled(jax.jit(spread(policy, only_state, seed_axis.SPLIT)), reads),
        Compiled(jax.jit(renewed, donate_argnums=0), train.CHUNK_READS),
        buffer,
    )


def environment(config: Config) -> Env:
    """Environments that a configuration names.

    Raises:
      ConfigError: a package, a file or a capability that they need is missing.
    """
    options = {"assets": config.env.assets} if config.env.assets else {}
    try:
        env = envs.make(config.env.task, config.env.action_repeat, config.env.backend, **options)
    except (ImportError, NotImplementedError, OSError, RuntimeError) as error:
        chosen = f"env.task = {config.env.task!r}, env.backend = {config.env.backend!r}"
        raise ConfigError(f"{chosen}: {' '.join(str(error).split())}") from None
    return history.stacked(env, config.env.history)
