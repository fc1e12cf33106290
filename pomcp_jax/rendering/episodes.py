"""Episodes of a trained agent with everything that a film shows, as NumPy arrays.

Symbols: n decisions of an episode, E elites, H horizon, O observation size, A action size.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from pomcp_jax import evaluate
from pomcp_jax.checkpoint import Restored
from pomcp_jax.envs.protocol import Env
from pomcp_jax.rendering.frames import poses


class Predictions(NamedTuple):
    """What the model predicts at every decision for the plan's elites."""

    rewards: Float[np.ndarray, "n E H"]
    """Undiscounted; times the predicted probability that the episode still lasts."""
    weights: Float[np.ndarray, "n E"]
    chosen: Int[np.ndarray, " n"]
    """Index of the elite whose first action was executed."""


class Recording(NamedTuple):
    """One episode: n decisions between n + 1 states."""

    poses: Mapping[str, np.ndarray]
    """Fields of MuJoCo's model and data at each state; empty for tasks without a picture."""
    obs: Float[np.ndarray, "states O"]
    action: Float[np.ndarray, "n A"]
    reward: Float[np.ndarray, " n"]
    """Sum over the control steps of a decision."""
    terminated: bool
    valid: bool
    """False if the environment broke; the recording then ends before that step."""
    seconds: float
    """Time of one decision; NaN for tasks without a picture."""
    predictions: Predictions | None

    @property
    def states(self) -> int:
        """Number of recorded states."""
        return len(self.obs)

    def returns(self) -> Float[np.ndarray, " states"]:
        """Return so far at each state."""
        return np.concatenate([[0.0], np.cumsum(self.reward)])[: self.states]


def record(
    agents: Restored,
    env: Env,
    *,
    index: int = 0,
    episodes: int = 1,
    actor: str = "planner",
    select: str = "sample",
    seed: int = 1000,
    imagine: bool = False,
) -> list[Recording]:
    """Play episodes with one agent, as one compiled program.

    Args:
      agents: agents of a run.
      env: their environment.
      index: which agent acts.
      episodes: number of episodes.
      actor: ``planner``, ``policy`` or ``prior``.
      select: how the planner chooses its elite, ``sample`` or ``argmax``.
      seed: of the episodes; ``experiments.evaluate`` plays the same ones.
      imagine: keep the model's predictions of every plan (planner only).
    """
    params = jax.tree.map(lambda x: x[index : index + 1], agents.state.params)
    if actor == "prior":
        # The prior has the policy's network: in its place it acts by the same code.
        params = params._replace(policy=params.prior)
    # The keys of an evaluation of all agents, of which only this one plays.
    keys = jax.random.split(jax.random.key(seed), agents.num_seeds)[index : index + 1]
    scene = env.scene

    def run(params: Any) -> tuple:
        return evaluate.recorded(
            params,
            keys,
            lambda state: {} if scene is None else dict(poses(scene, state.task)),
            env=env,
            spec=agents.spec,
            config=agents.config.agent,
            episodes=episodes,
            select=select,  # type: ignore[arg-type]
            planner=actor == "planner",
            imagine=imagine,
        )

    result, trace = jax.tree.map(np.asarray, jax.jit(run)(params))
    seconds = float("nan") if scene is None else scene.timestep * env.action_repeat
    gamma = float(np.asarray(agents.config.agent.optimizer.discount).ravel()[0])
    return [
        _cut(
            jax.tree.map(lambda x, e=episode: x[0, :, e], trace),
            bool(result.valid[0, episode]),
            seconds,
            gamma,
        )
        for episode in range(episodes)
    ]


def _cut(trace: evaluate.Trace, valid: bool, seconds: float, gamma: float) -> Recording:
    """Recording of one episode from its trace ``[T, ...]``, which goes on after its end."""
    seen = trace.seen
    alive = int(np.sum(trace.alive))
    # A broken last decision replaced its state by that of a new episode.
    decisions = alive if valid else max(alive - 1, 0)
    states = decisions + 1
    predictions = None
    if seen.imagined is not None:
        rewards, discounts = seen.imagined.rewards, seen.imagined.discounts
        # With a discount of 0 nothing after the first step counts, and nobody knows what goes on.
        going = np.cumprod(discounts / gamma if gamma else np.ones_like(discounts), axis=-1)
        # A reward counts if the episode still lasted before its step.
        before = np.concatenate([np.ones_like(going[..., :1]), going[..., :-1]], axis=-1)
        imagined = rewards * before, seen.imagined.weights, seen.imagined.chosen
        predictions = Predictions(*(x[:decisions] for x in imagined))
    return Recording(
        poses={name: x[:states] for name, x in seen.state.items()},
        obs=seen.obs[:states],
        action=seen.action[:decisions],
        reward=np.asarray(trace.reward[:decisions]),
        terminated=bool(np.any(trace.terminated)),
        valid=valid,
        seconds=seconds,
        predictions=predictions,
    )
