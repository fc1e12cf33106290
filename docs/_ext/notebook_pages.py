"""Jupyter notebooks as pages, with their stored outputs; nothing is executed."""

import json

from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx


def markdown(text: str) -> str:
    """MyST's Markdown of a notebook.

    Args:
      text: contents of an ``.ipynb`` file, nbformat 4.

    Raises:
      ValueError: for an output of a kind that this cannot show.
    """
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code":
            parts.append(f"````python\n{source}\n````")
            parts.extend(_output(output) for output in cell["outputs"])
    return "\n\n".join(parts) + "\n"


def _output(output: dict) -> str:
    if output["output_type"] == "stream":
        return _text("".join(output["text"]))
    if output["output_type"] in ("display_data", "execute_result"):
        data = output["data"]
        if "image/png" in data:
            image = "".join(data["image/png"]).replace("\n", "")
            return (
                f'<p><img alt="output of the cell above" src="data:image/png;base64,{image}"></p>'
            )
        if "text/plain" in data:
            return _text("".join(data["text/plain"]))
    raise ValueError(f"notebook output of type {output['output_type']!r}: cannot be shown")


def _text(text: str) -> str:
    return f"````text\n{text.rstrip()}\n````"


class NotebookParser(MystParser):
    """Parses notebooks by way of MyST's Markdown."""

    supported = ("notebook",)

    def parse(self, inputstring, document) -> None:
        """Convert, then parse as Markdown."""
        super().parse(markdown(inputstring), document)


def setup(app: Sphinx) -> dict:
    """Register notebooks as sources."""
    app.add_source_suffix(".ipynb", "notebook")
    app.add_source_parser(NotebookParser)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
