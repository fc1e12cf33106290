"""The reference describes every public name, or the build fails."""

import pkgutil

import public_names
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

_LOG = logging.getLogger(__name__)
_ATTRIBUTES: dict[str, list[str]] = {}


def check(app: Sphinx, env) -> None:
    """Warn, which ends a strict build, of public names that are missing or lack a docstring."""
    described = env.get_domain("py").objects
    for aliases, value in public_names.names():
        name = min(aliases)
        if not aliases & described.keys():
            _LOG.warning("%s: missing from the pages in docs/api", name)
        if not public_names.described(value):
            _LOG.warning("%s: has no docstring", name)


def keep(app: Sphinx, what: str, name: str, value, options, lines: list[str]) -> None:
    """Store the text of an attribute before napoleon reads "word: text" as a type and a text."""
    if what in ("attribute", "data", "property"):
        # NamedTuple gives this to fields without a docstring.
        made_up = lines and lines[0].startswith("Alias for field number")
        _ATTRIBUTES[name] = [] if made_up else list(lines)


def restore(app: Sphinx, what: str, name: str, value, options, lines: list[str]) -> None:
    """The stored text of an attribute."""
    if name in _ATTRIBUTES:
        lines[:] = _ATTRIBUTES.pop(name)


def shorten(app: Sphinx, what: str, name: str, value, options, signature, returned):
    """No signature for configurations: their docstrings list every field with type and range."""
    return ("", None) if "Annotated[" in (signature or "") and what == "class" else None


def accept(app: Sphinx, env, node, shown):
    """What a signature or docstring names but no page describes is text, if it exists."""
    if not isinstance(shown, nodes.literal):  # a type in a signature, which Python has checked
        return shown
    target = node.get("reftarget", "").partition("[")[0]
    scopes = (node.get("py:module"), "pomcp_jax", None)
    return (
        shown
        if any(_exists(f"{scope}.{target}" if scope else target) for scope in scopes)
        else None
    )


def _exists(dotted: str) -> bool:
    """Whether ``a.b.c`` is a module or an attribute of one."""
    try:
        return pkgutil.resolve_name(dotted) is not None
    except (ImportError, AttributeError, ValueError):
        return False


def setup(app: Sphinx) -> dict:
    """Register the handlers."""
    app.connect("env-check-consistency", check)
    app.connect("autodoc-process-signature", shorten)
    app.connect("missing-reference", accept)
    app.connect("autodoc-process-docstring", keep, priority=100)
    app.connect("autodoc-process-docstring", restore, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
