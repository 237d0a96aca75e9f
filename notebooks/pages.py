"""Shows the notebooks on the documentation's site: a hook of mkdocs that makes a page of each, outputs included."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.structure.files import File, Files

FOLDER = Path(__file__).parent
_LINKS = (
    (re.compile(r"\]\(\.\./docs/"), "](../"),
    (re.compile(r"\]\((\d\d_\w+)\.ipynb"), r"](\1.md"),
    (re.compile(r"\[([^\]]+)\]\(\.\./examples/[^)]*\)"), r"\1"),  # lies outside of the site
)
_TO_NOTEBOOK = re.compile(r"\]\(\.\./notebooks/(\w+)\.ipynb")


def on_files(files: Files, config: Any) -> Files:
    """Hook of mkdocs: adds ``notebooks/NAME.md`` for each ``NAME.ipynb``."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Hook of mkdocs: links to notebooks, right where the repository is read, lead to their pages on the site."""
    return _TO_NOTEBOOK.sub(r"](notebooks/\1.md", markdown)


def page(path: Path) -> str:
    """A notebook as Markdown, with what its cells printed and drew."""
    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(_linked(cell.source))
        else:
            parts.append(f"```python\n{cell.source}\n```")
            parts += [shown for output in cell.outputs if (shown := _shown(output))]
    title, rest = parts[0].partition("\n")[::2]
    return "\n\n".join([title, f"*This is `notebooks/{path.name}` of the repository, as it ran.*", rest, *parts[1:]])


def _linked(text: str) -> str:
    for pattern, replacement in _LINKS:
        text = pattern.sub(replacement, text)
    return text


def _shown(output: Any) -> str:
    if output.output_type == "stream":
        return f'```text title="prints"\n{output.text.rstrip()}\n```'
    data = output.get("data", {})
    if "image/png" in data:
        return f"![what the cell draws](data:image/png;base64,{data['image/png'].strip()})"
    if "text/markdown" in data:
        quoted = "\n".join(f"> {line}" for line in data["text/markdown"].splitlines())
        return re.sub(r"(?m)^> #+ (.*)$", r"> **\1**", quoted)
    return f'```text title="gives"\n{data["text/plain"]}\n```' if "text/plain" in data else ""
