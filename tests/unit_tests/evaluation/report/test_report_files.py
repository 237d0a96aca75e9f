"""The files of a report, the Markdown one, and the command that makes them again."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from typer.testing import CliRunner

pytest.importorskip("sklearn")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from report_reading import read_page, told
from report_samples import defense, detector

from protector_guardrails.commands.report import report
from protector_guardrails.errors import ConfigurationError, MissingExtraError
from protector_guardrails.evaluation.defense.results import DefenseEvaluation
from protector_guardrails.evaluation.report import read_results, require_report_extras, write_reports
from protector_guardrails.evaluation.report.document import Bullets, Cell, Document, Paragraph, Section, Table
from protector_guardrails.evaluation.report.markdown import markdown_page
from protector_guardrails.masking import plain

app = typer.Typer()
app.command("report")(report)
app.command("other")(lambda: None)
EVALUATIONS = {"detectors": lambda: detector(3), "defense": defense}


@pytest.fixture(params=list(EVALUATIONS))
def evaluation(request):
    return EVALUATIONS[request.param]()


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Cells of every table as GitHub would show them."""
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    page = read_page(re.sub("<table>", '<table aria-label="table">', rendered))
    return [[[told(cell) for cell in row] for row in rows] for rows in page.tables.values()]


def test_both_files_are_written_whole(evaluation, tmp_path):
    written = write_reports(evaluation, tmp_path)
    assert written == [tmp_path / "report.html", tmp_path / "report.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]
    before = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in write_reports(evaluation, tmp_path)] == before


def test_markdown_has_the_figures_of_the_page(evaluation, tmp_path):
    html, markdown = (path.read_text() for path in write_reports(evaluation, tmp_path))
    tables = [[[told(cell) for cell in row] for row in rows] for rows in read_page(html).tables.values()]
    shown = markdown_tables(markdown)
    if isinstance(evaluation, DefenseEvaluation):  # the figures that the page shows large
        assert shown.pop(0)[0] == ["Figure", "Value", "What"]
    squeezed = [[[cell.replace(" ", "") for cell in row] for row in rows] for rows in shown]
    assert squeezed == [[[cell.replace(" ", "") for cell in row] for row in rows] for rows in tables]
    assert "<svg" not in markdown and len(markdown) < 60_000
    assert all(len(section.strip().splitlines()) > 1 for section in markdown.split("\n## "))


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.text(max_size=30), st.text(alphabet="|*_`[]()<>#-+.!&~$\\\n1a @", max_size=20)))
def test_no_text_is_taken_for_markdown(text):
    shown = plain(text)
    table = Table(
        title="t", columns=["a", "b"], rows=[[Cell(shown, reason=shown), Cell("x", link=f"https://x/{text}")]]
    )
    blocks = [table, Bullets([shown or "x"]), Paragraph(shown or "x")]
    page = markdown_page(Document(title="T", headline=["H"], summary="S", sections=[Section("A", blocks)]))
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(page)
    body = re.sub("<table>", '<table aria-label="t">', rendered)
    read = read_page(body)
    [header, row] = read.tables["t"]
    assert [told(cell) for cell in header] == ["a", "b"]
    assert told(row[0]).removesuffix("1").strip() == told(shown) and told(row[1]) == "x"
    assert told(read.text).count(told(shown) or "x") >= 3 + bool(shown)
    names = [tag for tag, _ in read.tags]
    assert set(names) <= {
        "h1",
        "h2",
        "p",
        "strong",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "ul",
        "ol",
        "li",
        "a",
        "sup",
    }
    assert names.count("a") == 1


def test_results_are_read_again_whichever_they_are(evaluation, tmp_path):
    (tmp_path / "results.json").write_text(evaluation.model_dump_json())
    again = read_results(tmp_path)
    assert type(again) is type(evaluation) and again == evaluation


@pytest.mark.parametrize(
    "found", [None, "", "{}", "[]", '{"schema_version": "protector.evaluation.detector/9"}', "\xff"]
)
def test_what_is_no_result_is_said_in_one_sentence(found, tmp_path):
    if found is not None:
        (tmp_path / "results.json").write_text(found, encoding="latin-1")
    with pytest.raises(ConfigurationError, match=re.escape(str(tmp_path / "results.json"))) as caught:
        read_results(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_command_renders_again(evaluation, tmp_path):
    (tmp_path / "results.json").write_text(evaluation.model_dump_json())
    (tmp_path / "report.html").write_text("old")
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert result.output.split() == ["written:", f"{tmp_path}/report.html", "written:", f"{tmp_path}/report.md"]
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(("module", "extra"), [("jinja2", "evaluate"), ("matplotlib", "evaluate")])
def test_a_missing_extra_is_named_before_anything_is_written(module, extra, monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == module else find(name, *rest))
    for make in (require_report_extras, lambda: write_reports(defense(), tmp_path)):
        with pytest.raises(MissingExtraError, match=rf"protector-guardrails\[{extra}\]"):
            make()
    assert list(tmp_path.iterdir()) == []


def test_nothing_heavy_is_loaded_before_a_report_is_made():
    code = (
        "import sys, protector_guardrails.evaluation.report, protector_guardrails.commands.report;"
        "assert not {'matplotlib', 'jinja2', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_window_is_asked_for(evaluation, tmp_path):
    """pyplot would keep every figure, and look for a screen."""
    write_reports(evaluation, tmp_path)
    assert "matplotlib.pyplot" not in sys.modules
