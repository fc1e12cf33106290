"""Parse arguments: flags may have dashes, mistakes end in one line."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from pomcp_jax import nearest


def underscored(argv: Sequence[str]) -> list[str]:
    """``argv`` with ``_`` for ``-`` in the names of flags; values stay as they are."""
    out: list[str] = []
    for i, arg in enumerate(argv):
        if arg == "--":
            return out + list(argv[i:])
        name, equals, value = arg.partition("=")
        if arg.startswith("-"):
            bare = name.lstrip("-")
            name = name[: len(name) - len(bare)] + bare.replace("-", "_")
        out.append(name + equals + value)
    return out


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, others: bool = False
) -> tuple[argparse.Namespace, list[str]]:
    """The arguments that ``parser`` defines and, with ``others``, the remaining ones.

    Exits with one line and code 2 for unknown or malformed arguments.
    """

    def error(message: str) -> NoReturn:
        parser.exit(2, f"error: {message}; see --help\n")

    parser.error = error  # type: ignore[method-assign]
    args, rest = parser.parse_known_args(underscored(sys.argv[1:] if argv is None else argv))
    if rest and not others:
        name = rest[0].partition("=")[0]
        known = re.findall(r"--(\w+)", parser.format_usage())
        hint = nearest.hint(name.lstrip("-"), known, "--{}")
        parser.exit(2, f"error: {name}: unknown argument{hint or '; see --help'}\n")
    return args, rest
