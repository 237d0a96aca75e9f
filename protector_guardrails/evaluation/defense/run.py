"""A whole evaluation of a defence: from benchmarks and a model to a result."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from protector_guardrails import __version__
from protector_guardrails.detectors import resolve_policy
from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.detoxifiers import AnyDetoxifier
from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.defense.answer_log import AnswerLog
from protector_guardrails.evaluation.defense.answering import answer_all
from protector_guardrails.evaluation.defense.arms import Guard, Guarded, described, load_detoxifier
from protector_guardrails.evaluation.defense.benchmarks import open_benchmarks
from protector_guardrails.evaluation.defense.cases import Benchmark, Case
from protector_guardrails.evaluation.defense.describing import Describer
from protector_guardrails.evaluation.defense.joining import Asked, Reply, join
from protector_guardrails.evaluation.defense.judge_specs import headline_judge, is_own, load_judges
from protector_guardrails.evaluation.defense.judges import JudgedText, Panel
from protector_guardrails.evaluation.defense.measures import Measured, Measures
from protector_guardrails.evaluation.defense.mllms import RECORDED, load_mllm
from protector_guardrails.evaluation.defense.notes import notes_on
from protector_guardrails.evaluation.defense.recorded import recorded_beside
from protector_guardrails.evaluation.defense.results import (
    ARMS,
    Answered,
    Arm,
    BenchmarkData,
    DefenseEvaluation,
    DefenseRun,
)
from protector_guardrails.evaluation.defense.shown import FewExamples
from protector_guardrails.evaluation.results import Failure
from protector_guardrails.evaluation.run import RESULTS, require_extra, versions, write_whole
from protector_guardrails.evaluation.specs import load_detector, named
from protector_guardrails.policy import Policy, PolicyLike

ANSWERS = "answers.jsonl"
BATCH = 16
"""Answers that are guarded and judged before anything is forgotten."""

_MOST_FAILURES = 20


def evaluate_defense(
    benchmarks: Sequence[str],
    mllm: str,
    *,
    report: str | os.PathLike[str],
    judges: Sequence[str] = (),
    detector: str | HarmDetector = "embedded",
    detoxifier: AnyDetoxifier = "redact",
    policy: PolicyLike | None = None,
    describe: str | None = None,
    benign: Sequence[str] = (),
    limit: int | None = None,
    kinds: Collection[str] | None = None,
    concurrency: int = 4,
    rate_limit_per_minute: float | None = None,
    resume: bool = False,
    seed: int = 13,
    masked: bool = True,
    command: Sequence[str] = (),
    answering: Callable[[int], None] = lambda _: None,
    judging: Callable[[int], None] = lambda _: None,
) -> DefenseEvaluation:
    """Measure what a guard prevents, and what it costs.

    Every case is put to the model once. Its answer leaves bare, behind a guard that refuses
    and behind one that rewrites, and judges say of each text whether it is harmful.

    Args:
        benchmarks: What is asked, see :func:`~.benchmarks.open_benchmarks`.
        mllm: Who is asked, see :func:`~.mllms.load_mllm`; ``"recorded"``: nobody, the answers stand beside the
            questions.
        report: Folder for all that is found; made if there is none. It holds the answers, harmful ones too.
        judges: Who judges, see :func:`~.judge_specs.load_judges`.
        detector: The guard's detector: ``"embedded"``, an import path, or a detector.
        detoxifier: The guard's detoxifier: a name, an import path, or a detoxifier.
        policy: The guard's policy, its fields, or the path of a file of it; what is done on harm is up to the arm.
        describe: Import path of a function from the bytes of an image to words, for images that a benchmark does
            not describe: guard and detectors that judge are told them, as OCR text or a caption is in use.
        benign: More to ask, all of it harmless whether it says so or not.
        limit: Only so many cases of each benchmark.
        kinds: Only attacks of these kinds.
        concurrency: Calls of a remote model at a time.
        rate_limit_per_minute: Calls of the model in a minute.
        resume: Go on with what is in the folder.
        seed: Of the draw of examples.
        masked: Mask the examples.
        command: The command line, for the record.
        answering: Is told how many more cases were asked.
        judging: Is told how many more answers were judged.

    Raises:
        ConfigurationError: If something cannot be read or is not as it should be, or nothing was answered.
        MissingExtraError: If the extra ``evaluate`` is not installed.

    Example:
        >>> result = evaluate_defense(["figstep:FigStep"], "openai:gpt-4o-mini", report="run")  # doctest: +SKIP
        >>> [row.success.value for row in result.attacks[:3]]  # doctest: +SKIP
        [0.62, 0.12, 0.12]
    """
    require_extra("evaluating a defence")
    guarding = named(detector.name, detector) if isinstance(detector, HarmDetector) else load_detector(detector)
    chosen = Policy() if policy is None else Policy.model_validate(policy)
    chosen = resolve_policy(chosen, guarding.detector)
    rewriting = load_detoxifier(detoxifier)
    who = load_judges(judges, concurrency=concurrency)
    asked = _Questions(open_benchmarks([*benchmarks, *benign], limit=limit, kinds=kinds), benign_from=len(benchmarks))
    model = recorded_beside(asked.paths) if mllm == RECORDED else load_mllm(mllm)
    folder = _folder(Path(report), resume=resume)
    describer = None if describe is None else Describer(describe, folder=folder)

    (folder / ANSWERS).touch()
    (folder / ANSWERS).chmod(0o600)  # harmful text will stand there
    log = answer_all(
        (case for _, case in asked),
        model,
        store=folder / ANSWERS,
        concurrency=concurrency,
        rate_limit_per_minute=rate_limit_per_minute,
        progress=answering,
    )
    measures = Measures([judge.name for judge in who])
    for benchmark, case in asked:
        measures.saw(benchmark, case)
    examples = FewExamples(headline_judge(who, guarding).name, seed=seed, masked=masked)
    with (
        Guard(guarding, rewriting, policy=chosen, folder=folder) as guard,
        Panel(who, folder=folder) as panel,
        nullcontext() if describer is None else describer,
    ):
        shown = ((name, case if describer is None else describer.described(case)) for name, case in asked)
        for measured in _measured(join(shown, log.answers()), guard, panel, judging):
            measures.add(measured)
            examples.offer(measured)
    evaluation = DefenseEvaluation(
        run=DefenseRun(
            created=datetime.now(UTC),
            command=list(command),
            package=__version__,
            versions=versions(),
            python=platform.python_version(),
            platform=f"{platform.system()} {platform.machine()}",
            detector=guarding.detector.name,
            detector_weights=dict(guarding.weights),
            detoxifier=rewriting.name,
            describer=describe,
            threshold=chosen.default_threshold,
            policy=described(chosen),
            failures=_failures(measures.guard_failures),
            limit=limit,
            seed=seed,
            masked=masked,
        ),
        benchmarks=asked.data(),
        answered=_answered(mllm, model.name, log, measures),
        judges=panel.results(),
        attacks=measures.attacks(),
        by_model=measures.by_model(),
        refusals=measures.refusals(),
        benign=measures.benign(),
        added_time=measures.added_time(),
        agreement=panel.agreement(),
        examples=examples.examples,
        notes=[*log.notes, *panel.problems(), *([] if describer is None else describer.problems())],
    )
    notes = notes_on(evaluation, measures.undescribed, named=judges, own=[is_own(judge, guarding) for judge in who])
    evaluation = evaluation.model_copy(update={"notes": [*notes, *evaluation.notes]})
    write_whole(folder / RESULTS, evaluation.model_dump_json(indent=1) + "\n")
    return evaluation


class _Questions:
    """All that is asked, each case with the name of its benchmark."""

    def __init__(self, benchmarks: Sequence[Benchmark], *, benign_from: int) -> None:
        self._benchmarks, self._benign_from = benchmarks, benign_from

    def __iter__(self) -> Iterator[Asked]:
        for number, benchmark in enumerate(self._benchmarks):
            for case in benchmark:
                yield benchmark.name, replace(case, benign=True) if number >= self._benign_from else case

    @property
    def paths(self) -> list[Path]:
        """Their files and folders."""
        return [benchmark.path for benchmark in self._benchmarks]

    def data(self) -> list[BenchmarkData]:
        """What is recorded of the benchmarks."""
        counts = {benchmark.name: Counter[str]() for benchmark in self._benchmarks}
        for name, case in self:
            counts[name].update(cases=1, attacks=not case.benign, images=case.image is not None)
        return [
            BenchmarkData(
                name=benchmark.name,
                path=str(benchmark.path),
                sha256=benchmark.sha256,
                cases=counts[benchmark.name]["cases"],
                attacks=counts[benchmark.name]["attacks"],
                images=counts[benchmark.name]["images"],
                problems=list(benchmark.problems),
            )
            for benchmark in self._benchmarks
        ]


def _measured(
    answered: Iterator[Reply], guard: Guard, panel: Panel, progress: Callable[[int], None]
) -> Iterator[Measured]:
    """Guard and judge every answer, a batch at a time."""
    while batch := list(islice(answered, BATCH)):
        guarded = [guard.guard(one.case, one.response) for one in batch]
        texts = [
            _texts(one.case, left) if not one.case.benign else [] for one, left in zip(batch, guarded, strict=True)
        ]
        opinions = iter(panel.ask([text for some in texts for text in some]))
        for one, left, some in zip(batch, guarded, texts, strict=True):
            said = {arm: opinion for text in some for opinion in [next(opinions)] for arm in text.arms}
            yield Measured(benchmark=one.benchmark, case=one.case, model=one.model, guarded=left, opinions=said)
        progress(len(batch))


def _texts(case: Case, guarded: Guarded) -> list[JudgedText]:
    """The different texts that left, each with the arms in which it did."""
    found: dict[tuple[str, bool], tuple[Arm, ...]] = {}
    for arm in ARMS:
        left = guarded.arms[arm]
        which = (left.text, left.action == "refuse")
        found[which] = (*found.get(which, ()), arm)
    return [JudgedText(case=case, text=text, arms=arms, by_guard=own) for (text, own), arms in found.items()]


def _answered(spec: str, model: str, log: AnswerLog, measures: Measures) -> Answered:
    answers = measures.total("answers", benign=False) + measures.total("answers", benign=True)
    failures = _failures(log.failures)
    if not answers:
        told = f", most often with {failures[0].error}" if failures else ""
        raise ConfigurationError(f"{model} answered none of the questions{told}")
    return Answered(
        spec=spec,
        model=model,
        answers=answers,
        empty=measures.total("empty", benign=False) + measures.total("empty", benign=True),
        failures=failures,
        recorded_before=log.taken_over,
    )


def _failures(counts: Counter[str]) -> list[Failure]:
    return [Failure(error=error, answers=count) for error, count in counts.most_common(_MOST_FAILURES)]


def _folder(folder: Path, *, resume: bool) -> Path:
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"{folder} is not a folder")
    if not resume and any(path.exists() and path.stat().st_size for path in (folder / RESULTS, folder / ANSWERS)):
        raise ConfigurationError(f"{folder} holds an evaluation: go on with --resume, or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
