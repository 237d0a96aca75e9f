"""Run the notebooks and write their outputs back, in a form that is the same after every run.

The .ipynb files are the source. ``make notebooks`` runs all of them in place; to run some, name them:
``python notebooks/execute.py notebooks/01_quickstart.ipynb``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell
from traitlets.config import Config

FOLDER = Path(__file__).parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def executed(notebook: NotebookNode, *, prelude: str = "", timeout_s: int = 300) -> NotebookNode:
    """A copy of a notebook with fresh outputs, and without anything that differs from run to run.

    The kernel works in an empty folder of its own, with Unix sockets there instead of ports.

    Args:
        notebook: What to run; it is left as it is.
        prelude: Code that runs before the first cell and leaves no trace in the result.
        timeout_s: Seconds that one cell may take.

    Raises:
        CellExecutionError: If a cell raises.
        CellTimeoutError: If a cell takes too long.
    """
    notebook = nbformat.from_dict(notebook)
    cells = notebook.cells
    with tempfile.TemporaryDirectory() as folder:
        kernel = {"transport": "ipc", "connection_file": str(Path(folder, "kernel.json"))}
        client = NotebookClient(
            notebook,
            config=Config(KernelManager=kernel),
            resources={"metadata": {"path": folder}},
            timeout=timeout_s,
            record_timing=False,
            coalesce_streams=True,
        )
        if prelude:
            notebook.cells = [new_code_cell(prelude), *cells]
        client.execute(env={**os.environ, "IPYTHONDIR": folder})
    notebook.cells = cells
    return _clean(notebook)


def _clean(notebook: NotebookNode) -> NotebookNode:
    notebook.metadata = nbformat.from_dict(METADATA)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, start=1):
        cell.execution_count = count
        cell.metadata = NotebookNode({"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {})
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
    return notebook


def main(argv: Sequence[str] | None = None) -> None:
    """Execute notebooks in place."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("notebooks", nargs="*", type=Path, help="which ones; all of this folder if left out")
    for path in parser.parse_args(argv).notebooks or sorted(FOLDER.glob("*.ipynb")):
        print(path.name, flush=True)
        notebook = executed(nbformat.read(path, as_version=4))
        nbformat.validate(notebook)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
