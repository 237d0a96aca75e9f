"""The leak matrix as a document: ``python -m tests.leaks.matrix > docs/leak-matrix.md`` writes it anew."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .case import Finding, tried
from .forms import ALONE, CHAIN, CHAIN_WINDOW, FORMS, MIDDLEWARE, PROTECTED, Form
from .marker import MARKER
from .ways.registry import ROWS, Row

for _module in (
    *("calls", "streams", "listeners", "composed", "structured", "stored", "failures"),
    *("graphs", "agents", "forms_of_answers"),
):
    importlib.import_module(f".ways.{_module}", __package__)

NOT_COMPARED = "<!-- what follows is not compared -->"
_LIBRARIES = (
    *("langchain-core", "langchain", "langgraph", "langgraph-checkpoint-sqlite"),
    *("langsmith", "opentelemetry-sdk"),
)
_HEADS = {"none": "model alone", "chain": "bare chain", "protect": "`protect()`", "middleware": "middleware"}
_COLUMNS: tuple[Sequence[Form], ...] = ((ALONE,), (CHAIN, CHAIN_WINDOW), PROTECTED, MIDDLEWARE)

INTRODUCTION = """# Leak matrix

Every way out of a model that we know of, and how much of a harmful answer can be seen on it. The page is written by
`python -m tests.leaks.matrix > docs/leak-matrix.md`. The tests in `tests/leaks/` fail if a cell under guard is not 0,
and if this page does not say what they find.

## What is tested

A scripted model answers with a marker of {letters} letters that appear nowhere else, in the midst of harmless words.
A scripted detector finds harmful what holds the whole marker. Each cell uses the model in one way, gathers all that the
caller and every onlooker get (messages, chunks, events, records, files, exceptions with the local variables of their
tracebacks, the objects that hang on them), and counts the letters of the marker in it. A stream that lets go of
one letter has leaked.

- **model alone**: no guard. The marker must be seen here in full, or the row would prove nothing.
- **bare chain**: `model | HarmDetectorRunnable() | DetoxifierRunnable("redact")`, held back in full; streams in
  windows, too. What leaves at its end was judged. What the model does on the way there was not, and others see it.
- **`protect()`**: {protected}.
- **middleware**: `ProtectorMiddleware` in an agent: {middleware}.

Where a column stands for several settings, each is tried and the worst counts. `–` means that there is no such way: a
chain has no `bind_tools`, and an agent is made of a model. Under guard it is checked, too, that the detector was
shown the marker, and that the caller got a rewrite, the refusal or an exception of this package.

{cells} cells under guard in {rows} rows: {leaking}.

## What is out of reach

- What the model's library itself logs, writes to disk or sends elsewhere, and what its provider keeps.
- What goes out on purpose: to `raw_callbacks`, when a human approves an answer in the middleware's mode `interrupt`,
  and what `Policy(on_harm="flag")` or `Policy(on_error="open")` let through.
- Harm that the detector does not see; here it is a scripted one. In windows: harm that shows only in more text than a
  window holds.
- Models that other middleware, tools or nodes call by themselves. Protect those, too.
- Code in the same process that goes looking for it: a debugger, the garbage collector's list of objects, the guard's
  own attributes while a stream is open.
- asyncio's debug mode logs tasks that were slow, with the exceptions that they ended with. LangChain starts tasks of
  its own within the model, so if such an exception quotes the answer, the log does.
- Timing, memory dumps and bytes on the wire.

## The matrix

Letters of the marker that can be seen, out of {letters}.
"""


@functools.cache
def finding(row: Row, column: Form) -> Finding:
    """What came of a cell; each is tried once."""
    return tried(row.way, row.form_under(column))


def cells(*, guarded: bool) -> list[tuple[Row, Form]]:
    """All cells that exist, under guard or not."""
    return [(row, form) for row in ROWS for form in FORMS if row.has(form) and form.is_guarded == guarded]


def _shown(row: Row, forms: Sequence[Form]) -> str:
    there = [form for form in forms if row.has(form)]
    if not there:
        return "–"
    worst = max(len(finding(row, form).leaked) for form in there)
    return f"**{worst}**" if worst and there[0].is_guarded else str(worst)


def _tables() -> Iterator[str]:
    for group in dict.fromkeys(row.group for row in ROWS):
        rows = [row for row in ROWS if row.group == group]
        columns = [forms for forms in _COLUMNS if any(row.has(forms[0]) for row in rows)]
        yield f"\n### {group}\n"
        yield "| way out | " + " | ".join(_HEADS[forms[0].kind] for forms in columns) + " |"
        yield "|---|" + "---:|" * len(columns)
        for row in rows:
            title = row.title.replace("|", "\\|")
            yield f"| {title} | " + " | ".join(_shown(row, forms) for forms in columns) + " |"


def compared() -> str:
    """The part of the document that does not depend on versions."""
    guarded = cells(guarded=True)
    leaking = sum(bool(finding(row, form).leaked) for row, form in guarded)
    return INTRODUCTION.format(
        letters=len(MARKER),
        protected="; ".join(form.title for form in PROTECTED),
        middleware="; ".join(form.title for form in MIDDLEWARE),
        cells=len(guarded),
        rows=len(ROWS),
        leaking=f"**{leaking} leak**" if leaking else "none shows a letter",
    ) + "\n".join([*_tables(), "", *_llama_index()])


def _llama_index() -> Iterator[str]:
    """The same for LlamaIndex, whose ways out are tried in ``tests/leaks_llama``."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    markdown = importlib.import_module("leaks_llama.table").markdown
    yield "## LlamaIndex\n"
    yield "`GuardedLLM` closes the LLM. Wrappers guard the result of an engine; the rows show where that differs.\n"
    yield markdown()


def document() -> str:
    """The whole document."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES)
    return f"{compared()}\n{NOT_COMPARED}\n\nWritten with {versions}.\n"


if __name__ == "__main__":
    print(document(), end="")
