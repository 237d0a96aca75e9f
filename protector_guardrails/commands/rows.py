"""One line of a file to be scored: what is judged, and what its output line looks like."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protector_guardrails.commands.lines import LineReader
from protector_guardrails.errors import ConfigurationError

if TYPE_CHECKING:
    from protector_guardrails.types import Exchange, Verdict

BLANK = b" \t\r\n"
_PEEKED_LINES = 1000


class MalformedLineError(ValueError):
    """A line that cannot be judged; the message tells why without quoting it."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Names of the fields that are read."""

    response: str = "response"
    question: str = "question"
    image_description: str = "image_desc"


@dataclass(frozen=True, slots=True)
class Row:
    """A line that can be judged.

    Attributes:
        number: Its number in the input, from 1.
        head: Its output line up to the verdict. The input is kept byte for byte, so that
            numbers, escapes and the order of fields stay what they were.
        exchange: What is judged.
    """

    number: int
    head: bytes
    exchange: Exchange

    def line(self, verdict: Verdict) -> bytes:
        """The output line, with its line feed; no timings, so that a second run gives the same bytes."""
        record = {name: value for name, value in verdict.to_dict().items() if name != "elapsed_ms"}
        return self.head + json.dumps(record).encode() + b"}\n"


def parse_row(number: int, raw: bytes, fields: Fields) -> Row:
    """Read a line.

    Raises:
        MalformedLineError: If it is not a JSON object in UTF-8 with a response.
    """
    from protector_guardrails.types import Exchange, Image

    stripped = raw.strip(BLANK)
    record = _object(stripped)
    if fields.response not in record:
        raise MalformedLineError(f"no field {fields.response!r}")
    response = record[fields.response]
    question = record.get(fields.question)
    shown = record.get(fields.image_description)
    descriptions = shown if isinstance(shown, list) else [] if shown is None else [shown]
    if not isinstance(response, str):
        raise MalformedLineError(f"field {fields.response!r} is not a string")
    if not (question is None or isinstance(question, str)):
        raise MalformedLineError(f"field {fields.question!r} is neither a string nor null")
    if not all(isinstance(description, str) for description in descriptions):
        raise MalformedLineError(f"field {fields.image_description!r} is neither a string, a list of them, nor null")
    if "protector" in record:  # of an earlier run; the new verdict takes its place
        rest = {name: value for name, value in record.items() if name != "protector"}
        stripped = json.dumps(rest).encode()
    return Row(
        number=number,
        head=stripped[:-1].rstrip(BLANK) + b', "protector": ',
        exchange=Exchange(
            response=response,
            question=question,
            images=tuple(Image(description=description) for description in descriptions),
        ),
    )


def _object(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise MalformedLineError(f"not valid UTF-8 at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise MalformedLineError(f"not valid JSON at character {error.pos + 1}") from None
    except RecursionError:
        raise MalformedLineError("nested too deeply") from None
    except ValueError:  # an integer of thousands of digits
        raise MalformedLineError("holds a number that is too long") from None
    if not isinstance(record, dict):
        raise MalformedLineError("not a JSON object")
    return record


def check_fields(path: Path, fields: Fields) -> None:
    """See whether the fields exist, before hours are spent on the wrong ones.

    The response must be there; a question or description only if its name is not the default.

    Raises:
        ConfigurationError: If none of the first lines has such a field.
    """
    present: set[str] = set()
    with LineReader(path) as lines:
        for number, raw in lines:
            if number > _PEEKED_LINES:
                break
            try:
                present |= _object(raw.strip(BLANK)).keys()
            except MalformedLineError:
                continue
    defaults = Fields()
    wanted = [("--response-field", fields.response)]
    if fields.question != defaults.question:
        wanted.append(("--question-field", fields.question))
    if fields.image_description != defaults.image_description:
        wanted.append(("--image-description-field", fields.image_description))
    for option, name in wanted:
        if present and name not in present:
            raise ConfigurationError(
                f"no line of {path} has a field {name!r} ({option}); there are: {', '.join(sorted(present)[:20])}"
            )
