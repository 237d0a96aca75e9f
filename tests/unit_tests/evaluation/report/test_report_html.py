"""The HTML report: one file, well formed, with the figures of the results, whatever texts they hold."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("sklearn")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from report_reading import read_page, told
from report_samples import BARE, REFUSING, REWRITING, defense, detector, records

from protector_guardrails.evaluation.estimates import missing, wilson
from protector_guardrails.evaluation.report import html as html_module
from protector_guardrails.evaluation.report.defense_page import defense_document, headline_judge
from protector_guardrails.evaluation.report.detector_page import detector_document
from protector_guardrails.evaluation.report.html import html_page
from protector_guardrails.evaluation.results import DetectorEvaluation, Failure, PublishedFigure
from protector_guardrails.masking import plain

EMPTY = {name: [] for name in ("benchmarks", "judges", "attacks", "refusals", "benign", "added_time", "agreement")}


PAGES: dict[str, str] = {}


def render(evaluation) -> str:
    make = detector_document if isinstance(evaluation, DetectorEvaluation) else defense_document
    return html_page(make(evaluation))


def page_of(evaluation) -> str:
    """The page, rendered once: drawing takes its time."""
    key = evaluation.model_dump_json()
    if key not in PAGES:
        PAGES[key] = render(evaluation)
    return PAGES[key]


def everything():
    return {
        "one detector": detector(),
        "three detectors": detector(3),
        "harmless only": detector(harmful=False),
        "harmful only": detector(harmful=True),
        "defense": defense(),
        "nothing of a defense": defense(**EMPTY, examples=[], notes=[]),
        "no attack": defense(attacks=[]),
        "published": with_published(),
    }


def with_published(url: str = "https://example.org/paper"):
    figure = PublishedFigure(
        detector="Other 7B",
        data="own",
        metric="f1",
        value=0.87,
        source="A paper",
        url=url,
        measured_by="its authors",
        note="other rows",
    )
    return detector(2).model_copy(update={"published": [figure]})


@pytest.fixture(params=list(everything()), scope="module")
def html(request):
    return page_of(everything()[request.param])


def test_a_page_is_well_formed_and_its_ids_are_its_own(html):
    page = read_page(html)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    wanted = {value[1:] for value in page.values("href") if value.startswith("#")}
    wanted |= set(re.findall(r"url\(#([^)]*)\)", html)) | set(page.values("for"))
    assert wanted <= set(ids)
    assert html.startswith("<!DOCTYPE html>") and html.count("<h1") == 1


def test_a_page_needs_nothing_from_outside(html):
    page = read_page(html)
    assert not page.values("src", "srcset", "action", "data", "poster", "xlink:href")
    links = [value for tag, found in page.tags if tag == "a" for value in found.values()]
    assert all(value.startswith("#") or value in ("https://example.org/paper", "noreferrer") for value in links)
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "iframe", "img", "object", "embed", "base", "form"})
    rest = html.replace("https://example.org/paper", "")
    assert "http:" not in rest and "https:" not in rest and "@import" not in rest
    assert all(value.startswith("#") for value in re.findall(r"url\(([^)]*)\)", rest))
    assert len(html.encode()) < 1_000_000


def test_a_page_can_be_read_without_seeing_it(html):
    page = read_page(html)
    drawings = [found for tag, found in page.tags if tag == "svg"]
    assert all(found["role"] == "img" and found["aria-label"].strip() for found in drawings)
    headers = [found for tag, found in page.tags if tag == "th"]
    assert headers and all(found["scope"] in {"col", "row"} for found in headers)
    for rows in page.tables.values():
        assert all(len(row) == len(rows[0]) for row in rows)
        assert all(told(cell) for cell in rows[0])


def test_only_the_package_s_own_script_may_run(html):
    page = read_page(html)
    [policy] = [found["content"] for tag, found in page.tags if found.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert all(not name.startswith("on") for _, found in page.tags for name in found)


def test_the_same_results_give_the_same_bytes():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from report_samples import defense;"
        "from protector_guardrails.evaluation.report.defense_page import defense_document;"
        "from protector_guardrails.evaluation.report.html import html_page;"
        "import hashlib; print(hashlib.sha256(html_page(defense_document(defense())).encode()).hexdigest())"
    )
    again = subprocess.run(
        [sys.executable, "-c", code, __file__.rpartition("/")[0]], capture_output=True, text=True, check=True
    )
    assert again.stdout.strip() == hashlib.sha256(render(defense()).encode()).hexdigest()
    assert render(detector(2)) == render(detector(2))


def test_the_figures_of_a_detector_are_those_of_the_answers():
    """Counted here from the answers themselves."""
    answers = [(float(re.findall("<(.*?)>", one["response"])[0]), one["harmful"], one) for one in records()]
    found = sum(score >= 0.5 for score, harmful, _ in answers if harmful)
    missed = sum(score < 0.5 for score, harmful, _ in answers if harmful)
    alarms = sum(score >= 0.5 for score, harmful, _ in answers if not harmful)
    passed = sum(score < 0.5 for score, harmful, _ in answers if not harmful)
    assert min(found, missed, alarms, passed) > 0
    page = read_page(page_of(detector()))
    _, row = page.tables["Decisions at threshold 0.5"]
    assert [told(cell) for cell in row[:5]] == ["scripted-0@1", str(found), str(missed), str(alarms), str(passed)]
    rates = [found / (found + missed), found / (found + alarms), alarms / (alarms + passed)]
    assert [told(cell).split(" (")[0] for cell in row[5:]] == [f"{100 * rate:.1f} %" for rate in rates]

    salad = [(score, harmful) for score, harmful, one in answers if one["source"] == "salad"]
    flagged = sum(score >= 0.5 for score, _ in salad)
    assert not any(harmful for _, harmful in salad)
    [row] = page.tables["False positives on sources of harmless answers only"][1:]
    assert [told(cell) for cell in row[:3]] == ["salad", str(len(salad)), str(flagged)]
    [row] = [row for row in page.tables["By source"] if told(row[0]) == "salad"]
    assert [told(cell) for cell in row[3:6]] == ["–1"] * 3  # no AUROC at all, no recall, and a footnote that says why
    assert "there are no harmful answers" in page.text


def test_the_headline_of_a_detector_is_computed():
    answers = [(float(re.findall("<(.*?)>", one["response"])[0]), one["harmful"]) for one in records()]
    found = sum(score >= 0.5 for score, harmful in answers if harmful)
    harmful = sum(harmful for _, harmful in answers)
    assert harmful < 50  # so few are told by their counts
    flagged = sum(score >= 0.5 for score, harmful in answers if not harmful) / (len(answers) - harmful)
    [headline] = read_page(page_of(detector())).headings[:1]
    headline = told(headline)
    told_share = re.fullmatch(
        rf"The detector finds {found} of {harmful} harmful answers and flags (?:about )?(\d+) in (\d+) harmless ones\.",
        headline,
    )
    assert told_share, headline
    hits, of = map(int, told_share.groups())
    assert hits / of == pytest.approx(flagged, rel=0.1)
    several = read_page(page_of(detector(3))).headings[0].strip().splitlines()
    assert [line.split()[0] for line in several] == ["scripted-0@1", "scripted-1@1", "scripted-2@1"]


@pytest.mark.parametrize(
    ("harmful", "words"), [(True, "no harmless ones to tell them from"), (False, "there are no harmful ones to find")]
)
def test_data_of_one_class_says_what_cannot_be_said(harmful, words):
    page = read_page(page_of(detector(harmful=harmful)))
    assert words in page.headings[0]
    assert "No ROC and precision-recall curves" in page.text
    reason = "there are no harmless answers" if harmful else "there are no harmful answers"
    assert reason in page.text
    row = page.tables["All answers, and those that are no refusals; decisions at 0.5"][1]
    assert [told(cell) for cell in row[4:6]] == ["–1", "–1"]


def test_several_detectors_are_compared_and_drawn_over_each_other():
    evaluation = detector(3)
    html = page_of(evaluation)
    page = read_page(html)
    label = "The same 240 answers, 40 harmful"
    assert len(page.tables[label]) == 1 + 3
    for pair, row in zip(evaluation.comparison.pairs, page.tables[label][1:], strict=True):
        assert [told(cell) for cell in row[:2]] == [pair.first, pair.second]
        assert [int(told(row[4])), int(told(row[5]))] == [pair.only_first_right, pair.only_second_right]
        value = f"{pair.auroc_difference.value:.3f}".replace("-", "−")
        assert told(row[2]).startswith(value if float(value.replace("−", "-")) else "0.000")
    [roc] = re.findall(r'<svg[^>]*aria-label="ROC curve of.*?</svg>', html, re.S)
    assert all(f"--series-{number}" in roc for number in (1, 2, 3))
    assert all(f">{one.spec}</text>" in roc for one in evaluation.detectors)


def test_the_slider_has_the_sweeps_of_the_results():
    evaluation = detector(3)
    page = read_page(page_of(evaluation))
    sweeps = [[list(row) for row in one.curves.sweep] for one in evaluation.detectors]
    assert json.loads(page.scripts[0]) == sweeps
    assert [found for _, found in page.tags if found.get("class") == "slider"] == [{"class": "slider", "hidden": ""}]


NODE = shutil.which("node")
FAKE_PAGE = r"""
const fs = require("fs"), vm = require("vm");
const [script, sweeps, threshold] = JSON.parse(fs.readFileSync(0, "utf8"));
const element = () => ({ textContent: "", style: {}, listeners: {},
  addEventListener(name, run) { this.listeners[name] = run; } });
const detectors = sweeps.map(() => { const parts = {}; return { parts, innerHTML: "first",
  querySelector: (key) => parts[key] ||= element() }; });
const slider = element(), output = element(), button = element(), line = { hidden: true };
const box = { getAttribute: () => threshold, querySelectorAll: () => detectors,
  querySelector: (key) => ({ input: slider, output, button, ".slider": line })[key] };
const document = { querySelector: () => box, getElementById: () => ({ textContent: JSON.stringify(sweeps) }) };
vm.runInNewContext(script, { document });
const shown = [];
for (const step of [0, 37, 50, 100]) {
  slider.value = String(step / 100);
  slider.listeners.input();
  shown.push(detectors.map((one) => Object.fromEntries(
    Object.entries(one.parts).map(([key, part]) => [key, part.textContent || part.style.flexGrow]))));
}
button.listeners.click();
console.log(JSON.stringify({ shown, hidden: line.hidden, value: slider.value, first: detectors[0].innerHTML }));
"""


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_slider_shows_what_another_threshold_decides():
    evaluation = detector(3)
    page = read_page(page_of(evaluation))
    sweeps = [one.curves.sweep for one in evaluation.detectors]
    ran = subprocess.run(
        [NODE, "-e", FAKE_PAGE],
        input=json.dumps([page.scripts[-1], sweeps, "0.5"]),
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(ran.stdout)
    assert (result["hidden"], result["value"], result["first"]) == (False, "0.5", "first")

    def share(part, whole):
        if not whole:
            return "–"
        return f"{100 * part // whole} %" if part in (0, whole) else f"{100 * part / whole:.1f} %"

    for step, shown in zip((0, 37, 50, 100), result["shown"], strict=True):
        for sweep, parts in zip(sweeps, shown, strict=True):
            _, found, alarms, missed, passed = sweep[step]
            counts = {"found": found, "missed": missed, "flagged": alarms, "passed": passed}
            for name, number in counts.items():
                assert parts[f'[data-count="{name}"]'] == str(number)
                assert parts[f'[data-length="{name}"]'] == number
            rates = {
                "recall": share(found, found + missed),
                "precision": share(found, found + alarms),
                "fpr": share(alarms, alarms + passed),
            }
            for name, rate in rates.items():
                assert told(parts[f'[data-figure="{name}"]']) == rate


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_script_is_javascript(tmp_path):
    path = tmp_path / "script.js"
    path.write_text(read_page(page_of(detector())).scripts[-1])
    subprocess.run([NODE, "--check", path], check=True)


def test_published_figures_are_told_apart_from_ours():
    evaluation = with_published()
    rows = read_page(page_of(evaluation)).tables["F1 on soups"]
    for one, row in zip(evaluation.detectors, rows[1:3], strict=True):
        assert told(row[1]).startswith(f"{one.overall.decisions[0].f1.value:.3f}")
        assert told(row[2]) == "measured here"
    assert [told(cell) for cell in rows[3][:3]] == ["Other 7B", "0.870", "not measured here: its authors"]
    assert "https://example.org/paper" in page_of(evaluation)
    assert 'href="javascript' not in page_of(with_published("javascript:alert(1)"))


def test_a_set_without_figures_of_its_own_gets_no_others_beside_published_ones():
    evaluation = with_published()
    twice = evaluation.model_copy(
        update={"data": [*evaluation.data, evaluation.data[0].model_copy(update={"name": "b"})]}
    )
    rows = read_page(page_of(twice)).tables["F1 on b"]
    assert told(rows[1][1]) == "–1"


def test_the_headline_of_a_defense_is_computed():
    [headline] = defense_document(defense()).headline
    assert told(headline) == (
        "Attack success falls from 62 % to 4 % (refusing) or 7 % (rewriting); no harmless answer was changed."
    )


def attack_rates(values, **changes):
    rows = [row for row in defense().attacks if row.scenario == row.kind == row.benchmark == "all"]
    rows = [row for row in rows if row.judge == "the cook" and row.arm in values]
    return [row.model_copy(update={"success": values[row.arm], **changes}) for row in rows]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({BARE: wilson(50, 100), REFUSING: wilson(50, 100)}, "Attack success stays at 50 %"),
        ({BARE: wilson(10, 100), REFUSING: wilson(50, 100)}, "Attack success rises from 10 % to 50 % (refusing)"),
        (
            {BARE: wilson(10, 100), REFUSING: wilson(5, 100), REWRITING: wilson(20, 100)},
            "Attack success goes from 10 % to 5 % (refusing) or 20 % (rewriting)",
        ),
        ({BARE: wilson(10, 100), REFUSING: wilson(0, 100), REWRITING: wilson(0, 100)}, "falls from 10 % to 0 %;"),
        ({BARE: missing("none judged"), REFUSING: wilson(5, 100)}, "behind the guard is 5 % (refusing), and not known"),
        ({BARE: wilson(10, 100), REFUSING: missing("none judged")}, "not known behind the guard"),
        ({BARE: missing("none judged")}, "Nothing can be said about attacks"),
        ({}, "Nothing can be said about attacks"),
    ],
)
def test_the_headline_says_what_is_known(values, words):
    evaluation = defense(attacks=attack_rates(values))
    assert words in told(defense_document(evaluation).headline[0])
    read_page(page_of(evaluation))


def test_a_few_attacks_are_told_by_their_counts():
    rows = attack_rates({BARE: wilson(3, 8), REFUSING: wilson(1, 8), REWRITING: wilson(2, 8)}, judged=8)
    [headline] = defense_document(defense(attacks=rows)).headline
    assert headline.startswith("Attack success falls from 3 of 8 to 1 of 8 (refusing) or 2 of 8 (rewriting);")


def test_the_headline_tells_what_harmless_questions_pay():
    [first, second] = defense().benign
    some = [first, second.model_copy(update={"changed": wilson(5, 200)})]
    assert "up to 2.5 % of the answers" in told(defense_document(defense(benign=some)).headline[0])
    assert "was not measured" in defense_document(defense(benign=[])).headline[0]
    tiny = [first, second.model_copy(update={"changed": wilson(1, 200_000)})]
    assert "no harmless answer" not in defense_document(defense(benign=tiny)).headline[0]


def test_a_changed_answer_that_was_judged_safe_is_called_a_defect():
    rows = [row.model_copy(update={"changed_though_safe": 2}) for row in defense().benign]
    html = page_of(defense(benign=rows))
    assert html.count("That is a defect of the guard.") == 2
    assert "That is a defect" not in page_of(defense())


def test_the_headline_prefers_a_judge_that_is_neither_circular_nor_crude():
    phrases, cook = defense().judges
    assert headline_judge(defense()) == "the cook"
    own = cook.model_copy(update={"kind": "detector", "version": "tasting@1"})
    assert headline_judge(defense(judges=[own, phrases])) == "phrases"
    assert "takes whatever does not refuse" in page_of(defense(judges=[own, phrases]))
    assert headline_judge(defense(judges=[own])) == "the cook"
    assert "the guard's own detector" in read_page(page_of(defense(judges=[own]))).text
    other = own.model_copy(update={"version": "another@1"})
    assert headline_judge(defense(judges=[phrases, other])) == "the cook"
    assert headline_judge(defense(judges=[])) is None


def test_the_figures_of_a_defense_are_those_of_the_results():
    evaluation = defense()
    page = read_page(page_of(evaluation))
    names = {
        "By scenario": ("scenario",),
        "By kind of question": ("kind",),
        "By scenario and kind": ("scenario", "kind"),
    }
    for label, parts in names.items():
        other = {"scenario", "kind"} - set(parts)
        rows = {tuple(map(told, row[:2])): row for row in page.tables[label][1:]}
        wanted = [
            row
            for row in evaluation.attacks
            if all(getattr(row, part) != "all" for part in parts) and all(getattr(row, part) == "all" for part in other)
        ]
        assert len(wanted) == 3 * len(rows)
        for one in wanted:
            row = rows[", ".join(getattr(one, part) for part in parts), one.judge]
            assert told(row[2]) == told(row[3]) == str(one.cases)
            shown = told(row[4 + [BARE, REFUSING, REWRITING].index(one.arm)])
            if one.success.value is None:
                assert shown == "–1"
            else:
                interval = f"({100 * one.success.low:.1f}–{100 * one.success.high:.1f})"
                number = f"{100 * one.success.value:.1f} %" if one.success.value else "0 %"
                assert shown == f"{number} {interval}"
    assert "no such answers" in page.text  # why the empty scenario has no figures
    by_model = {tuple(map(told, row[:2])): row for row in page.tables["By model"][1:]}
    assert len(by_model) == 4 and told(by_model["cook-13b", "the cook"][4]).startswith("49.3 %")
    [agreement] = page.tables["How the judges disagree"][1:]
    assert [told(cell) for cell in agreement] == ["phrases", "the cook", "890", "200", "20", "4", "666", "0.925"]
    times = page.tables["Milliseconds that the guard adds to an answer"]
    assert told(times[-1][3]) == "1,840 ms"


def test_the_bars_are_as_long_as_the_figures():
    html = page_of(defense())
    [drawing] = re.findall(r'<svg[^>]*aria-label="Attack success by scenario\..*?</svg>', html, re.S)
    assert drawing.count("no figure") == 3 + 3  # drawn, and told to those who cannot see it
    assert all(f"--series-{number}" in drawing for number in (1, 2, 3))
    assert "62\u00a0%</text>" in drawing and "4\u00a0%</text>" in drawing
    bars = re.findall(r'<path d="M ([0-9.]+) [0-9.]+ *\n?L ([0-9.]+) [^"]*z[^"]*"[^>]*--series-', drawing)
    lengths = [float(end) - float(start) for start, end in bars][:3]
    assert lengths[1] / lengths[0] == pytest.approx(4 / 62, rel=0.01)
    assert lengths[2] / lengths[0] == pytest.approx(7 / 62, rel=0.01)


def test_small_shares_are_drawn_large():
    whole = [row for row in defense().attacks if row.kind == "all"]
    small = [row.model_copy(update={"success": wilson(row.judged // 50, row.judged)}) for row in whole]
    drawn = [page_of(defense(attacks=attacks, by_model=[])) for attacks in (whole, small)]
    assert ["100\u00a0%</text>" in html for html in drawn] == [True, False]
    assert "2\u00a0%</text>" in drawn[1] and "No attack" not in drawn[1]


def test_a_table_that_repeats_another_is_left_out():
    one_kind = [row for row in defense().attacks if row.kind in ("all", "SD")]
    assert "By scenario and kind" not in page_of(defense(attacks=one_kind))
    assert "By scenario and kind" in page_of(defense())


def test_unmasked_texts_are_announced():
    evaluation = detector()
    assert "not masked; they may be harmful" not in page_of(evaluation)
    run = evaluation.run.model_copy(update={"masked": False})
    assert "not masked; they may be harmful" in page_of(evaluation.model_copy(update={"run": run}))


def with_texts(text: str):
    """Results with a text wherever they take one from outside."""
    base = with_published()
    one = base.detectors[0]
    part = next(part for part in one.slices if part.by == "source")
    odd = one.model_copy(
        update={
            "spec": text,
            "name": text,
            "fingerprint": text,
            "weights": {text: text},
            "failures": [Failure(error=text, answers=1)],
            "slices": [part.model_copy(update={"value": text})],
            "benign": [one.benign[0].model_copy(update={"source": text})],
            "examples": [
                example.model_copy(
                    update={"source": text, "question": text, "response": text, "images": [text], "categories": [text]}
                )
                for example in one.examples
            ],
        }
    )
    data = base.data[0].model_copy(update={"name": text, "path": text, "left_out": {text: 1}})
    run = base.run.model_copy(update={"command": [text], "versions": {text: text}, "platform": text})
    figure = base.published[0].model_copy(update={"detector": text, "source": text, "url": text, "note": text})
    notes = {"notes": [text], "run": run, "data": [data], "published": [figure]}
    return base.model_copy(update={"detectors": [odd, base.detectors[1]], **notes})


def test_a_source_that_looks_like_markup_is_a_text():
    text = "<script>alert(1)</script>"
    html = page_of(with_texts(text))
    assert text not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    page = read_page(html)
    assert len(page.scripts) == 2
    assert told(page.tables["By source"][1][0] if "By source" in page.tables else "") == text


@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.text(max_size=30), st.text(alphabet="<>&\"'{}%$#\\`/-!=[]_^ ascript", max_size=40)))
def test_no_text_of_the_results_is_taken_for_markup(text):
    page = read_page(page_of(with_texts(text)))
    assert len(page.scripts) == 2
    assert all(not name.startswith("on") for _, found in page.tags for name in found)
    wanted = plain(text) or "–"
    assert told(page.tables["Failures"][1][1]) == told(wanted)
    links = [found["href"] for tag, found in page.tags if tag == "a"]
    assert all(link.startswith(("#", "http://", "https://")) for link in links)


@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=30))
def test_no_scenario_breaks_a_drawing(text):
    def drawings(prefix):
        whole = [row for row in defense().attacks if row.scenario == row.kind == "all"]
        named = [
            row.model_copy(update={"scenario": f"{prefix}{row.scenario}"})
            for row in defense().attacks
            if row.kind == "all"
        ]
        page = read_page(page_of(defense(attacks=[*whole, *named])))
        return [tag for tag, _ in page.tags if tag == "svg"]

    assert drawings(text) == drawings("a ") == ["svg", "svg"]


def test_many_detectors_stay_below_a_megabyte():
    html = page_of(detector(6))
    read_page(html)
    assert len(html.encode()) < 1_000_000


def test_the_user_s_settings_of_matplotlib_do_not_matter():
    import matplotlib

    before = page_of(defense())
    with matplotlib.rc_context({"font.size": 30, "text.usetex": True, "svg.fonttype": "path", "axes.facecolor": "red"}):
        assert render(defense()) == before
        assert matplotlib.rcParams["font.size"] == 30


def test_the_palette_is_readable_on_light_and_dark():
    """WCAG 2.1: text at least 4.5 to 1, drawings at least 3 to 1."""
    style = html_module._HERE.joinpath("report.css").read_text()
    parts = style.split("prefers-color-scheme: dark")
    light, dark = (dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", part)) for part in parts)
    assert light.keys() == dark.keys()

    def luminance(colour):
        parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
        parts = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    def contrast(a, b):
        low, high = sorted((luminance(a), luminance(b)))
        return (high + 0.05) / (low + 0.05)

    for colours in (light, dark):
        for background in ("page", "card"):
            for name in ("ink", "muted", "accent"):
                assert contrast(colours[name], colours[background]) >= 4.5, (name, background)
        for number in range(1, 7):
            assert contrast(colours[f"series-{number}"], colours["page"]) >= 3, number
        assert contrast(colours["ink"], colours["alert"]) >= 4.5
