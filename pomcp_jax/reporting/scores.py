"""What returns are divided by to compare tasks with each other."""

from collections.abc import Iterable

from pomcp_jax.reporting.statistics import MAX_RETURN

_BARS = {
    "stand": 800,
    "walk": 700,
    "run": 700,
    "reach": 12_000,
    "hurdle": 700,
    "crawl": 700,
    "maze": 1_200,
    "sit_simple": 750,
    "sit_hard": 750,
    "balance_simple": 800,
    "balance_hard": 800,
    "stair": 700,
    "slide": 700,
    "pole": 700,
}
SUCCESS_BARS = {
    f"humanoid/{robot}-{task}": float(bar)
    for robot in ("h1", "h1hand")
    for task, bar in _BARS.items()
}
"""Return from which HumanoidBench counts an episode as a success; better agents exceed it."""


def scale(task: str) -> float:
    """What returns of a task are divided by: its success bar, or dm_control's largest return."""
    return SUCCESS_BARS.get(task, MAX_RETURN)


def formula(tasks: Iterable[str], scale: float | None = None) -> str:
    """How scores of these tasks are made, for labels; ``scale`` divides all of them."""
    if scale:
        return f"return / {scale:g}"
    by_bar = {task in SUCCESS_BARS for task in tasks}
    if by_bar == {True}:
        return "return / success bar"
    return f"return / {MAX_RETURN:g}" + (" or success bar" if True in by_bar else "")
