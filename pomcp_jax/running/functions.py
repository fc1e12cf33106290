"""Compiled functions of a run: the training program, evaluation, and resets of diverged agents."""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pomcp_jax import (
    compiled,
    diagnostics,
    envs,
    evaluate,
    fine_tuning,
    prefill,
    program_store,
    seed_axis,
    state_edits,
    train,
)
from pomcp_jax.compiled import Compiled
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.envs import history
from pomcp_jax.envs.protocol import Env
from pomcp_jax.evaluate import Episodes
from pomcp_jax.fine_tuning import Learned
from pomcp_jax.program_store import Store
from pomcp_jax.running import trained
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
    notes: Callable[[], list[str]] = list
    """Lines for the user about environments on the host, since the last call."""
    buffer: Callable[[], prefill.Prefill] | None = None
    """Reads ``train.buffer`` and checks it; None without one."""
    close: Callable[[], None] = lambda: None
    """Closes environments on the host, except those that the caller made."""


def build(config: Config, given: Env | None = None, programs: Path | None = None) -> Functions:
    """Build the functions of a run without compiling them.

    ``given``: environments; by default those of ``config.env``. ``programs``: folder of lowered
    programs (:mod:`pomcp_jax.program_store`).

    Raises:
      ConfigError: a package, a file or a capability of the physics is missing, or the agent of
        ``train.start_from`` does not fit.
    """
    ours = given is None and not envs.is_own(config.env.task)
    env = environment(config) if given is None else history.stacked(given, config.env.history)
    # Run.go reports the same doubts as progress lines; a warning would repeat them with a path.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        program = train.build(config, env)
    store = _store(programs if ours else None, config, program)
    program = program._replace(chunk=dataclasses.replace(program.chunk, store=store))
    program, buffer = _prefilled(program, config)
    # Environments on the host are in the middle of training's episodes.
    apart = env if env.outside is None else env.outside.apart()

    def planner(state: TrainState, config: Config) -> tuple[Episodes, Any]:
        played = diagnostics.evaluate_run(state, config, env=apart, spec=program.spec)
        # NaNs leave the program as masks: under jax_debug_nans a NaN that means "no value" would
        # raise. They are put back on the host.
        return played[0], compiled.hide_nans(played[1])

    def policy(state: TrainState, config: Config) -> Episodes:
        keys = train.fold_keys(state, train.EVALUATION, state.iteration)
        return evaluate.rollout(
            state.agent.params, keys, env=apart, spec=program.spec, config=config.agent,
            episodes=config.train.eval_episodes, planner=False,
        )  # fmt: skip

    def renew(state: TrainState, config: Config, which: jax.Array) -> TrainState:
        return state_edits.reset_agents(state, config, program.spec, which)

    # ``reads`` are what the traces depend on: no other setting compiles them again.
    only_state, reads = (train.SPECS, None), diagnostics.READS
    spread = lambda f, *specs: seed_axis.spread(f, program.mesh, *specs)  # noqa: E731

    def evaluation(play: Callable, **options: Any) -> Compiled:
        jitted = jax.jit(spread(play, only_state, seed_axis.SPLIT))
        return Compiled(jitted, reads, store=store, types=(Episodes,), **options)

    renewed = spread(renew, (*only_state, seed_axis.SPLIT), train.SPECS)
    renewed = jax.jit(renewed, donate_argnums=0, compiler_options=compiled.once())
    functions = Functions(
        program,
        evaluation(planner, finish=functools.partial(_with_nans, program), name="planner"),
        evaluation(policy, finish=functools.partial(_without_padding, program), name="policy"),
        Compiled(renewed, train.CHUNK_READS),
        list if env.outside is None else env.outside.notes,
        buffer,
        _closing(apart, *([env] if given is None else [])),
    )
    learned = trained.learned(config, program.spec)
    return _for_all_rows(functions if learned is None else _started(functions, learned))


def _closing(*made: Env) -> Callable[[], None]:
    def close() -> None:
        with contextlib.ExitStack() as every:
            for env in made:
                if env.outside is not None:
                    every.callback(env.outside.close)

    return close


def _store(folder: Path | None, config: Config, program: Program) -> Store | None:
    """A store if programs are to be kept and can be: those of several devices are bound to them."""
    if folder is None or program.mesh is not None:
        return None
    return program_store.store(folder, config.env)


def _prefilled(
    program: Program, config: Config
) -> tuple[Program, Callable[[], prefill.Prefill] | None]:
    """``program`` whose initial replay has the rows of ``train.buffer``, and what reads them."""
    if not config.train.buffer:
        return program, None
    # Kept between the check at the start and the initial state: files may be large.
    buffer = functools.lru_cache(maxsize=1)(lambda: prefill.load(config, program.env))
    filled = prefill.filling(program.init, buffer, program.mesh)
    return program._replace(init=filled), buffer


def _without_padding(program: Program, out: Any, _: TrainState, config: Config) -> Any:
    return seed_axis.without_padding(out, config.train.num_seeds, program.mesh)


def _with_nans(
    program: Program, out: tuple[Episodes, Any], state: TrainState, config: Config
) -> tuple[Episodes, Results]:
    return _without_padding(program, (out[0], compiled.show_nans(*out[1])), state, config)


def _for_all_rows(functions: Functions) -> Functions:
    """``functions`` whose reset knows the seeds only; rows of padding follow the last of them."""

    def reset_agents(state: TrainState, config: Config, which: np.ndarray) -> TrainState:
        rows = seed_axis.pad(which, len(which), functions.program.mesh)
        return functions.reset_agents(state, config, rows)

    return functions._replace(reset_agents=reset_agents)


def _started(functions: Functions, learned: Learned) -> Functions:
    """``functions`` whose new agents, at the start and after a reset, have learned already."""
    program = functions.program

    def init(*args: Any) -> TrainState:
        state = program.init(*args)
        state = state._replace(agent=fine_tuning.begin(state.agent, learned))
        return seed_axis.place(state, program.mesh, train.SPECS)

    def reset_agents(state: TrainState, config: Config, which: np.ndarray) -> TrainState:
        state = functions.reset_agents(state, config, which)
        state = state._replace(agent=fine_tuning.begin(state.agent, learned, which))
        return seed_axis.place(state, program.mesh, train.SPECS)

    return functions._replace(program=program._replace(init=init), reset_agents=reset_agents)


def environment(config: Config) -> Env:
    """Environments that a configuration names.

    Raises:
      ConfigError: a package, a file or a capability that they need is missing, or they are
        environments of the user's that cannot be used.
    """
    given = {"assets": config.env.assets, "workers": config.env.workers}
    options = {name: value for name, value in given.items() if value}
    try:
        env = envs.make(config.env.task, config.env.action_repeat, config.env.backend, **options)
    except (ImportError, NotImplementedError, OSError, RuntimeError, ValueError) as error:
        chosen = f"env.task = {config.env.task!r}, env.backend = {config.env.backend!r}"
        raise ConfigError(f"{chosen}: {' '.join(str(error).split())}") from None
    return history.stacked(env, config.env.history)
