"""The text that a classifier reads, cut into windows of tokens that fit it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING, Literal

import numpy as np

from protector_guardrails.detectors.encoding import printable, window_bounds
from protector_guardrails.errors import ConfigurationError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

TEMPLATES = {
    "response": "{response}",
    "question+response": "Question: {question}\n\nAnswer: {response}",
}
"""Templates by name. The paper's detector was trained on the second and is run on the first."""

_MARGIN = 8  # tokens by which a template may grow where it meets other words
_Kind = Literal["literal", "question", "response"]
_Part = tuple[_Kind, str]


@dataclass(frozen=True, slots=True)
class Template:
    """Literal text and fields in order.

    Attributes:
        parts: ``("literal", text)``, ``("question", "")`` and ``("response", "")``.
        bare: Whether a response without a question is read on its own.
    """

    parts: tuple[_Part, ...]
    bare: bool

    @classmethod
    def parse(cls, template: str) -> Template:
        """A template by name, or a format string with ``{response}`` and, if wanted, ``{question}``.

        Raises:
            ConfigurationError: If it is neither.

        Example:
            >>> Template.parse("Q: {question} A: {response}").parts
            (('literal', 'Q: '), ('question', ''), ('literal', ' A: '), ('response', ''))
        """
        parts: list[_Part] = []
        try:
            for literal, field, spec, conversion in Formatter().parse(TEMPLATES.get(template, template)):
                if literal:
                    parts.append(("literal", literal))
                if field == "question" and not spec and not conversion:
                    parts.append(("question", ""))
                elif field == "response" and not spec and not conversion:
                    parts.append(("response", ""))
                elif field is not None:
                    raise ValueError(f"{{{field}}} is not a field")
        except ValueError as error:
            raise ConfigurationError(
                f"template {template!r} cannot be read ({error}): it may hold {{response}} and {{question}}; "
                "write {{ and }} for braces"
            ) from error
        kinds = [kind for kind, _ in parts]
        if kinds.count("response") != 1 or kinds.count("question") > 1:
            names = ", ".join(repr(name) for name in TEMPLATES)
            raise ConfigurationError(
                f"template {template!r} must hold {{response}} once and {{question}} at most once, or be one of {names}"
            )
        return cls(tuple(parts), bare=template in TEMPLATES)


@dataclass(frozen=True, slots=True)
class TextWindow:
    """One model input.

    Attributes:
        ids: Token ids, special tokens included.
        passage: Index of the passage that it shows.
        start: First character of the passage that it shows.
        end: One past the last one.
    """

    ids: tuple[int, ...]
    passage: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Tokens:
    ids: NDArray[np.int64]
    kinds: NDArray[np.str_]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


class TextEncoder:
    """Fills a template and tokenises it as a whole, so that what fits is read as in training.

    What does not fit is cut into windows: each shows the whole template, the two ends of
    the question (a third of the window at most) and a piece of the response. Every token of the
    response is in a window. What questions and responses spell out is text, never a special token.

    Args:
        tokenizer: Taken over: its padding, truncation and special tokens are set.
        template: What is filled.
        max_tokens: Longest window, special tokens included.
        overlap: Tokens of a response that consecutive windows share.

    Raises:
        ConfigurationError: If a window has no room for more of a response than ``overlap``.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template, *, max_tokens: int, overlap: int) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        self.tokenizer = tokenizer
        self.template = template
        self.max_tokens = max_tokens
        self.overlap = overlap
        self.first, self.last = _frame(tokenizer)
        added = sorted(tokenizer.get_added_tokens_decoder().items(), key=lambda item: -len(item[1].content))
        self._special = {token.content: index for index, token in added if token.special}
        fixed = len(self.first) + len(self.last) + len(self._tokenise("", "").ids)
        if 2 * (max_tokens - fixed - _MARGIN) // 3 <= overlap:
            raise ConfigurationError(
                f"windows of {max_tokens} tokens have no room for a template of {fixed} and pieces of a response that "
                f"share {overlap}: set a larger max_tokens or a smaller overlap"
            )

    def encode(self, question: str | None, passages: Sequence[str]) -> list[TextWindow]:
        """Windows of every passage with the question, at least one each, in reading order."""
        question = printable(question or "")
        limit = 16 * self.max_tokens  # more characters cannot fit, whatever the tokenizer
        if len(question) > 2 * limit:
            question = f"{question[:limit]} {question[-limit:]}"
        windows: list[TextWindow] = []
        for index, passage in enumerate(passages):
            windows.extend(self._windows(question, printable(passage), index))
        return windows

    def _windows(self, question: str, passage: str, index: int) -> list[TextWindow]:
        tokens = self._tokenise(question, passage)
        room = self.max_tokens - len(self.first) - len(self.last)
        if len(tokens.ids) <= room:
            return [self._window(tokens.ids, index, 0, len(passage))]
        keep = np.ones(len(tokens.ids), dtype=bool)
        asked = np.flatnonzero(tokens.kinds == "question")
        answered = np.flatnonzero(tokens.kinds == "response")
        room -= len(tokens.ids) - len(asked) - len(answered)
        if len(asked) > room // 3:
            head, tail = room // 6, room // 3 - room // 6
            keep[asked[head : len(asked) - tail]] = False
        size = room - int(keep[asked].sum())
        windows = []
        for begin, end in window_bounds(len(answered), size=size, overlap=self.overlap):
            keep[answered] = False
            shown = answered[begin:end]
            keep[shown] = True
            start = int(tokens.starts[shown[0]]) if len(shown) else 0
            stop = int(tokens.ends[shown[-1]]) if len(shown) else 0
            windows.append(self._window(tokens.ids[keep], index, start, stop))
        return windows

    def _window(self, ids: NDArray[np.int64], index: int, start: int, end: int) -> TextWindow:
        return TextWindow((*self.first, *ids.tolist(), *self.last), index, start, end)

    def _tokenise(self, question: str, response: str) -> _Tokens:
        """The filled template: ids, what each belongs to, and its characters within the response."""
        parts: Sequence[_Part] = self.template.parts
        if self.template.bare and not question:
            parts = (("response", ""),)
        pieces = [self._run(run, question, response) for run in self._runs(parts)]
        return _Tokens(
            np.concatenate([piece.ids for piece in pieces]),
            np.concatenate([piece.kinds for piece in pieces]),
            np.concatenate([piece.starts for piece in pieces]),
            np.concatenate([piece.ends for piece in pieces]),
        )

    def _runs(self, parts: Sequence[_Part]) -> list[int | list[_Part]]:
        """The template cut at the special tokens that it spells out, which stand as their ids."""
        runs: list[int | list[_Part]] = []
        run: list[_Part] = []
        cut = re.compile(f"({'|'.join(map(re.escape, self._special))})") if self._special else None
        for kind, literal in parts:
            for text in cut.split(literal) if cut and literal else [literal]:
                if kind == "literal" and text in self._special:
                    runs += [run, self._special[text]] if run else [self._special[text]]
                    run = []
                elif text or kind != "literal":
                    run.append((kind, text))
        return [*runs, run] if run else runs

    def _run(self, run: int | list[_Part], question: str, response: str) -> _Tokens:
        if isinstance(run, int):
            nothing = np.zeros(1, dtype=np.int64)
            return _Tokens(np.array([run], dtype=np.int64), np.array(["literal"]), nothing, nothing)
        text = ""
        spans: dict[str, tuple[int, int]] = {}
        for kind, literal in run:
            filled = literal if kind == "literal" else question if kind == "question" else response
            spans[kind] = (len(text), len(text) + len(filled))
            text += filled
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        starts, ends = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
        kinds = np.full(len(starts), "literal", dtype="<U8")
        for kind in ("question", "response"):  # a token on the border belongs to the response
            if kind in spans:
                begin, stop = spans[kind]
                kinds[(ends > begin) & (starts < stop)] = kind
        begin, stop = spans.get("response", (0, 0))
        return _Tokens(
            np.array(encoding.ids, dtype=np.int64),
            kinds,
            np.clip(starts, begin, stop) - begin,
            np.clip(ends, begin, stop) - begin,
        )


def _frame(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that the tokenizer puts before and behind a text."""
    probe = tokenizer.encode("a", add_special_tokens=True)
    own = [position for position, special in enumerate(probe.special_tokens_mask) if not special]
    if not own:
        return tuple(probe.ids), ()
    return tuple(probe.ids[: own[0]]), tuple(probe.ids[own[-1] + 1 :])
