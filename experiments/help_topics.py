"""Answers of ``--help=TOPIC``: sections of fields, single fields, names that can be chosen."""

from collections.abc import Callable, Iterable
from typing import Any

from experiments import config_files
from pomcp_jax import config as config_lib
from pomcp_jax import fields, nearest, presets
from pomcp_jax.attribute_docs import first_line, markdown
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.fields import Spec

TABLE = "| field | type | default | meaning |\n|---|---|---|---|"


def text(topic: str, config: Config | None = None) -> str:
    """Description of ``topic``, with the values of ``config`` if given.

    Raises:
      ConfigError: for an unknown topic, with the nearest one.
    """
    values = {} if config is None else config_lib.flatten(config)
    # The last part of a name is unique and enough: "policy" for "agent.policy".
    groups = {name.rpartition(".")[2]: name for name in fields.groups(Config)}
    specs = fields.all_specs(Config)
    topic = topic.removeprefix("config.")
    if topic in OTHERS:
        return OTHERS[topic]()
    if topic == "all":
        parts = [_section(group, values) for group in groups.values()]
        return "\n\n".join([*parts, *(OTHERS[name]() for name in CHOICES)])
    if topic in groups or topic in groups.values():
        return _section(groups.get(topic, topic), values)
    # Several groups may have a field of this name: all are answers.
    names = [name for name in specs if f".{name}".endswith(f".{topic}")]
    if names:
        return "\n".join(_field(name, name, specs[name], values) for name in names)
    hint = nearest.hint(topic, [*groups, *OTHERS, "all", *specs])
    raise ConfigError(
        f"--help = {topic!r:.80}: unknown topic{hint} ({', '.join([*groups, *OTHERS, 'all'])}, or"
        " a field)"
    )


def _section(group: str, values: dict[str, Any]) -> str:
    """Description of all fields of a group."""
    cls = fields.groups(Config)[group]
    lines = [f"{group}: {first_line(cls.__doc__)}", f"set by --config.{group}.FIELD=VALUE", ""]
    for name, spec in fields.specs(cls).items():
        lines.append(_field(name, f"{group}.{name}", spec, values))
    return "\n".join(lines)


def _field(shown: str, name: str, spec: Spec, values: dict[str, Any]) -> str:
    here = f"; here {values[name]}" if name in values else ""
    meaning = markdown(spec.doc).replace("\n", "\n      ")
    return f"  {shown}: {spec.allowed}; default {spec.default}{here}\n      {meaning}"


def _listed(title: str, pairs: Iterable[tuple[str, str]]) -> str:
    pairs = list(pairs)
    width = max(len(name) for name, _ in pairs)
    return "\n".join([f"{title}:", *(f"  {name:<{width}}  {text}" for name, text in pairs)])


def _presets() -> str:
    pairs = [(name, first_line(make.__doc__)) for name, make in presets.PRESETS.items()]
    return _listed("presets, --config=FILE.py:task,PRESET", pairs)


def _sizes() -> str:
    pairs = [
        (name, ", ".join(f"{field} {value}" for field, value in size.items()))
        for name, size in presets.SIZES.items()
    ]
    return _listed(
        "sizes of the world model, --size=SIZE or --config=FILE.py:task,preset,SIZE", pairs
    )


def _configs() -> str:
    pairs = [(name, config_files.first_line(name)) for name in config_files.known()]
    return _listed("configuration files, --config=FILE.py", pairs)


def _tasks() -> str:
    from pomcp_jax import envs  # imports physics, which no other topic needs

    names = "\n".join(f"  {name}" for name in envs.available())
    return f"tasks, --config=FILE.py:TASK:\n{names}\n  MODULE:ATTRIBUTE, a task of your own"


def page() -> str:
    """Contents of docs/configuration_fields.md."""
    parts = [
        "# Fields of the configuration\n\n"
        "Written by `python -m experiments.run --help=markdown`; a test compares it with the code."
        " Defaults\nare those of the classes: the 5M PO-MPC agent. How to set fields:"
        " [configuration.md](configuration.md)."
    ]
    for group, cls in fields.groups(Config).items():
        rows = [f"## {group}\n\n{first_line(cls.__doc__)}\n", TABLE]
        for name, spec in fields.specs(cls).items():
            # A "|" would end the cell of a markdown table.
            allowed = spec.allowed.replace(" | ", ", ")
            meaning = " ".join(markdown(spec.doc).split()).replace("|", "\\|")
            rows.append(f"| `{name}` | {allowed} | {spec.default} | {meaning} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


CHOICES: dict[str, Callable[[], str]] = {
    "configs": _configs,
    "tasks": _tasks,
    "presets": _presets,
    "sizes": _sizes,
}
"""Topics that list names to choose from."""
OTHERS = CHOICES | {"markdown": page}
