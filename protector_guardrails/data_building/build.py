"""Building a data set: questions, both answers to each, the check, and the files."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from protector_guardrails.data_building.answers import LeftOut, ask_answers, pair_up, without_harm
from protector_guardrails.data_building.card import data_card
from protector_guardrails.data_building.questions import Collected, collect_questions
from protector_guardrails.data_building.requests import Phase, Requests, load_writer
from protector_guardrails.data_building.rows import PairRow, exchanges_of
from protector_guardrails.data_building.scenarios import SCENARIOS, Scenario
from protector_guardrails.data_building.writing import write_private, write_rows
from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.specs import load_detector

REQUESTS, PAIRS, EXCHANGES = "requests.jsonl", "pairs.jsonl", "exchanges.jsonl"
LEFT_OUT, CARD = "left_out.jsonl", "data_card.md"


class BuildConfig(BaseModel):
    """What is built.

    Attributes:
        model: Who writes, as a spec; see :func:`~.evaluation.defense.mllms.load_mllm`.
        output: Folder of the data set; its name is the rows' ``source``.
        license: Under which the rows may be used; the terms of the models decide.
        rejected_model: Who answers the bare questions for the harmful side, as a spec; None: ``model`` writes mild
            stand-ins.
        detector: What checks the harmless answers, as a spec.
        scenarios: What the questions are about.
        questions_per_scenario: How many questions each scenario should have.
        limit: Questions in all, spread over the scenarios; None for no limit.
        seed: Of who asks in which batch of questions.
        concurrency: Prompts asked at a time.
        rate_limit_per_minute: Prompts asked in a minute at most; None for no limit.
        timeout_s: How long one attempt may take, in seconds.
        backoff_s: Pause before a failed attempt is repeated, in seconds; each further pause is twice as long.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    model: str = Field(min_length=1)
    output: Path
    license: str = Field(min_length=1)
    rejected_model: str | None = None
    detector: str = "embedded"
    scenarios: tuple[Scenario, ...] = Field(default=SCENARIOS, min_length=1)
    questions_per_scenario: int = Field(default=100, ge=1)
    limit: int | None = Field(default=None, ge=1)
    seed: int = 13
    concurrency: int = Field(default=4, ge=1)
    rate_limit_per_minute: float | None = Field(default=None, gt=0)
    timeout_s: float = Field(default=120, gt=0)
    backoff_s: float = Field(default=1, ge=0)


@dataclass(frozen=True, slots=True)
class Built:
    """What a build came to.

    Attributes:
        source: Name of the data set.
        pairs: The rows.
        left_out: What was put aside.
        collected: The questions, and what was wrong with replies.
        requests: What the models were asked.
        model: Name of the model that wrote.
        harmful_model: Name of the model that wrote the harmful answers.
        detector: Name and version of what checked the harmless ones.
    """

    source: str
    pairs: list[PairRow]
    left_out: list[LeftOut]
    collected: Collected
    requests: Requests
    model: str
    harmful_model: str
    detector: str

    @property
    def reasons(self) -> Counter[str]:
        """Reason to the number of questions that were put aside for it."""
        return Counter(entry.reason for entry in self.left_out)


def build_data_set(
    config: BuildConfig, *, resume: bool = False, phase: Phase = lambda _what, _steps: lambda _done: None
) -> Built:
    """Build a data set and write it.

    What the models say is kept in ``requests.jsonl`` at once. The other files are written at
    the end, each as a whole.

    Args:
        config: What is built.
        resume: Whether to take over what models said in an earlier run into the same folder. Settings may differ:
            a reply is taken over where the same model was asked the same.
        phase: Shows how far it is.

    Raises:
        ConfigurationError: If the folder holds a build and ``resume`` is not set, a spec or model cannot be used, or
            no scenario gave a question. What was said until then is kept.
        MissingExtraError: If a package for a model is missing.

    Example:
        >>> config = BuildConfig(model="openai:gpt-4o-mini", output="data", license="see its terms")  # doctest: +SKIP
        >>> len(build_data_set(config).pairs)  # doctest: +SKIP
        1274
    """
    writer = load_writer(config.model)
    rejecting = None if config.rejected_model is None else load_writer(config.rejected_model)
    detector = load_detector(config.detector).detector
    source = config.output.resolve().name or "built"
    requests = _requests(config, resume=resume, phase=phase)
    collected = collect_questions(
        config.scenarios,
        lambda prompts: requests.ask(writer, prompts, what="questions"),
        per_scenario=config.questions_per_scenario,
        seed=config.seed,
        limit=config.limit,
    )
    if not collected.questions:
        wrong = collected.unusable + requests.failures
        told = "; ".join(f"{reason} ({count})" for reason, count in sorted(wrong.items()))
        raise ConfigurationError(f"no scenario gave a question: {told}")
    replies = ask_answers(collected.questions, requests, writer=writer, rejecting=rejecting)
    pairs, unpaired = pair_up(collected.questions, replies, source=source, licence=config.license)
    pairs, unsafe = without_harm(pairs, detector, judged=phase("judged", len(pairs)))
    repeated = [LeftOut(question.text, question.scenario.name, reason) for question, reason in collected.repeated]
    built = Built(
        source=source,
        pairs=pairs,
        left_out=[*repeated, *unpaired, *unsafe],
        collected=collected,
        requests=requests,
        model=replies.model,
        harmful_model=replies.harmful_model,
        detector=detector.name,
    )
    _write(built, config)
    return built


def _requests(config: BuildConfig, *, resume: bool, phase: Phase) -> Requests:
    folder = config.output
    if not resume and any((folder / name).exists() for name in (REQUESTS, PAIRS, EXCHANGES, LEFT_OUT, CARD)):
        raise ConfigurationError(f"{folder} holds a build already: go on with it (--resume), or name another folder")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Requests(
        folder / REQUESTS,
        concurrency=config.concurrency,
        rate_limit_per_minute=config.rate_limit_per_minute,
        timeout_s=config.timeout_s,
        backoff_s=config.backoff_s,
        phase=phase,
    )


def _write(built: Built, config: BuildConfig) -> None:
    folder = config.output
    write_rows(folder / PAIRS, (pair.model_dump(mode="json") for pair in built.pairs))
    exchanges = (exchange for pair in built.pairs for exchange in exchanges_of(pair))
    write_rows(folder / EXCHANGES, (exchange.model_dump(mode="json", exclude_none=True) for exchange in exchanges))
    write_rows(folder / LEFT_OUT, map(asdict, built.left_out))
    write_private(folder / CARD, data_card(built, config))
