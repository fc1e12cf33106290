"""What the command line of reports reads: runs, films, published curves, presets."""

import argparse
import datetime
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pomcp_jax
from experiments import published as own
from pomcp_jax import config as config_lib
from pomcp_jax import presets
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.reporting import comparison, page, published, report_data
from pomcp_jax.reporting import runs as runs_lib
from pomcp_jax.reporting.page import MIME, Base, Film
from pomcp_jax.running.process import commit

MOST_BYTES = 16 << 20
"""Bytes of all films of a page; base64 adds a third."""
MADE_BY = b"pomcp_jax"
"""Mark in a .png of experiments.render; other pictures in a folder are no films."""
HEAD = 4096
"""Bytes of a file within which its kind and the mark are looked for."""
SIGNATURES = {".mp4": b"ftyp", ".gif": b"GIF8", ".png": b"\x89PNG"}
SMALLER = "`python -m experiments.render RUN --out=film.mp4 --size=320x240` makes a smaller one"


def gather(args: argparse.Namespace) -> page.Report:
    """Everything that the page shows.

    Raises:
      ConfigError: one line about a folder, a table or a film.
    """
    scale = args.max_return
    if scale is not None and not 0 < scale < float("inf"):
        raise ConfigError(f"--max-return = {scale:g}: must be > 0 and finite")
    loaded = comparison.load(runs_lib.find(args.folders, args.labels))
    if not any(one.series(name, "frames") for one in loaded for name in _RETURNS):
        raise ConfigError(f"{args.folders[0]}: holds no returns yet; {loaded[0].run.mend}")
    bases, notes = _bases(loaded)
    films, too_large = _films(args, loaded)
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    version = f"pomcp_jax {pomcp_jax.__version__}"
    source = commit()
    return page.Report(
        folders=args.folders,
        loaded=loaded,
        bases=bases,
        published=published.load(own.FOLDER),
        known=own.COLORED,
        films=films,
        notes=[*notes, *too_large, *_lengths(loaded)],
        command=f"python -m experiments.report {shlex.join(map(str, args.argv))}",
        made=f"Made {stamp} by {version}" + (f", commit {source}." if source else "."),
        max_return=scale,
    )


_RETURNS = (comparison.RETURN, comparison.TRAINING)


def _bases(loaded: Sequence[comparison.Loaded]) -> tuple[dict[Path, Base], list[str]]:
    """Preset and size that every run is nearest to, and notes on fields of other versions."""
    known = set(config_lib.flatten(Config()))
    cache: dict[str, Base | None] = {}
    out, notes, others = {}, [], set()
    for one in loaded:
        fields = report_data.configuration(one.run)
        others |= fields.keys() - known
        # Numbers of seeds and decisions do not decide which preset is the nearest.
        key = json.dumps({k: v for k, v in fields.items() if k.startswith("agent.")}, default=str)
        if key not in cache:
            cache[key] = _base({k: v for k, v in fields.items() if k in known})
        if base := cache[key]:
            out[one.run.folder] = base
    if others:
        notes.append(
            "settings of another version, which this one does not know:"
            f" {', '.join(sorted(others))}"
        )
    return out, notes


def _base(fields: dict[str, Any]) -> Base | None:
    """The nearest preset; None where this version cannot read the values."""
    try:
        origin = presets.origin(config_lib.replace(Config(), fields))
    except (ConfigError, TypeError, ValueError):
        return None
    agent = presets.with_size(presets.get(origin.preset), origin.size)
    # Through JSON as the run's own: tuples become lists, so that equal values compare equal.
    plain = json.loads(json.dumps(config_lib.to_dict(Config(agent=agent))))
    return Base(f"{origin.preset}, {origin.size}", config_lib.flatten(plain))


def _lengths(loaded: Sequence[comparison.Loaded]) -> list[str]:
    """Notes on runs that have not ended well; the table of cells says it too."""
    open_ones = [one for one in loaded if one.run.about.get("status") != "done"]
    if not open_ones:
        return []
    names = ", ".join(str(one.run.folder) for one in open_ones[:3])
    more = f" and {len(open_ones) - 3} more" if len(open_ones) > 3 else ""
    return [f"not finished: {names}{more}"]


def _films(
    args: argparse.Namespace, loaded: Sequence[comparison.Loaded]
) -> tuple[list[Film], list[str]]:
    """Films of ``--video``, else those in the folders; notes on what is too large.

    Raises:
      ConfigError: a named film is missing, too large or of another kind.
    """
    if args.video:
        films = [_named(path) for path in args.video]
        if sum(len(film.data) for film in films) > MOST_BYTES:
            raise ConfigError(f"--video: the films have more than {_mb(MOST_BYTES)}; {SMALLER}")
        return films, []
    films, notes, left = [], [], MOST_BYTES
    for path in _candidates(args.folders, [one.run.folder for one in loaded]):
        size = path.stat().st_size
        if size > left:
            notes.append(f"{path}: has {_mb(size)}, a page takes {_mb(MOST_BYTES)}; {SMALLER}")
            continue
        films.append(Film(str(path), path.suffix.lower(), path.read_bytes()))
        left -= size
    return films, notes


def _named(path: Path) -> Film:
    flag = f"--video = {path}"
    suffix = path.suffix.lower()
    if suffix not in MIME:
        raise ConfigError(f"{flag}: must end in {', '.join(MIME)}")
    if not path.is_file():
        raise ConfigError(
            f"{flag}: no such file; `python -m experiments.render RUN --out={path}` makes it"
        )
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ConfigError(f"{flag}: has {_mb(size)}, a page takes {_mb(MOST_BYTES)}; {SMALLER}")
    if not _is_film(path):
        raise ConfigError(
            f"{flag}: is no {suffix[1:]} file; `python -m experiments.render RUN --out={path}`"
            " makes one"
        )
    return Film(str(path), suffix, path.read_bytes())


def _candidates(folders: Sequence[Path], runs: Sequence[Path]) -> list[Path]:
    """Films in the folders themselves and in their runs."""
    places = dict.fromkeys([*folders, *runs])
    out = []
    for place in places:
        for path in sorted(place.iterdir()):
            suffix = path.suffix.lower()
            if suffix in MIME and path.is_file() and _is_film(path):
                # Curves and diagnostics are pictures too, but no films.
                if suffix != ".png" or MADE_BY in _head(path):
                    out.append(path)
    return list({path.resolve(): path for path in out}.values())


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""


def _is_film(path: Path) -> bool:
    return SIGNATURES[path.suffix.lower()] in _head(path)[:12]


def _mb(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
