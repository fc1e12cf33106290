"""Files of films: one writer for each suffix, and what each needs.

Every file is complete or not written at all.
"""

import importlib.util
import io
import math
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pomcp_jax import files
from pomcp_jax.rendering import gl
from pomcp_jax.rendering.episodes import Recording

DRAWN = (".mp4", ".gif", ".png")
SUFFIXES = (*DRAWN, ".html", ".npz")
INSTALL = 'pip install "pomcp_jax[render]"'
FASTEST = {".mp4": 60.0, ".gif": 25.0}
"""Most frames per second; browsers slow faster GIFs down."""
STRIP = 8
"""Frames of each episode in a .png."""


def check(path: Path, name: str = "out") -> None:
    """Refuse a file that could not be written at the end; ``name`` is the argument that gives it.

    Raises:
      ValueError: one line: an unknown suffix, a folder that is missing or cannot be written, a
        package that is missing.
    """
    shown = f"{name} = {str(path)!r}"
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{shown}: the suffix must be one of {', '.join(SUFFIXES)}")
    files.check_writable(path, name)
    if path.suffix.lower() in DRAWN and importlib.util.find_spec("PIL") is None:
        raise ValueError(f"{shown}: Pillow is not installed; {INSTALL} installs it")
    if path.suffix.lower() == ".mp4" and encoder() is None:
        raise ValueError(f"{shown}: no ffmpeg; {INSTALL} installs one, .gif needs none")


def encoder() -> str | None:
    """Path of an ffmpeg: imageio-ffmpeg's own, else the system's."""
    if importlib.util.find_spec("imageio_ffmpeg") is not None:
        import imageio_ffmpeg

        try:
            return imageio_ffmpeg.get_ffmpeg_exe()
        except RuntimeError:  # a package without its program
            pass
    return shutil.which("ffmpeg")


def states_to_draw(suffix: str, recordings: Sequence[Recording]) -> list[tuple[int, int]]:
    """``(episode, state)`` of the frames that a file of this suffix shows."""
    out = []
    for episode, recording in enumerate(recordings):
        if suffix == ".png":
            count = min(STRIP, recording.states)
            chosen = np.linspace(0, recording.states - 1, count).round().astype(int).tolist()
        else:
            chosen = list(range(0, recording.states, stride(suffix, recording)))
        out += [(episode, state) for state in chosen]
    return out


def stride(suffix: str, recording: Recording) -> int:
    """Every how many states a film shows one, so that it runs in real time."""
    # Not exactly 60: the quotient of two floats may be just above a whole number.
    return int(np.ceil(1 / recording.seconds / FASTEST.get(suffix, np.inf) - 1e-6)) or 1


def write_mp4(path: Path, frames: Iterator[np.ndarray], fps: float) -> None:
    """Encode frames of even sides as H.264, which every browser plays.

    Raises:
      RuntimeError: one line of ffmpeg.
    """
    program = encoder()
    assert program is not None
    with tempfile.TemporaryDirectory(prefix="pomcp_jax_") as folder:
        film, errors = Path(folder) / "film.mp4", Path(folder) / "errors.txt"
        process = None
        try:
            for frame in frames:
                if process is None:
                    command = _ffmpeg(program, frame.shape, fps, film)
                    with errors.open("wb") as log:
                        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log)
                assert process.stdin is not None
                process.stdin.write(np.ascontiguousarray(frame).data)
        except BrokenPipeError:
            pass  # ffmpeg ended; its message says why
        finally:
            if process is not None:
                _finish(process)
        if process is None or process.returncode or not film.is_file():
            text = errors.read_text(errors="replace") if errors.exists() else "no frames"
            raise RuntimeError(f"ffmpeg failed: {gl.last_line(text)}")
        files.write_bytes(path, film.read_bytes())


def _ffmpeg(program: str, shape: tuple[int, ...], fps: float, out: Path) -> list[str]:
    height, width, _ = shape
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:.6g}"]
    # yuv420p and the index in front: without them some players show nothing.
    coded = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "20", "-preset", "veryfast"]
    return [
        *(program, "-loglevel", "error", "-y", *given, "-i", "-", "-an"),
        *(*coded, "-movflags", "+faststart", str(out)),
    ]


def _finish(process: subprocess.Popen) -> None:
    """Close the pipe and wait for the end of the file."""
    try:
        if process.stdin is not None:
            process.stdin.close()
    except BrokenPipeError:
        pass
    process.wait()


def write_gif(path: Path, frames: Iterator[np.ndarray], fps: float) -> None:
    """An endless GIF."""
    from PIL import Image

    images = (Image.fromarray(frame).quantize(128, dither=Image.Dither.NONE) for frame in frames)
    first, out = next(images), io.BytesIO()
    # GIFs count hundredths of a second.
    duration = 10 * max(round(100 / fps), 2)
    first.save(
        out, "GIF", save_all=True, append_images=images, duration=duration, loop=0, optimize=False
    )
    files.write_bytes(path, out.getvalue())


WIDEST = 4096
"""Pixels across a strip, beyond which it is broken into lines that screens can show."""


def write_png(path: Path, frames: Iterator[np.ndarray], states: Sequence[tuple[int, int]]) -> None:
    """A strip of frames for each episode, one below the other; wide ones take several lines."""
    from PIL import Image, PngImagePlugin

    rows: dict[int, list[np.ndarray]] = {}
    for frame, (episode, _) in zip(frames, states, strict=True):
        rows.setdefault(episode, []).append(frame)
    strips = [line for row in rows.values() for line in _lines(row)]
    # Short episodes have fewer frames; the rest of their row stays black.
    width = max(strip.shape[1] for strip in strips)
    strips = [np.pad(x, ((0, 0), (0, width - x.shape[1]), (0, 0))) for x in strips]
    out = io.BytesIO()
    # Tells a film from the curves and diagnostics in a run's folder (experiments.report).
    about = PngImagePlugin.PngInfo()
    about.add_text("Software", "pomcp_jax")
    Image.fromarray(np.concatenate(strips)).save(out, "PNG", pnginfo=about)
    files.write_bytes(path, out.getvalue())


def _lines(row: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Frames side by side, in as few lines of equal length as :data:`WIDEST` permits."""
    fit = max(1, WIDEST // row[0].shape[1])
    step = math.ceil(len(row) / math.ceil(len(row) / fit))
    return [np.concatenate(row[i : i + step], axis=1) for i in range(0, len(row), step)]


def write_npz(path: Path, recordings: Sequence[Recording], facts: dict) -> None:
    """States of all episodes, one row each; the last row of an episode has no action (NaN)."""
    columns: dict[str, list[np.ndarray]] = {}

    def add(name: str, rows: np.ndarray) -> None:
        columns.setdefault(name, []).append(rows)

    for episode, recording in enumerate(recordings):
        states = recording.states
        steps = np.arange(states)
        add("episode", np.full(states, episode + 1))
        add("step", steps)
        add("time", steps * recording.seconds)
        add("observation", recording.obs)
        add("action", _padded(recording.action, states))
        add("reward", _padded(recording.reward, states))
        add("return", recording.returns())
        for name, values in recording.poses.items():
            add(name, values)
        if recording.predictions is not None:
            add("predicted_reward", _padded(recording.predictions.rewards, states))
            add("elite_weight", _padded(recording.predictions.weights, states))
            add("chosen_elite", _padded(recording.predictions.chosen, states))
    out = io.BytesIO()
    arrays: dict[str, Any] = {name: np.concatenate(rows) for name, rows in columns.items()}
    np.savez_compressed(out, **(arrays | facts))
    files.write_bytes(path, out.getvalue())


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    """``rows`` as floats, with NaN up to ``count``."""
    out = np.full((count, *rows.shape[1:]), np.nan, np.float32)
    out[: len(rows)] = rows
    return out
