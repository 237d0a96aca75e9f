"""Every example in the README, the docs and the docstrings runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import protector_guardrails

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(protector_guardrails.__path__, "protector_guardrails.")
    if not name.endswith("__main__")
)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_python_blocks_run(page: Path) -> None:
    """The blocks of a page run in order, in one namespace, and none is overlooked."""
    text = page.read_text(encoding="utf-8")
    blocks = BLOCK.findall(text)
    assert len(blocks) == text.count("```python")
    namespace: dict[str, object] = {"__name__": "documentation"}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    broken = [
        target
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        if "://" not in target and not target.startswith("mailto:") and not (page.parent / target).exists()
    ]
    assert broken == []


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_run(module: str) -> None:
    failed, _ = doctest.testmod(
        importlib.import_module(module), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert failed == 0


@pytest.mark.parametrize("name", [name for name in protector_guardrails.__all__ if not name.startswith("__")])
def test_public_names_are_documented(name: str) -> None:
    public = getattr(protector_guardrails, name)
    assert inspect.getdoc(public)
    for member, value in vars(public).items():
        if inspect.isfunction(value) and not member.startswith("_"):
            assert inspect.getdoc(getattr(public, member)), f"{name}.{member} has no docstring"


@pytest.mark.parametrize("name", [name for name in protector_guardrails.__all__ if not name.startswith("__")])
def test_public_names_have_an_example_that_runs(name: str) -> None:
    """One of their own, with something that is checked; the test above runs it."""
    examples = doctest.DocTestParser().get_examples(getattr(protector_guardrails, name).__doc__ or "")
    run = [example for example in examples if not example.options.get(doctest.SKIP)]
    assert any(example.want or example.exc_msg for example in run), f"{name} has no example that runs"
