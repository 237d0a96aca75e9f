"""Guarding a response while it is still being written.

Pieces come in as they are generated; they go out in the same order, and none before it was
judged. With ``Policy(streaming="full")`` everything is held until the whole response was
judged. With ``"window"`` the text goes out piece by piece: each window is judged with the
end of the one before, which was held back for this, and the whole once more at the end.

Like the decision, this is written once, as a generator without any waiting of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import aclosing, closing
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Literal

from protector_guardrails.asking import Request
from protector_guardrails.cuts import last_cut, leaves_in_code
from protector_guardrails.errors import ProtectorError
from protector_guardrails.policy import Policy
from protector_guardrails.protector import Protector
from protector_guardrails.telemetry import guarding
from protector_guardrails.types import Exchange, Outcome, Verdict


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a streamed response.

    Attributes:
        text: What of it can be judged by itself; empty where there is nothing to judge.
        kind: ``"text"`` and ``"reasoning"`` are judged in windows. ``"whole"`` is judged with
            the whole response only, so it and everything behind it waits for the end.
        divisible: Whether a part of the text may leave before the rest.
        origin: What the piece was made from; not looked at.
    """

    text: str
    kind: Literal["text", "reasoning", "whole"] = "text"
    divisible: bool = True
    origin: Any = None


@dataclass(frozen=True, slots=True)
class Passage:
    """What leaves of a piece: its text from ``start`` to ``end``."""

    piece: Piece
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """What leaves at the end of a stream.

    Attributes:
        outcome: What became of the response. Its ``text`` is everything that left.
        rest: Held passages. They leave as they are if nothing changed; they are what
            ``text`` replaces otherwise.
        text: What leaves in their place.
        cut: How many characters of the response had left when it was cut; None if it was not.
        handed_on: Whether this is only what somebody else decided.
    """

    outcome: Outcome
    rest: tuple[Passage, ...]
    text: str = ""
    cut: int | None = None
    handed_on: bool = False


class _Signal(Enum):
    NEXT = "send the next piece, or None"
    STOP = "the rest is not wanted: stop whoever writes it"


_Step = Request | _Signal | tuple[Passage, ...] | Outcome
"""An outcome is to be recorded, and answered with what became of it then."""
_Flow = Generator[_Step, Any, StreamEnd]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a stream comes from.

    Attributes:
        asked: The question, its images and the names for the record; its response is not used.
        whole: Gives the exchange of all pieces so far.
        judged_before: Tells whether a piece was judged safe on its way here. What was not waits
            for the end: whoever judged it has stopped the stream.
        verdict_on: The verdict on the whole that was given on its way here, if there was one.
        stops_on_flag: Whether harm ends the stream even where the policy lets it through,
            because somebody behind this will rewrite it.
    """

    asked: Exchange
    whole: Callable[[], Exchange]
    judged_before: Callable[[Piece], bool] | None = None
    verdict_on: Callable[[Exchange], Verdict | None] = lambda exchange: None  # noqa: ARG005
    stops_on_flag: bool = False


def guard_stream(protector: Protector, pieces: Iterator[Piece], source: Source) -> Iterator[Passage | StreamEnd]:
    """Guard pieces as they come; the end comes last.

    On harm no more pieces are asked for, and ``pieces`` is closed before the rewrite begins.
    The time limit of the policy holds for each judgement and rewrite by itself.

    Args:
        protector: The guard.
        pieces: A generator, so that it can be closed.
        source: What is known of the stream.
    """
    so_far = _SoFar(source.asked)
    flow = _flow(protector, source, so_far)
    asker = protector.asker
    with closing(pieces):  # type: ignore[type-var]
        try:
            step = next(flow)
            while True:
                answer: Any = None
                if step is _Signal.NEXT:
                    answer = next(pieces, None)
                elif step is _Signal.STOP:
                    pieces.close()  # type: ignore[attr-defined]
                elif isinstance(step, tuple):
                    yield from step
                elif isinstance(step, Outcome):
                    [answer] = protector.recorded([step])
                else:
                    try:
                        answer = asker.answer(step, asker.deadline())
                    except Exception as error:
                        step = flow.throw(error)
                        continue
                step = flow.send(answer)
        except StopIteration as done:
            end: StreamEnd = done.value
        except BaseException as error:  # the reader left, or the model failed
            if (outcome := so_far.outcome(error)) is not None:
                protector.recorded([outcome])
                _observe(protector, outcome)
            raise
    if not end.handed_on:
        _observe(protector, end.outcome)
    yield end


async def aguard_stream(
    protector: Protector, pieces: AsyncIterator[Piece], source: Source
) -> AsyncIterator[Passage | StreamEnd]:
    """Like :func:`guard_stream`, without blocking the event loop."""
    so_far = _SoFar(source.asked)
    flow = _flow(protector, source, so_far)
    asker = protector.asker
    async with aclosing(pieces):  # type: ignore[type-var]
        try:
            step = next(flow)
            while True:
                answer: Any = None
                if step is _Signal.NEXT:
                    answer = await anext(pieces, None)
                elif step is _Signal.STOP:
                    await pieces.aclose()  # type: ignore[attr-defined]
                elif isinstance(step, tuple):
                    for passage in step:
                        yield passage
                elif isinstance(step, Outcome):
                    [answer] = await protector.arecorded([step])
                else:
                    try:
                        answer = await asker.aanswer(step, asker.deadline())
                    except Exception as error:
                        step = flow.throw(error)
                        continue
                step = flow.send(answer)
        except StopIteration as done:
            end: StreamEnd = done.value
        except BaseException as error:  # the reader left, or the model failed
            if (outcome := so_far.outcome(error)) is not None:
                _observe(protector, outcome)
                await protector.arecorded([outcome])
            raise
    if not end.handed_on:
        _observe(protector, end.outcome)
    yield end


def _observe(protector: Protector, outcome: Outcome) -> None:
    with guarding(detector=protector.detector.name, exchanges=[outcome.exchange]) as observed:
        observed.settle([outcome], elapsed_ms=outcome.elapsed_ms)


@dataclass(slots=True)
class _SoFar:
    """What must be on record if a stream ends before its end: whoever hangs up does not stay out of the log.

    Attributes:
        asked: The question.
        left: What the reader has got, at most.
        judged: What the detector said of the last window; None if nothing was judged here.
        spent: Seconds that judging took.
        recorded: Whether the outcome of the stream is on record.
    """

    asked: Exchange
    left: str = ""
    judged: Verdict | ProtectorError | None = None
    spent: float = 0.0
    recorded: bool = False

    def note(self, judged: Verdict | ProtectorError, left: str, spent: float) -> None:
        """Keep what is so now."""
        self.judged, self.left, self.spent = judged, left, spent

    def outcome(self, error: BaseException) -> Outcome | None:
        """What became of the part that left; None if nothing was judged here, or all of it is on record."""
        if self.recorded or self.judged is None or not self.left:
            return None
        verdict = None if isinstance(self.judged, ProtectorError) else self.judged
        abandoned = isinstance(error, GeneratorExit | asyncio.CancelledError)
        cause = "the reader left" if abandoned else f"{type(error).__name__} was raised"
        return Outcome(
            exchange=replace(self.asked, response=self.left),
            text=self.left,
            action="flag" if verdict and verdict.harmful else "pass",
            verdict=verdict,
            error=f"{cause} before the end of the stream",
            elapsed_ms=self.spent * 1000,
        )


def _flow(protector: Protector, source: Source, so_far: _SoFar) -> _Flow:
    policy = protector.policy
    held, spent = _Held(policy, in_windows=policy.streaming == "window" and source.judged_before is None), 0.0
    flagged: Verdict | None = None
    stopped: Verdict | ProtectorError | None = None
    while stopped is None and (piece := (yield _Signal.NEXT)) is not None:
        if source.judged_before and held.is_empty and source.judged_before(piece):
            held.add(piece)
            yield held.let_go_all()
            continue
        if held.turns_to(piece):
            judged, spent = yield from _judge(protector, held, source.asked, spent)
            stopped, flagged = _weigh(judged, flagged, policy, source)
            if stopped is None:
                passages = held.let_go_all()
                so_far.note(flagged or judged, held.left, spent)
                yield passages
        held.add(piece)
        if stopped is None and held.is_due:
            judged, spent = yield from _judge(protector, held, source.asked, spent)
            stopped, flagged = _weigh(judged, flagged, policy, source)
            if stopped is None:
                passages = held.let_go(held.cut())
                so_far.note(flagged or judged, held.left, spent)
                yield passages
    yield _Signal.STOP
    exchange = source.whole()
    known = stopped or source.verdict_on(exchange)
    started = time.perf_counter()
    if known is not None and not isinstance(known, ProtectorError) and not known.harmful:
        outcome = Outcome(exchange=exchange, text=exchange.response, action="pass", verdict=known)
    else:
        [outcome] = yield from protector.deciding((exchange,), None if known is None else [known])
    if flagged and outcome.action == "pass":
        outcome = replace(outcome, action="flag", verdict=flagged)
    left = held.left
    handed_on = outcome.action == "pass" and known is not None
    end = StreamEnd(outcome, held.let_go_all(), handed_on=handed_on)
    if outcome.changed:
        end = yield from _continued(protector, left, end, source.asked)
    spent += time.perf_counter() - started
    end = replace(end, outcome=replace(end.outcome, elapsed_ms=spent * 1000))
    if end.handed_on:
        return end
    so_far.recorded = True
    recorded = yield end.outcome
    if recorded.error and not end.outcome.error:  # it could not be recorded, and has to be
        refused = replace(end, outcome=recorded)
        return (yield from _continued(protector, left, refused, source.asked))
    return end


def _judge(
    protector: Protector, held: _Held, asked: Exchange, spent: float
) -> Generator[Request, Any, tuple[Verdict | ProtectorError, float]]:
    started = time.perf_counter()
    [judged] = yield from protector.judging((held.exchange(asked),))
    return held.located(judged), spent + time.perf_counter() - started


def _weigh(
    judged: Verdict | ProtectorError, flagged: Verdict | None, policy: Policy, source: Source
) -> tuple[Verdict | ProtectorError | None, Verdict | None]:
    """What stops the stream, if anything does, and the verdict that flags it."""
    if isinstance(judged, ProtectorError):
        return (None if policy.on_error == "open" else judged), flagged
    if not judged.harmful:
        return None, flagged
    if policy.on_harm == "flag" and not source.stops_on_flag:
        return None, judged
    return judged, flagged


def _continued(protector: Protector, left: str, end: StreamEnd, asked: Exchange) -> Generator[Request, Any, StreamEnd]:
    """What follows the text that has left already.

    A rewrite that begins like it goes on from there, if what is added is safe by itself, as
    every window was; any other rewrite, and the refusal, follow in full.
    """
    outcome = end.outcome
    text = outcome.text
    if left and outcome.action == "rewrite" and text.startswith(left):
        text = text[len(left) :]
        if text.strip():
            [judged] = yield from protector.judging((replace(asked, response=text),))
            if isinstance(judged, ProtectorError) or judged.harmful:
                text = f"\n\n{protector.policy.refusal_for(outcome.verdict)}"
                recheck = None if isinstance(judged, ProtectorError) else judged
                outcome = replace(outcome, action="refuse", recheck=recheck)
    elif left:
        text = f"\n\n{text}"
    return replace(end, outcome=replace(outcome, text=left + text), text=text, cut=len(left))


class _Held:
    """What has come and not yet left."""

    def __init__(self, policy: Policy, *, in_windows: bool) -> None:
        self._policy = policy
        self._in_windows = in_windows
        self._pieces: deque[Piece] = deque()
        self._offset = 0  # how much of the first piece has left
        self._fresh = 0  # how much of the text was not judged yet
        self._kind: str = "text"
        self._begun = False  # whether any text has left
        self._in_code = False
        self.text = ""
        self.left = ""

    @property
    def is_empty(self) -> bool:
        return not self._pieces

    @property
    def is_due(self) -> bool:
        """Whether it is time to judge."""
        if not self._in_windows or self._kind == "whole":
            return False
        wanted = self._policy.window_chars
        return self._fresh >= (wanted if self._begun else wanted // 2) and len(self.text) > self._policy.overlap_chars

    def turns_to(self, piece: Piece) -> bool:
        """Whether the piece is of another kind, so that the text that is held will not grow any more."""
        return (
            self._in_windows
            and self._kind != "whole"
            and bool(self.text and piece.text)
            and piece.kind not in (self._kind, "whole")
        )

    def add(self, piece: Piece) -> None:
        if piece.kind == "whole" or (piece.text and self._kind != "whole"):
            self._kind = piece.kind
        self._pieces.append(piece)
        self.text += piece.text
        self._fresh += len(piece.text)

    def exchange(self, asked: Exchange) -> Exchange:
        """What is judged now."""
        self._fresh = 0
        if self._kind == "reasoning":
            return replace(asked, response="", reasoning=self.text)
        return replace(asked, response=self.text)

    def located(self, judged: Verdict | ProtectorError) -> Verdict | ProtectorError:
        """The verdict on what was held, with spans that count from the beginning of the response."""
        if isinstance(judged, ProtectorError):
            return judged
        start = len(self.left)
        spans = ((begin + start, end + start) for begin, end in judged.spans)
        return replace(judged, spans=() if self._kind == "reasoning" else tuple(spans))

    def cut(self) -> int:
        """How much of what was judged safe may leave."""
        return last_cut(self.text, len(self.text) - self._policy.overlap_chars, in_code=self._in_code)

    def let_go(self, upto: int) -> tuple[Passage, ...]:
        """Take out the first ``upto`` characters, or less where a piece cannot be divided.

        A piece without text waits for one behind it that has some: it may be what closes the message.
        """
        passages: list[Passage] = []
        taken = 0
        while taken < upto:
            piece = self._pieces[0]
            take = min(len(piece.text) - self._offset, upto - taken)
            ends = self._offset + take == len(piece.text)
            if not (ends or piece.divisible):
                break
            passages.append(Passage(piece, self._offset, self._offset + take))
            taken += take
            self._offset = 0 if ends else self._offset + take
            if ends:
                self._pieces.popleft()
        self._note(taken)
        return tuple(passages)

    def let_go_all(self) -> tuple[Passage, ...]:
        """Take out everything."""
        passages = []
        for piece in self._pieces:
            passages.append(Passage(piece, self._offset, len(piece.text)))
            self._offset = 0
        self._pieces.clear()
        self._note(len(self.text))
        return tuple(passages)

    def _note(self, taken: int) -> None:
        gone, self.text = self.text[:taken], self.text[taken:]
        self._begun = self._begun or taken > 0
        self._in_code = leaves_in_code(gone, in_code=self._in_code)
        if self._kind == "text":
            self.left += gone
