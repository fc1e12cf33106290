"""Aliases and records shared by all modules of the package.

Shape symbols used in all docstrings:

======  ==============================================================
``S``   independent training seeds (the leading axis of a vmapped run)
``N``   parallel environments of one seed (``MppiConfig``: samples)
``B``   batch
``T``   time inside a sampled window
``H``   planning horizon, in decisions
``A``   action size
``O``   observation size
``L``   latent size
``E``   number of elites, or of ensemble heads where that is said
======  ==============================================================

Actions live in ``[-1, 1]`` everywhere; environments rescale to physical units.
"""

from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int

Key = jax.Array
"""A typed PRNG key (``jax.random.key``). Every function that takes one consumes it."""

PyTree = Any
Params = PyTree


class Gaussian(NamedTuple):
    """A diagonal Gaussian over the last axis."""

    mean: Float[Array, "*batch A"]
    std: Float[Array, "*batch A"]


class TimeStep(NamedTuple):
    """What an environment batch returns; every field has the leading axis ``B``.

    ``obs`` is always the true observation, at an episode's end too: after a
    last step (``terminated | truncated``) the next call ignores the action and
    returns the first observation of a fresh episode with ``is_first`` set.
    A row whose *successor* is first therefore holds no transition.
    """

    obs: Float[Array, "B O"]
    reward: Float[Array, " B"]
    """Summed over the action repeat; 0 on first steps."""
    terminated: Bool[Array, " B"]
    """The task ended here; the value of this state is zero."""
    truncated: Bool[Array, " B"]
    """The time limit cut the episode here; later rewards still count in values."""
    is_first: Bool[Array, " B"]
    invalid: Bool[Array, " B"]
    """The step gave a non-finite number and was replaced by a fresh episode."""
    episode_return: Float[Array, " B"]
    """Undiscounted return of the running episode, this reward included."""
    episode_length: Int[Array, " B"]
    """Decisions taken in the running episode, this one included."""

    @property
    def is_last(self) -> Bool[Array, " B"]:
        """Whether the episode ended at this step, for either reason."""
        return self.terminated | self.truncated
