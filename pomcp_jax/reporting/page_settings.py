"""Configurations of a report, and where its runs come from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pomcp_jax.reporting import page_text, report_data
from pomcp_jax.reporting.comparison import Loaded
from pomcp_jax.reporting.page_text import DASH, Td, joined, words
from pomcp_jax.reporting.report_data import Difference, Group


class Base(NamedTuple):
    """Preset and size that a configuration is nearest to."""

    name: str
    fields: Mapping[str, Any]
    """Its fields by dotted name."""


def differences(found: Sequence[Group], bases: Mapping[Path, Base]) -> str:
    """Fields that differ between configurations, and from presets; ``bases`` is by folder."""
    differing, some = report_data.differences(found)
    labels = list(dict.fromkeys(group.label for group in found))
    parts = []
    if differing and len(labels) > 1:
        rows = [_difference(one, labels) for one in differing]
        caption = "Fields in which configurations differ; faint: what most methods have"
        parts.append(page_text.table(caption, ["field", *labels], rows, names=len(labels) + 1))
    elif len(found) > 1 or any(len(group.members) > 1 for group in found):
        names = ", ".join(f"{d.field} ({'; '.join(d.values.values())})" for d in differing)
        text = f"All configurations are equal but for: {names}" if names else (
            "All configurations are equal but for the task."
        )  # fmt: skip
        parts.append(f"<p>{words(text)}</p>")
    changed = report_data.changes(found, {folder: base.fields for folder, base in bases.items()})
    parts += [_changes(label, found, rows, bases) for label, rows in changed.items()]
    if some:
        parts.append(
            f'<p class="constant">Only some configurations have {words(", ".join(some))}: they were'
            " written by different versions.</p>"
        )
    inner = "".join(parts)
    about = "Fields that differ between configurations, and from the nearest preset and size."
    return page_text.folded("configuration", "Configuration", about, inner, shown=True)


def _difference(one: Difference, labels: Sequence[str]) -> list[Td]:
    """A row: a field and its value for every method, faint where most have the same."""
    values = [one.values.get(label, DASH) for label in labels]
    usual = max(values, key=values.count)
    faint = usual if values.count(usual) > len(values) / 2 else None
    cells = [Td(words(v), v, "value quiet" if v == faint else "value") for v in values]
    return [Td(f"<code>{words(one.field)}</code>", one.field), *cells]


def _changes(
    label: str,
    found: Sequence[Group],
    rows: Sequence[tuple[str, str, str]],
    bases: Mapping[Path, Base],
) -> str:
    """Fields of one method that differ from its preset, closed where there are many methods."""
    folders = [one.run.folder for g in found if g.label == label for one in g.members]
    names = joined(bases[folder].name for folder in folders if folder in bases)
    if names == DASH:
        return f"<p>{words(label)}: no preset is near enough to this version’s to compare.</p>"
    if not rows:
        return f"<p>{words(label)}: as {words(names)}.</p>"
    table = page_text.table(
        f"{label}: differences from {names} and the defaults",
        ["field", names, label],
        [
            [Td(f"<code>{words(field)}</code>", field), Td(words(old), old, "value quiet"),
             Td(words(new), new, "value")]
            for field, old, new in rows
        ],
        names=3,
    )  # fmt: skip
    if len({group.label for group in found}) == 1:
        return table
    return (
        f'<details class="inner"><summary>{words(label)}: {len(rows)} fields differ from'
        f" {words(names)}</summary>{table}</details>"
    )


def provenance(loaded: Sequence[Loaded]) -> str:
    """Where every run is, and what made it."""
    rows = []
    for one in loaded:
        about = one.run.about
        command = str(about.get("command") or DASH)
        started = str(about.get("started") or DASH)[:19].replace("T", " ")
        rows.append(
            [
                Td(f"<code>{words(one.run.folder)}</code>", str(one.run.folder)),
                Td(f'<code class="command">{words(command)}</code>', command),
                Td(words(started), started),
                Td(words(about.get("commit") or DASH), str(about.get("commit") or "")),
            ]
        )
    table = page_text.table("Runs", ["folder", "command", "started", "commit"], rows, names=4)
    return page_text.folded("runs", "Where it comes from", "", table, shown=False)
