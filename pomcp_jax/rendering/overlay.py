"""Captions on frames, and a panel of predicted rewards beside them (needs Pillow)."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from pomcp_jax.rendering.episodes import Predictions, Recording

PANEL = 0.6
"""Width of the panel, as a share of the frame's height."""
INK, PALE, GRID = (235, 238, 242), (150, 160, 172), (62, 70, 82)
BACKGROUND = (24, 29, 36)
ELITE, CHOSEN, REAL = (112, 128, 148), (255, 184, 77), (94, 214, 160)
SHARPNESS = 2
"""Panels are drawn this many times larger and averaged, for smooth lines."""


class Caption(NamedTuple):
    """Text on a frame, two lines."""

    first: str
    second: str


def caption(name: str, recording: Recording, episode: int, state: int) -> Caption:
    """Task, episode and time; then step, return so far and the last reward."""
    last = f"   reward {recording.reward[state - 1]:.2f}" if state else ""
    end = ""
    if state == recording.states - 1 and recording.terminated:
        end = "   terminated"
    return Caption(
        f"{name}   episode {episode}   {state * recording.seconds:.2f} s",
        f"step {state}   return {recording.returns()[state]:.1f}{last}{end}",
    )


def font(size: float) -> Any:
    """Pillow's own font in pixels."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


def write_caption(frame: np.ndarray, text: Caption) -> np.ndarray:
    """``frame`` with the caption in its upper left corner, on a darkened strip."""
    from PIL import Image, ImageDraw

    height, width, _ = frame.shape
    size = max(10.0, height / 30)
    strip = min(round(2.9 * size), height)
    out = np.array(frame)
    # Half as bright, so that white text can be read on every sky and floor.
    image = Image.fromarray(out[:strip] // 2)
    draw, letters = ImageDraw.Draw(image), font(size)
    # Lines that are too long for a narrow frame get smaller.
    longest = max(draw.textlength(line, letters) for line in text)
    if longest > width - size:
        letters = font(size * (width - size) / longest)
    for i, line in enumerate(text):
        draw.text((0.5 * size, (0.3 + 1.25 * i) * size), line, INK, letters)
    out[:strip] = np.asarray(image)
    return out


class Panel:
    """Panel of one episode: what plans predict, and the reward that came.

    Above, from now on: cumulative reward that the model predicts for the elites and the chosen
    plan, and what came. Below, over the episode: the same sums over the whole horizon.
    """

    def __init__(self, recording: Recording, height: int):
        """Scale the axes to the whole episode, so that they do not jump."""
        assert recording.predictions is not None
        self.recording, self.predictions = recording, recording.predictions
        self.size = panel_width(height), height
        self.horizon = self.predictions.rewards.shape[2]
        self.sums = np.cumsum(self.predictions.rewards, axis=2)
        self.chosen = _chosen(self.predictions, self.sums)
        total = np.concatenate([[0.0], np.cumsum(recording.reward)])
        ahead = np.minimum(np.arange(len(recording.reward))[:, None] + 1, len(total) - 1)
        ahead = np.minimum(ahead + np.arange(self.horizon), len(total) - 1)
        self.real = total[ahead] - total[: len(recording.reward), None]
        low, high = _limits([self.sums, self.real])
        count = max(len(recording.reward), 1)
        w, h = (SHARPNESS * x for x in self.size)
        left, right = round(0.2 * w), round(0.05 * w)
        self.above = Axes(
            (left, round(0.2 * h), w - right, round(0.5 * h)), self.horizon, low, high
        )
        self.below = Axes((left, round(0.64 * h), w - right, round(0.94 * h)), count, low, high)
        self.still = self._background()

    def _background(self) -> Any:
        """Everything that is the same in all frames."""
        from PIL import Image, ImageDraw

        w, h = (SHARPNESS * x for x in self.size)
        image = Image.new("RGB", (w, h), BACKGROUND)
        draw, size = ImageDraw.Draw(image), h / 36
        draw.text((0.06 * w, 0.02 * h), "Predicted reward of the plan", INK, font(1.15 * size))
        legend = (("elites", ELITE), ("chosen plan", CHOSEN), ("what came", REAL))
        x = 0.06 * w
        for text, colour in legend:
            draw.line([(x, 0.1 * h), (x + size, 0.1 * h)], colour, round(size / 4))
            draw.text((x + 1.4 * size, 0.1 * h), text, PALE, font(size), anchor="lm")
            x += 2.6 * size + draw.textlength(text, font(size))
        self.above.draw(draw, size, f"sum of reward over the next {self.horizon} decisions")
        self.below.draw(draw, size, f"sum over {self.horizon} decisions, from each step")
        return image

    def frame(self, state: int) -> np.ndarray:
        """The panel ``[height, width, 3]`` at a state; the final one has no plan of its own."""
        from PIL import ImageDraw

        image = self.still.copy()
        draw, thick = ImageDraw.Draw(image), round(SHARPNESS * 1.5)
        count = len(self.recording.reward)
        if state < count:
            for sums, weight in zip(self.sums[state], self.predictions.weights[state], strict=True):
                # The heavier an elite, the brighter its line.
                share = float(np.clip(0.25 + weight * len(self.sums[state]) / 2, 0.0, 1.0))
                self.above.line(draw, [0.0, *sums], _mixed(ELITE, share), 1)
            steps = min(self.horizon, count - state)
            # The thinner line comes last: where prediction and reality agree, both are seen.
            self.above.line(draw, [0.0, *self.real[state][:steps]], REAL, thick + 2)
            self.above.line(draw, [0.0, *self.chosen[state]], CHOSEN, thick)
        seen = min(state + 1, count)
        self.below.line(draw, self.real[:seen, -1], REAL, thick + 2)
        self.below.line(draw, self.chosen[:seen, -1], CHOSEN, thick)
        return np.asarray(image.reduce(SHARPNESS))


class Axes(NamedTuple):
    """Rectangle of a plot (left, top, right, bottom), and what it spans."""

    box: tuple[int, int, int, int]
    last: int
    """Horizontal axis from 0 to here."""
    low: float
    high: float

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Pixel of a value."""
        left, top, right, bottom = self.box
        share = (y - self.low) / (self.high - self.low)
        return left + (right - left) * x / self.last, bottom - (bottom - top) * share

    def line(self, draw: Any, values: Iterable[float], colour: Any, width: int) -> None:
        """A line through values at 0, 1, ..."""
        points: list[tuple[float, float]] = []
        # Pillow never returns from a point that is not finite: the line has a gap there.
        for i, y in enumerate([*map(float, values), math.nan]):
            if math.isfinite(y):
                points.append(self.point(i, y))
                continue
            if len(points) > 1:
                draw.line(points, colour, width, joint="curve")
            points = []

    def draw(self, draw: Any, size: float, title: str) -> None:
        """Title, grid and numbers."""
        left, top, right, bottom = self.box
        draw.text((left, top - 1.5 * size), title, PALE, font(0.9 * size))
        for value in _ticks(self.low, self.high):
            y = self.point(0, value)[1]
            draw.line([(left, y), (right, y)], GRID, 1)
            draw.text((left - 0.4 * size, y), f"{value:g}", PALE, font(0.9 * size), anchor="rm")
        draw.line([(left, top), (left, bottom), (right, bottom)], PALE, 1)
        for x in sorted({0, self.last}):
            place = (self.point(x, self.low)[0], bottom + 0.3 * size)
            draw.text(place, f"{x}", PALE, font(0.9 * size), anchor="mt" if x == 0 else "rt")


def panel_width(height: int) -> int:
    """Width of a panel beside frames of this height; even, as video codecs need it."""
    return 2 * round(PANEL * height / 2)


def compose(
    frames: Iterable[np.ndarray],
    name: str,
    recordings: Sequence[Recording],
    states: Sequence[tuple],
) -> Iterator[np.ndarray]:
    """Frames with captions, and with panels if the recordings have predictions.

    Args:
      frames: one for each of ``states``.
      name: of the task.
      recordings: episodes.
      states: ``(episode, state)`` of every frame, from 0.
    """
    panels: dict[int, Panel] = {}
    for frame, (episode, state) in zip(frames, states, strict=True):
        recording = recordings[episode]
        out = write_caption(frame, caption(name, recording, episode + 1, state))
        if recording.predictions is not None:
            if episode not in panels:
                panels = {episode: Panel(recording, len(frame))}
            out = np.concatenate([out, panels[episode].frame(state)], axis=1)
        yield out


def _chosen(predictions: Predictions, sums: np.ndarray) -> np.ndarray:
    """Sums ``[n, H]`` of the plans that were executed."""
    return np.take_along_axis(sums, predictions.chosen[:, None, None], axis=1)[:, 0]


def _mixed(colour: tuple[int, int, int], share: float) -> tuple[int, ...]:
    return tuple(
        round(share * c + (1 - share) * b) for c, b in zip(colour, BACKGROUND, strict=True)
    )


def _limits(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """Lowest and highest value, 0 included and never equal."""
    finite = np.concatenate([np.ravel(x[np.isfinite(x)]) for x in values])
    low, high = min(0.0, float(finite.min(initial=0.0))), float(finite.max(initial=0.0))
    return low, high if high - low > 1e-6 else low + 1.0


def _ticks(low: float, high: float) -> list[float]:
    """About four round numbers."""
    rough = (high - low) / 4
    unit = 10.0 ** np.floor(np.log10(rough))
    step = unit * next(m for m in (1, 2, 5, 10) if m * unit >= rough * 0.999)
    first = int(np.ceil(low / step - 1e-9))
    last = int(np.floor(high / step + 1e-9))
    return [i * step for i in range(first, last + 1)]
