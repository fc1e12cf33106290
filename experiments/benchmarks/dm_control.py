"""dm_control's own environments, and a comparison of their first observations with ours."""

import importlib
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pomcp_jax import envs
from pomcp_jax.envs.importing import load_suite

RESETS, RESET_BATCH = 1000, 100
"""Resets to compare, and resets per call of our environments."""


def original(name: str, seed: int) -> Any:
    """The ``dm_control`` environment of that name."""
    load_suite()
    domain, task = name.split("-")
    module = importlib.import_module(f"dm_control.suite.{domain}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(module, task)(random=seed)


def other_tasks(names: Sequence[str]) -> list[Any]:
    """dm_control's tasks of all names but the first, each reset once."""
    environments = [original(name, seed=0) for name in names[1:]]
    for environment in environments:
        # Some tasks read constants of their model when an episode begins.
        environment.reset()
    return [environment.task for environment in environments]


def flat(observation: Any) -> np.ndarray:
    """dm_control's observations as one vector, in their order."""
    return np.concatenate([np.ravel(x) for x in observation.values()])


def controls(reference: Any, action: np.ndarray) -> np.ndarray:
    """dm_control's controls for an action in [-1, 1]."""
    spec = reference.action_spec()
    low, high = np.asarray(spec.minimum), np.asarray(spec.maximum)
    return (high + low) / 2 + (high - low) / 2 * action


class Resets(NamedTuple):
    """Differences between first observations of 1,000 episodes, ours and dm_control's."""

    mean: float
    """Largest difference of means, in standard errors of that difference."""
    spread: float
    """Largest absolute log ratio of standard deviations, of entries that vary."""
    outside: float
    """Largest distance by which a range exceeds the other, in standard deviations."""
    constant: float
    """Largest difference of entries that never vary."""


def resets(name: str, count: int = RESETS, backend: str = "mjx") -> Resets:
    """Compare first observations of ``count`` episodes."""
    task = envs.make_task(name, backend=backend)
    begin = jax.jit(jax.vmap(lambda key: task.observe(task.reset(key))))
    keys = jax.random.split(jax.random.key(1), (count // RESET_BATCH, RESET_BATCH))
    ours = np.concatenate([begin(some) for some in keys])
    reference = original(name, seed=1)
    theirs = np.stack([flat(reference.reset().observation) for _ in range(count)])
    spread, other = theirs.std(axis=0), ours.std(axis=0)
    # An entry that is constant there varies here by float32's rounding.
    varies = np.maximum(spread, other) > 1e-5
    gap = np.abs(ours.mean(axis=0) - theirs.mean(axis=0))
    error = np.sqrt((np.square(spread) + np.square(other)) / count)
    pooled = np.maximum(np.maximum(spread, other), 1e-12)
    beyond = np.maximum(
        ours.max(axis=0) - theirs.max(axis=0), theirs.min(axis=0) - ours.min(axis=0)
    )
    short = np.maximum(theirs.max(axis=0) - ours.max(axis=0), ours.min(axis=0) - theirs.min(axis=0))

    def most(values: np.ndarray, where: np.ndarray) -> float:
        return float(np.max(values[where])) if where.any() else 0.0

    return Resets(
        mean=most(gap / np.maximum(error, 1e-12), varies),
        spread=most(np.abs(np.log(np.maximum(other, 1e-12) / np.maximum(spread, 1e-12))), varies),
        outside=most(np.maximum(beyond, short) / pooled, varies),
        constant=most(gap, ~varies),
    )
