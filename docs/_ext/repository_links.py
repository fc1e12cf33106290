"""Links of the Markdown sources, made for GitHub, as links of the site.

Sources link to each other and to files of the repository by relative paths. Files outside of
``docs/`` are no pages: README.md, CHANGELOG.md and CONTRIBUTING.md are included by pages of the
site, pictures are copied, and anything else is a link to the repository if the environment
variable ``DOCS_REPOSITORY`` has its address (``https://github.com/OWNER/NAME``), else plain text.
"""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
PICTURES = (".png", ".svg", ".gif", ".jpg")

_INCLUDE = re.compile(r"^```\{include\} (\S+)\n```$", re.M)
_FENCE = re.compile(r"(^(`{3,})[^\n]*\n.*?^\2[ \t]*$)", re.M | re.S)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_IMAGE = re.compile(r'<img src="([^"]+)"(?: width="(\d+)")?(?: alt="([^"]*)")?>')


def rewrite(text: str, source: Path, docs: Path, repository: str = "") -> str:
    """``text`` of the file ``source`` with links that work in a page of the site.

    Args:
      text: Markdown.
      source: absolute path of the file that it comes from.
      docs: absolute path of the folder of the pages.
      repository: address of the repository, without a slash at its end; may be empty.
    """
    # Every third part is the fence's own backticks, every second a block of code.
    parts = _FENCE.split(text)
    prose, blocks = parts[0::3], parts[1::3]
    prose = [_prose(part, source, docs, repository) for part in prose]
    return "".join(a + b for a, b in zip(prose, [*blocks, ""], strict=True))


def _prose(text: str, source: Path, docs: Path, repository: str) -> str:
    def image(match: re.Match) -> str:
        path, width, alt = match.groups()
        path = _resolve(path, source, docs, picture=True)[0]
        options = f":alt: {alt or ''}\n" + (f":width: {width}px\n" if width else "")
        return f"```{{image}} {path}\n{options}```"

    def link(match: re.Match) -> str:
        mark, label, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, inside = _resolve(target, source, docs, picture=bool(mark))
        if inside:
            return f"{mark}[{label}]({path})"
        return f"[{label}]({repository}/tree/main/{path})" if repository else label

    return _LINK.sub(link, _IMAGE.sub(image, text))


def _resolve(target: str, source: Path, docs: Path, picture: bool) -> tuple[str, bool]:
    """The target for MyST and True, or a path in the repository and False."""
    name, mark, anchor = target.partition("#")
    root = docs.parent
    path = Path(os.path.normpath(source.parent / name))
    inside = os.path.relpath(path, root).replace(os.sep, "/")
    if inside in PAGES:
        return f"/{PAGES[inside]}{mark}{anchor}", True
    if path.is_relative_to(docs):
        return f"/{path.relative_to(docs).as_posix()}{mark}{anchor}", True
    if picture or path.suffix in PICTURES:
        return f"/../{inside}", True
    return inside, False


def read(app: Sphinx, docname: str, content: list[str]) -> None:
    """Handler of ``source-read``: expands includes and rewrites links."""
    docs = Path(app.srcdir)
    source = Path(app.env.doc2path(docname))
    if source.suffix != ".md":
        return
    repository = os.environ.get("DOCS_REPOSITORY", "").rstrip("/")

    def include(match: re.Match) -> str:
        path = Path(os.path.normpath(source.parent / match[1]))
        app.env.note_dependency(str(path))
        return rewrite(path.read_text(), path, docs, repository)

    text = rewrite(content[0], source, docs, repository)
    content[0] = _INCLUDE.sub(include, text)


def setup(app: Sphinx) -> dict:
    """Register the handler."""
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
