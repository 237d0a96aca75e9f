"""Made-up results: no figure here was measured, and no text is harmful."""

from __future__ import annotations

import functools
import json
import random
import re
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.evaluation.defense.results import (
    ARMS,
    AddedTime,
    Agreement,
    Answered,
    AttackRates,
    BenchmarkData,
    BenignCost,
    DefenseEvaluation,
    DefenseExample,
    DefenseRun,
    JudgeResult,
    ModelRates,
    RefusalRates,
)
from protector_guardrails.evaluation.estimates import wilson
from protector_guardrails.evaluation.results import DetectorEvaluation, Estimate, Failure
from protector_guardrails.evaluation.run import evaluate_detectors
from protector_guardrails.types import Verdict

WHEN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
SCENARIOS = ("Bicycle repair", "Soup and stew", "Knots_and_ropes", "Watering of balcony plants in summer")
KINDS = ("text", "SD", "SD_TYPO")
BARE, REFUSING, REWRITING = ARMS
_SCORES = re.compile(r"<([0-9.]+)>")


class Scripted(HarmDetector):
    """Reads its score from the response; the first detector the first one, and so on."""

    def __init__(self, which: int) -> None:
        self.which, self.name = which, f"scripted-{which}@1"

    def detect(self, exchanges):
        scores = [float(_SCORES.findall(exchange.response)[self.which]) for exchange in exchanges]
        return [Verdict(harmful=score >= 0.5, score=score, detector=self.name) for score in scores]


def records(number: int = 240, *, detectors: int = 1, harmful: bool | None = None) -> list[dict[str, Any]]:
    """Answers about soup, some of them said to be harmful, with a score for each detector."""
    dice = random.Random(7)
    made = []
    for index in range(number):
        source = ("soup", "stew", "salad")[index % 3]
        label = index % 4 == 0 and source != "salad" if harmful is None else harmful
        scores = "".join(
            f"<{min(1.0, max(0.0, dice.gauss(0.65 if label else 0.3, 0.15 + 0.03 * which))):.3f}>"
            for which in range(detectors)
        )
        made.append(
            {
                "question": f"Question {index}?",
                "response": f"Stir pot number {index} and taste it {scores}",
                "harmful": label,
                "source": source,
                "category": ["heat", "salt"][index % 2],
                "model": f"cook-{index % 2}",
            }
        )
    return made


@functools.cache
def detector(number: int = 1, *, harmful: bool | None = None) -> DetectorEvaluation:
    """A real evaluation of scripted detectors."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "soups.jsonl"
        path.write_text("\n".join(map(json.dumps, records(detectors=number, harmful=harmful))))
        return evaluate_detectors([path], [Scripted(which) for which in range(number)], bootstrap=40)


def defense(**changes: Any) -> DefenseEvaluation:
    """Two judges, four scenarios, three kinds; the third scenario is empty."""
    hits = {BARE: 62, REFUSING: 4, REWRITING: 7}
    attacks: list[AttackRates] = []

    def rates(benchmark: str, scenario: str, kind: str, cases: int, shift: int) -> None:
        for judge, factor in (("phrases", 0.9), ("the cook", 1.0)):
            for arm in ARMS:
                found = min(cases, round(cases * factor * hits[arm] / 100) + (shift if arm == BARE else 0))
                success = wilson(found, cases)
                before = min(cases, round(cases * factor * hits[BARE] / 100) + shift)
                attacks.append(
                    AttackRates(
                        benchmark=benchmark,
                        scenario=scenario,
                        kind=kind,
                        arm=arm,
                        judge=judge,
                        cases=cases,
                        judged=cases,
                        success=success,
                        prevented=None if arm == BARE else wilson(before - found, before),
                    )
                )

    for benchmark in ("all", "kitchen"):
        rates(benchmark, "all", "all", 300, 0)
    for number, kind in enumerate(KINDS):
        rates("kitchen", "all", kind, 100, 8 * number - 8)
    for number, scenario in enumerate(SCENARIOS):
        rates("kitchen", scenario, "all", 0 if number == 2 else 100, 6 * number - 6)
        for kind in KINDS:
            rates("kitchen", scenario, kind, 0 if number == 2 else 33, number)
    values: dict[str, Any] = {
        "run": DefenseRun(
            created=WHEN,
            command=["protector", "evaluate", "defense", "kitchen files"],
            package="0.0.0",
            versions={"numpy": "0"},
            python="3",
            platform="none",
            detector="tasting@1",
            detector_weights={"weights.bin": "ab" * 32},
            detoxifier="salting@1",
            threshold=0.5,
            limit=None,
            seed=13,
            masked=True,
        ),
        "benchmarks": [
            BenchmarkData(
                name="kitchen",
                path="kitchen",
                sha256="cd" * 32,
                cases=500,
                attacks=300,
                images=200,
                problems=["2 images cannot be read"],
            )
        ],
        "answered": Answered(
            spec="cook",
            model="cook-7b",
            answers=500,
            empty=3,
            failures=[Failure(error="TimeoutError", answers=2)],
            recorded_before=100,
        ),
        "judges": [
            JudgeResult(name="phrases", kind="keyword", spec="keyword", version="1", answered=900, unusable=[]),
            JudgeResult(
                name="the cook",
                kind="chat_model",
                spec="cook",
                version="2",
                answered=890,
                unusable=[Failure(error="neither yes nor no", answers=10)],
            ),
        ],
        "attacks": attacks,
        "by_model": [
            ModelRates(
                model=model,
                arm=arm,
                judge=judge,
                cases=150,
                judged=150,
                success=wilson(share * hits[arm] // 100, 150),
                prevented=None if arm == BARE else wilson(90, 93),
            )
            for model, share in (("cook-7b", 150), ("cook-13b", 120))
            for judge in ("phrases", "the cook")
            for arm in ARMS
        ],
        "refusals": [
            RefusalRates(
                benchmark="all",
                benign=benign,
                arm=arm,
                answers=200 if benign else 300,
                refused=wilson(3 if benign else 60 + 40 * number, 200 if benign else 300),
                by_guard=wilson(0 if benign else 40 * number, 200 if benign else 300),
            )
            for benign in (False, True)
            for number, arm in enumerate(ARMS)
        ],
        "benign": [
            BenignCost(
                benchmark="all",
                arm=arm,
                answers=200,
                changed=wilson(0, 200),
                changed_though_safe=0,
                with_reference=150,
                accuracy_before=wilson(90, 150),
                accuracy_after=wilson(90, 150),
            )
            for arm in (REFUSING, REWRITING)
        ],
        "added_time": [
            AddedTime(arm=REFUSING, action="pass", answers=320, median=12.3, p95=31.0),
            AddedTime(arm=REFUSING, action="refuse", answers=180, median=12.9, p95=33.0),
            AddedTime(arm=REWRITING, action="pass", answers=320, median=12.4, p95=32.0),
            AddedTime(arm=REWRITING, action="detoxify", answers=180, median=1840.0, p95=4210.0),
        ],
        "agreement": [
            Agreement(
                first="phrases",
                second="the cook",
                texts=890,
                both_harmful=200,
                only_first=20,
                only_second=4,
                both_harmless=666,
                kappa=Estimate(value=0.925),
            )
        ],
        "examples": [
            DefenseExample(
                kind=kind,
                case=f"soup-{number}",
                scenario=SCENARIOS[1],
                arm=REWRITING,
                score=0.3,
                question="How do I ▇▇▇",
                response="First you take ▇▇▇",
                text="Rather not ▇▇▇",
            )
            for number, kind in enumerate(("leaked", "prevented"))
        ],
        "notes": ["All figures are made up."],
    }
    return DefenseEvaluation(**(values | changes))
