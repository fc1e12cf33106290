"""Films of a trained agent: record episodes, draw them, write one file.

from pomcp_jax import controller
from pomcp_jax.rendering import film
film.render(controller.load("runs/reach"), "reach.mp4", env=make_env(task))
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pomcp_jax import controller
from pomcp_jax.checkpoint import Restored
from pomcp_jax.envs.protocol import Env
from pomcp_jax.rendering import episodes, formats, frames, gl, overlay, viewer
from pomcp_jax.rendering.episodes import Recording
from pomcp_jax.rendering.frames import Picture

SIDES = 64, 4096
"""Least and largest side of a frame in pixels."""


class Take(NamedTuple):
    """What is played and how it looks."""

    episodes: int = 1
    actor: str = "planner"
    select: str | None = None
    """How the planner chooses its elite, ``sample`` or ``argmax``; None as in the run."""
    seed: int = 1000
    """Seed of the episodes; ``experiments.evaluate`` plays the same ones."""
    agent: int = 0
    """Which of the run's agents acts, from 0."""
    imagine: bool = False
    """Draw what the model predicts beside the frames."""
    picture: Picture = Picture()


def check(path: Path, take: Take, name: str = "out") -> None:
    """Check what needs neither a run nor an environment; ``name`` is the argument of the path.

    Raises:
      ValueError: one line.
    """
    if take.episodes < 1:
        raise ValueError(f"episodes = {take.episodes}: must be >= 1")
    formats.check(path, name)
    width, height, _ = take.picture
    low, high = SIDES
    if not all(low <= side <= high and side % 2 == 0 for side in (width, height)):
        raise ValueError(f"size = {width}x{height}: sides must be even, {low} to {high} pixels")
    if take.imagine and take.actor != "planner":
        raise ValueError(f"imagine: actor = {take.actor!r} makes no plans; must be 'planner'")
    if take.imagine and path.suffix.lower() == ".html":
        raise ValueError("imagine: .html shows no predictions; .mp4, .gif, .png and .npz do")
    if take.picture.camera is not None and path.suffix.lower() == ".npz":
        raise ValueError(
            f"camera = {take.picture.camera!r}: .npz holds states and no picture; leave it out"
        )


def check_agents(agents: Restored, take: Take) -> None:
    """Check that a run has the agent that is to act.

    Raises:
      ValueError: one line.
    """
    if not 0 <= take.agent < agents.num_seeds:
        raise ValueError(f"agent = {take.agent}: must be from 0 to {agents.num_seeds - 1}")
    controller.make_fns(agents.config.agent, agents.spec, actor=take.actor, select=take.select)  # type: ignore[arg-type]


def choose_library(path: Path) -> str:
    """GL library for a file of this suffix; empty if it needs none.

    Raises:
      ValueError: one line: there is none, and the package that is missing.
    """
    if path.suffix.lower() not in formats.DRAWN:
        return ""
    try:
        return gl.choose(os.environ.get("MUJOCO_GL", ""))
    except RuntimeError as error:
        raise ValueError(str(error)) from None


def render(
    agents: Restored,
    out: Path | str,
    *,
    env: Env,
    take: Take = Take(),  # noqa: B008  # immutable
    say: Callable[[str], None] = lambda text: None,
) -> list[Recording]:
    """Play episodes with a trained agent and write them as a film.

    Args:
      agents: agents of a run, from :func:`controller.load`.
      out: .mp4, .gif, .png (a strip of frames), .html (3D in a browser) or .npz (states).
      env: their environment; to be drawn, its task needs a ``scene``.
      take: what is played and how it looks.
      say: called with lines about the progress.

    Returns:
      The episodes.

    Raises:
      ValueError: one line about an argument; nothing was compiled or written.
      RuntimeError: drawing or encoding failed; nothing was written.
    """
    path, select = Path(out), take.select or agents.config.train.eval_select
    take = take._replace(select=select)
    check(path, take)
    check_agents(agents, take)
    check_env(agents, env, path, take)
    library = choose_library(path)
    say("compiling and playing")
    recordings = episodes.record(
        agents,
        env,
        index=take.agent,
        episodes=take.episodes,
        actor=take.actor,
        select=select,
        seed=take.seed,
        imagine=take.imagine,
    )
    write(path, recordings, env, take, library, say)
    return recordings


def check_env(agents: Restored, env: Env, path: Path, take: Take) -> None:
    """Check that the agents fit an environment, and that it can be drawn if the file needs it.

    Raises:
      ValueError: one line.
    """
    sizes = agents.spec.obs_size, agents.spec.action_size
    if sizes != (env.observation_size, env.action_size):
        raise ValueError(
            f"env {env.name!r} has {env.observation_size} observations and {env.action_size}"
            f" actions; this agent was trained with {sizes[0]} and {sizes[1]}"
        )
    if env.scene is not None or path.suffix.lower() != ".npz":
        frames.check(env, take.picture.camera)


def write(
    path: Path,
    recordings: list[Recording],
    env: Env,
    take: Take,
    library: str,
    say: Callable[[str], None],
) -> None:
    """Write recordings as a file of the suffix of ``path``.

    Raises:
      RuntimeError: drawing or encoding failed; nothing was written.
    """
    suffix, scene = path.suffix.lower(), env.scene
    if suffix == ".npz":
        timestep = recordings[0].seconds / env.action_repeat
        facts = {"task": env.name, "timestep": timestep, "action_repeat": env.action_repeat}
        formats.write_npz(path, recordings, facts)
        return
    assert scene is not None
    if suffix == ".html":
        viewer.write(path, scene, recordings, env.name, take.picture.camera)
        return
    states = formats.states_to_draw(suffix, recordings)
    fast = suffix != ".png"
    pictures = _counted(
        frames.draw(scene, _poses(recordings, states), take.picture, library, fast),
        len(states),
        say,
    )
    composed = overlay.compose(pictures, env.name, recordings, states)
    fps = 1 / (recordings[0].seconds * formats.stride(suffix, recordings[0]))
    if suffix == ".mp4":
        formats.write_mp4(path, composed, fps)
    elif suffix == ".gif":
        formats.write_gif(path, composed, fps)
    else:
        formats.write_png(path, composed, states)


def _poses(recordings: list[Recording], states: list[tuple[int, int]]) -> dict[str, Any]:
    """Poses of the frames that are drawn, with a leading axis of frames."""
    names = recordings[0].poses
    return {
        name: np.stack([recordings[episode].poses[name][state] for episode, state in states])
        for name in names
    }


def _counted(
    pictures: Iterable[np.ndarray], total: int, say: Callable[[str], None]
) -> Iterator[np.ndarray]:
    """``pictures``, with a line for every tenth of them and the time of all."""
    begin = time.monotonic()
    for i, picture in enumerate(pictures):
        if i % max(total // 10, 1) == 0:
            say(f"drawing frame {i + 1} of {total}")
        yield picture
    say(f"{total} frames took {time.monotonic() - begin:.1f} s")
