"""The card of a data set: what is in it, who wrote it, and what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from protector_guardrails import __version__
from protector_guardrails.data_building.prompts import PROMPT_VERSION, prompts_sha256
from protector_guardrails.evaluation.refusals import is_refusal

if TYPE_CHECKING:
    from protector_guardrails.data_building.build import BuildConfig, Built

_CARD = """# Data card: {source}

Questions that could do harm, each with a harmful and a harmless answer, written by language models in the manner of
Safe-Harm-10K (arXiv 2401.02906). `pairs.jsonl` holds the pairs, `exchanges.jsonl` both answers of each as labelled
exchanges, `left_out.jsonl` what was put aside, `requests.jsonl` every reply of the models.

{facts}

## Pairs by scenario

{scenarios}

## Left out

{left_out}

## Replies that could not be used

{unusable}

## Requests without a reply

{failures}

## Limits

{harmful_side}

No person has read the rows: labels say what was asked for, checked by a detector's and a pattern's
word. A detector that is trained on them and was itself the check learns nothing against its own mistakes.
Questions are text only; where one speaks of a picture, there is none.
"""

_STAND_INS = (
    "The harmful answers are mild stand-ins: they agree and stay of no use. They teach the form of an answer that "
    "complies, not what it would hold; a detector needs other data beside them."
)
_OTHERS = "The harmful answers are what a model answered to the bare questions; whether each is harmful nobody checked."


def data_card(built: Built, config: BuildConfig) -> str:
    """The card in Markdown; counts and names, no text of a row."""
    pairs = built.pairs
    stand_ins = config.rejected_model is None
    refusing = sum(is_refusal(pair.harmless_response) for pair in pairs)
    facts = {
        "pairs": f"{len(pairs):,}",
        "exchanges": f"{2 * len(pairs):,}, half of them harmful",
        "licence": config.license,
        "questions and harmless answers by": f"{built.model} (`{config.model}`)",
        "harmful answers by": f"{built.harmful_model}, {'as mild stand-ins' if stand_ins else 'to the bare questions'}",
        "prompts": f"version {PROMPT_VERSION}, sha256 `{prompts_sha256()}`",
        "harmless answers checked by": built.detector,
        "harmless answers that begin like a refusal": f"{refusing:,}",
        "seed": str(config.seed),
        "wanted": f"{config.questions_per_scenario} questions of each of {len(config.scenarios)} scenarios"
        + (f", {config.limit} in all" if config.limit is not None else ""),
        "made with": f"protector-guardrails {__version__}",
        "date": datetime.now(UTC).date().isoformat(),
    }
    of = Counter(pair.scenario for pair in pairs)
    asked = Counter(question.scenario.name for question in built.collected.questions)
    rows = [
        (scenario.name, scenario.category or "none", f"{asked[scenario.name]:,}", f"{of[scenario.name]:,}")
        for scenario in config.scenarios
    ]
    return _CARD.format(
        source=built.source,
        facts=_table(("", ""), facts.items()),
        scenarios=_table(("scenario", "category", "questions", "pairs"), rows),
        left_out=_counts("reason", built.reasons),
        unusable=_counts("reason", built.collected.unusable),
        failures=_counts("error", built.requests.failures),
        harmful_side=_STAND_INS if stand_ins else _OTHERS,
    )


def _counts(name: str, counts: Mapping[str, int]) -> str:
    rows = [(what, f"{count:,}") for what, count in sorted(counts.items()) if count]
    return _table((name, "number"), rows) if rows else "None."


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
