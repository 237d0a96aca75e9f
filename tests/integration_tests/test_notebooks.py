"""Every notebook runs without a network, and says what its committed outputs say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OFFLINE = """
import socket

def refuse(*args, **kwargs):
    raise PermissionError("a notebook reached out")

socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = socket.getaddrinfo = refuse
"""
DECIMAL = re.compile(r"\d+\.\d+")
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(home|root|Users|work|tmp|var|private|usr|opt|mnt)/|\b[A-Z]:\\")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def load_execute() -> Any:
    spec = importlib.util.spec_from_file_location("execute_notebooks", ROOT / "notebooks" / "execute.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


execute = load_execute()


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell: Any) -> list[tuple[str, str]]:
    """What a reader sees under a cell: kinds of output, and their texts."""
    seen = []
    for output in cell.outputs:
        if output.output_type == "stream":
            seen.append((output.name, output.text))
        elif output.output_type == "error":
            seen.append(("error", output.evalue))
        else:
            seen += [(kind, data if kind.startswith("text/") else "") for kind, data in sorted(output.data.items())]
    return seen


def same(fresh: list[tuple[str, str]], committed: list[tuple[str, str]], *, tolerance: float = 0.05) -> bool:
    """Whether a reader sees the same. Scores may differ a little: int8 arithmetic is not the same on every CPU."""
    texts = [[(kind, DECIMAL.sub("#", text)) for kind, text in outputs] for outputs in (fresh, committed)]
    numbers = [[float(n) for _, text in outputs for n in DECIMAL.findall(text)] for outputs in (fresh, committed)]
    return texts[0] == texts[1] and all(abs(a - b) <= tolerance for a, b in zip(*numbers, strict=True))


@pytest.mark.timeout(400)  # one of them trains, and the cores may be busy
@each_notebook
def test_it_runs_offline_and_says_what_is_committed(path: Path) -> None:
    committed = nbformat.read(path, as_version=4)
    fresh = execute.executed(committed, prelude=OFFLINE)
    for ran, cell in zip(code_cells(fresh), code_cells(committed), strict=True):
        if "varies" not in cell.metadata.get("tags", []):
            assert same(shown(ran), shown(cell)), (
                f"{cell.id}\n\n{shown(ran)}\n\nis not what is committed: make notebooks"
            )


@each_notebook
def test_what_is_committed_was_executed_and_tells_nothing_of_the_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert notebook.metadata == execute.METADATA
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert set(cell.metadata) <= {"tags"}
        for kind, text in shown(cell):
            assert kind not in {"error", "stderr"}, text
            assert not MACHINE_PATH.search(text) and str(ROOT) not in text


@each_notebook
def test_its_links_lead_somewhere_and_the_docs_list_it(path: Path) -> None:
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert links and [link for link in links if not (path.parent / link).exists()] == []
    assert path.name in (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")


def test_no_notebook_is_overlooked() -> None:
    assert len(NOTEBOOKS) >= 7


def test_a_cell_that_reaches_out_fails() -> None:
    trying = """
import socket
address = ("127.0.0.1", 9)
for reach_out in (lambda: socket.create_connection(address), lambda: socket.socket().connect(address)):
    try:
        reach_out()
    except PermissionError as error:
        print(error)
reach_out()
"""
    notebook = new_notebook(cells=[new_code_cell(trying)])
    with pytest.raises(CellExecutionError) as failure:
        execute.executed(notebook, prelude=OFFLINE)
    assert str(failure.value).count("a notebook reached out\n") >= 2
    assert failure.value.ename == "PermissionError"


def test_what_differs_from_run_to_run_is_not_kept() -> None:
    cells = [new_code_cell("import os; os.getpid"), new_code_cell("2 + 2", metadata={"tags": ["varies"], "odd": 1})]
    given = new_notebook(cells=cells, metadata={"language_info": {"name": "python", "version": "3.0"}})
    ran = execute.executed(given, prelude="1 + 1")
    assert [cell.execution_count for cell in ran.cells] == [1, 2]
    assert [dict(cell.metadata) for cell in ran.cells] == [{}, {"tags": ["varies"]}]
    assert ran.cells[1].outputs[0].execution_count == 2 and shown(ran.cells[1]) == [("text/plain", "4")]
    assert ran.metadata == execute.METADATA
    assert given.cells[1].outputs == []


@pytest.mark.parametrize(
    ("committed", "alike"),
    [("P(harm) 0.84", True), ("P(harm) 0.72", False), ("p(harm) 0.82", False), ("P(harm) 0.82 0.82", False)],
)
def test_scores_may_differ_a_little_and_nothing_else(committed: str, alike: bool) -> None:
    assert same([("stdout", "P(harm) 0.82")], [("stdout", committed)]) is alike
    assert not same([("stdout", "P(harm) 0.82")], [("stderr", committed)])
