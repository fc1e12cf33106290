"""Schedule of a run: a rational number of updates per decision, cut into chunks.

With ``u = train.updates_per_decision * env.num_envs`` updates per iteration (one step of all N
environments of a seed), ``floor((t + 1) u) - floor(t u)`` updates follow iteration t of
training: spread evenly, and exactly ``floor(T u)`` after T iterations. Everything here is
Python integers; the device counts in int32, whose limits :func:`check` states.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Int

from pomcp_jax import values
from pomcp_jax.config import Config, ConfigError

LIMIT = 2**31
"""Counters on the device are int32 and stay below this."""
PARTS = 2**30
"""Largest denominator of updates per iteration; the sum of two remainders must fit into int32."""


class Ratio(NamedTuple):
    """Updates per iteration in lowest terms: ``updates`` in every ``iterations``."""

    iterations: int
    updates: int


class Work(NamedTuple):
    """Work of a chunk as traced numbers, so that all phases share one compiled function."""

    groups: Int[Array, ""] | int
    iterations: Int[Array, ""] | int
    """Environment steps of a group."""
    updates: Int[Array, ""] | int
    """Updates of every group, after its environment steps."""
    random: Bool[Array, ""] | bool
    """Act at random, or by the policy, instead of planning: ``train.seed_actions``."""
    train_actors: Bool[Array, ""] | bool
    replan: Bool[Array, ""] | bool
    part: Int[Array, ""] | int = 0
    """A group does one more update whenever the sum of ``part`` passes a multiple of ``parts``."""
    parts: Int[Array, ""] | int = 1
    phase: Int[Array, ""] | int = 0
    """That sum before the first group, modulo ``parts``."""
    idle: Int[Array, ""] | int = 0
    """Iterations of a group that are counted but step no environment."""

    @property
    def total_iterations(self) -> int:
        """Environment steps of the whole chunk."""
        return int(self.groups * self.iterations)

    @property
    def total_updates(self) -> int:
        """Updates of the whole chunk."""
        carried = (self.phase + self.groups * self.part) // self.parts
        return int(self.groups * self.updates + carried)


@dataclasses.dataclass(frozen=True)
class Chunks:
    """The chunks of a phase, a sequence of :class:`Work` that is computed as it is read.

    Chunks end at multiples of ``most`` and at ``stop``, wherever the phase starts.
    """

    stop: int
    """Units of the whole phase: iterations, or updates where there are no iterations."""
    most: int
    cut: Callable[[int, int], Work]
    """``(units before, units) -> work``."""
    start: int = 0
    """Units to skip at the beginning."""

    def __len__(self) -> int:
        left = self.start < self.stop
        return -(-self.stop // self.most) - self.start // self.most if left else 0

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        i = index + len(self) if index < 0 else index
        if not 0 <= i < len(self):
            raise IndexError(f"chunk {index} of {len(self)}")
        # Multiples of ``most`` from 0, not from ``start``: a run that resumes ends its chunks where
        # an uninterrupted one does.
        first = (self.start // self.most + i) * self.most
        begin, end = max(first, self.start), min(first + self.most, self.stop)
        return self.cut(begin, end - begin)

    def __iter__(self) -> Iterator[Work]:
        return (self[i] for i in range(len(self)))

    def __add__(self, other: Any) -> tuple[Work, ...]:
        return (*self, *other)

    def __radd__(self, other: Any) -> tuple[Work, ...]:
        return (*other, *self)


class Phases(NamedTuple):
    """The chunks of a run, in order."""

    seeding: Chunks
    """Random actions."""
    pretraining: Chunks
    """Updates alone."""
    training: Chunks


def ratio(config: Config) -> Ratio:
    """Updates per iteration, from ``train.updates_per_decision`` and ``env.num_envs``.

    Raises:
      ConfigError: it is negative or not finite, or its denominator is too large to count.
    """
    value = config.train.updates_per_decision
    # Fractions of NaN and infinity raise errors that name neither field nor value.
    if not isinstance(value, numbers.Rational) and not math.isfinite(value):
        raise ConfigError(f"train.updates_per_decision = {value}: must be finite")
    per_decision = values.rational(value)
    if per_decision < 0:
        raise ConfigError(f"train.updates_per_decision = {value}: must be >= 0")
    per_iteration = per_decision * config.env.num_envs
    if per_iteration.denominator > PARTS:
        near = float(per_iteration.limit_denominator(PARTS) / config.env.num_envs)
        raise ConfigError(
            f"train.updates_per_decision = {value}: is {per_decision} updates; times env.num_envs"
            f" it must have a denominator <= {PARTS} (the nearest is {near!r})"
        )
    return Ratio(per_iteration.denominator, per_iteration.numerator)


def seed_iterations(config: Config) -> int:
    """Iterations of the random seeding phase."""
    return -(-config.train.seed_decisions // config.env.num_envs)


def training_iterations(config: Config) -> int:
    """Iterations after the seeding phase."""
    left = config.train.total_decisions - config.train.seed_decisions
    return -(-left // config.env.num_envs)


def check(config: Config) -> None:
    """Refuse work that the schedule cannot do or that int32 counters cannot count.

    Raises:
      ConfigError: one line naming the field, the value and what would work.
    """
    train, num_envs = config.train, config.env.num_envs
    group, steps = ratio(config), training_iterations(config)
    # Whole iterations: with many environments a run may end a little past its total.
    done = (seed_iterations(config) + steps) * num_envs
    if done >= LIMIT:
        raise ConfigError(
            f"train.total_decisions = {train.total_decisions}: makes {done} decisions in steps of"
            f" env.num_envs = {num_envs}; must stay below 2**31, where the device's counters end"
        )
    updates = steps * group.updates // group.iterations
    if group.updates and not updates:
        raise ConfigError(
            f"train.updates_per_decision = {train.updates_per_decision}: no update in"
            f" {steps * num_envs} decisions of training; must be 0 or >= 1/{steps * num_envs}"
        )
    if train.pretrain_updates >= LIMIT:
        raise ConfigError(
            f"train.pretrain_updates = {train.pretrain_updates}: must be < 2**31, where the"
            " device's counters end"
        )
    if train.pretrain_updates + updates >= LIMIT:
        raise ConfigError(
            f"train.updates_per_decision = {train.updates_per_decision}: makes"
            f" {train.pretrain_updates + updates} updates with train.pretrain_updates; must stay"
            " below 2**31, where the device's counters end"
        )


def phases(config: Config) -> Phases:
    """A run cut into chunks of ``train.chunk_decisions``."""
    train, group = config.train, ratio(config)
    most = max(1, train.chunk_decisions // config.env.num_envs)
    whole, part = divmod(group.updates, group.iterations)
    actors = config.agent.policy.train_in_pretraining

    # A group per chunk where steps or updates are alone, a group per step where they alternate.
    def act(_: int, size: int) -> Work:
        return Work(1, size, 0, train.seed_actions != "planner", False, False)

    def learn(_: int, size: int) -> Work:
        # Re-planning waits until the agent acts, as in BMPC. ``random`` is moot without steps.
        return Work(1, 0, size, True, actors, False)

    def both(before: int, size: int) -> Work:
        # Computed from the count, not carried: a chunk entered half-way does the same updates.
        phase = before * part % group.iterations
        return Work(size, 1, whole, False, True, True, part, group.iterations, phase)

    # Counted as if it acted: evaluations, checkpoints and resuming then need no other clock.
    def learn_offline(before: int, size: int) -> Work:
        return both(before, size)._replace(iterations=0, idle=1)

    # Pre-training has no steps: its chunks have as many updates as training's, for similar times.
    at_once = max(most, most * group.updates // group.iterations)
    return Phases(
        seeding=Chunks(seed_iterations(config), most, act),
        pretraining=Chunks(train.pretrain_updates, at_once, learn),
        training=Chunks(
            training_iterations(config), most, learn_offline if train.offline else both
        ),
    )
