"""The documentation is built as it is published: strictly, so that a broken link or reference fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import protector_guardrails

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    ran = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder


@pytest.mark.timeout(300)
def test_it_is_built_without_a_warning(site: Path) -> None:
    assert (site / "index.html").stat().st_size > 1000


@pytest.mark.timeout(300)
def test_every_page_is_in_the_navigation(site: Path) -> None:
    """A page that no menu leads to is found by nobody."""
    menu = (site / "index.html").read_text(encoding="utf-8")
    pages = [path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")]
    written = [page.as_posix() for page in pages if page.name not in {"index", "template"}]
    written = [page for page in written if not page.startswith("results/validation/")]  # its page links to them
    missing = [page for page in written if f'href="{page}/"' not in menu]
    assert missing == []


@pytest.mark.timeout(300)
def test_every_public_name_is_in_the_reference(site: Path) -> None:
    anchors = set(re.findall(r'id="protector_guardrails\.[\w.]*?(\w+)"', (site / "reference/index.html").read_text()))
    public = {name for name in protector_guardrails.__all__ if not name.startswith("__")}
    assert public <= anchors, public - anchors


@pytest.mark.timeout(300)
def test_a_reader_fetches_nothing_from_elsewhere(site: Path) -> None:
    """Fonts, scripts and pictures come with the site."""
    loaded = re.compile(
        r'<(?:script|img|iframe)[^>]*src="(https?:)?//|<link[^>]*rel="stylesheet"[^>]*href="(https?:)?//'
    )
    assert [page for page in site.rglob("*.html") if loaded.search(page.read_text(encoding="utf-8"))] == []


@pytest.mark.timeout(300)
def test_every_notebook_has_a_page_with_what_it_drew(site: Path) -> None:
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    pages = [(site / "notebooks" / path.stem / "index.html").read_text(encoding="utf-8") for path in notebooks]
    assert pages
    for path, page in zip(notebooks, pages, strict=True):
        assert page.count("data:image/png;base64,") == path.read_text(encoding="utf-8").count('"image/png":')
