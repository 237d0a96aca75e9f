"""The two forms of a row: a pair for the detoxifier and the ranking loss, an exchange for the detector.

These are the forms that :func:`protector_guardrails.training.detox_data.read_pairs` and
:func:`protector_guardrails.training.data.read_exchanges` read, said as a schema. Fields
that are not named here are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StrictBool, StringConstraints, ValidationError

Text = Annotated[str, StringConstraints(pattern=r"\S")]
"""A text with something in it."""


class Row(BaseModel):
    """What both forms have.

    Attributes:
        id: Of the row in its file.
        source: Data set it belongs to.
        license: Under which it may be used.
        question: What was asked; null where that is not known.
        scenario: What the question is about.
        category: The nearest hazard, or several.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str | int | None = None
    source: Text | None = None
    license: Text | None = None
    question: str | None = None
    scenario: str | None = None
    category: str | list[str] | None = None


class PairRow(Row):
    """A question with a harmful and a harmless answer.

    Attributes:
        harmful_response: The rejected answer.
        harmless_response: The accepted answer.
        model: Who wrote the harmless answer.
        harmful_model: Who wrote the harmful answer.
    """

    harmful_response: Text
    harmless_response: Text
    model: str | None = None
    harmful_model: str | None = None


class ExchangeRow(Row):
    """A labelled answer.

    Attributes:
        response: The answer.
        harmful: The label.
        label_kind: Who or what the label comes from.
        image_desc: What the images of the question show, in words.
        model: Who wrote the answer.
    """

    response: Text
    harmful: StrictBool
    label_kind: str | None = None
    image_desc: str | None = None
    model: str | None = None


def checked(record: Mapping[str, Any]) -> PairRow | ExchangeRow:
    """The row that a record is; one with ``harmful_response`` or ``harmless_response`` is a pair.

    Raises:
        ValueError: If a field is missing or wrong; names the field and never quotes a text.
    """
    form = PairRow if "harmful_response" in record or "harmless_response" in record else ExchangeRow
    try:
        return form.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{first['loc'][0]!r}: {first['msg']}") from None


def exchanges_of(pair: PairRow) -> tuple[ExchangeRow, ExchangeRow]:
    """Both answers of a pair as labelled exchanges, the harmful one first."""
    shared = pair.model_dump(include={"source", "license", "question", "scenario", "category"})
    labelled = {"label_kind": "by-construction", **shared}
    return (
        ExchangeRow(
            id=f"{pair.id}-harmful", response=pair.harmful_response, harmful=True, model=pair.harmful_model, **labelled
        ),
        ExchangeRow(
            id=f"{pair.id}-harmless", response=pair.harmless_response, harmful=False, model=pair.model, **labelled
        ),
    )
