"""Guarding a response while it is written: nothing leaves that was not judged, whatever the chunks."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protector_guardrails import AuditLog, Detoxifier, Exchange, HarmDetector, Policy, Protector, Verdict
from protector_guardrails.cuts import last_cut, leaves_in_code
from protector_guardrails.streaming import Passage, Piece, Source, StreamEnd, aguard_stream, guard_stream

MARK = "BAD WORDS"


class Marked(HarmDetector):
    """Harmful is what holds the mark; what was judged is kept."""

    name = "marked@1"

    def __init__(self, mark=MARK):
        self.mark = mark
        self.judged = []

    def detect(self, exchanges):
        self.judged.extend(exchanges)
        return [Verdict(harmful=False, score=float(any(self.mark in p for p in e.passages))) for e in exchanges]


class Masking(Detoxifier):
    def detoxify(self, exchanges, verdicts):
        return [e.response.replace(MARK, "[...]") for e in exchanges]


class Rewording(Detoxifier):
    def detoxify(self, exchanges, verdicts):
        return ["Something else." for _ in exchanges]


@dataclass
class Upstream:
    """A model that writes, and knows how far it came and whether it was stopped."""

    pieces: list[Piece]
    fails_after: int | None = None
    sent: list[Piece] = field(default_factory=list)
    closed: bool = False

    def __iter__(self):
        try:
            for piece in self.pieces:
                if self.fails_after == len(self.sent):
                    raise ConnectionError("line dropped")
                self.sent.append(piece)
                yield piece
        finally:
            self.closed = True

    async def __aiter__(self):
        try:
            for piece in self.pieces:
                if self.fails_after == len(self.sent):
                    raise ConnectionError("line dropped")
                self.sent.append(piece)
                await asyncio.sleep(0)
                yield piece
        finally:
            self.closed = True

    def whole(self) -> Exchange:
        text = "".join(piece.text for piece in self.sent if piece.kind == "text")
        reasoning = "".join(piece.text for piece in self.sent if piece.kind == "reasoning")
        return Exchange(response=text, reasoning=reasoning or None)


def texts(*parts, kind="text"):
    return [Piece(part, kind=kind) for part in parts]


def run(protector, upstream, *, is_async=False, **source):
    """What left before the end, and the end."""
    source = Source(asked=Exchange(response="", question="Why?"), whole=upstream.whole, **source)
    if is_async:

        async def collect():
            return [step async for step in aguard_stream(protector, aiter(upstream), source)]

        steps = asyncio.run(collect())
    else:
        steps = list(guard_stream(protector, iter(upstream), source))
    *passages, end = steps
    assert isinstance(end, StreamEnd)
    assert all(isinstance(step, Passage) for step in passages)
    return passages, end


def said(passages, kind=None):
    return "".join(p.piece.text[p.start : p.end] for p in passages if kind in (None, p.piece.kind))


def everything(passages, end):
    return said(passages) + (end.text if end.outcome.changed else said(end.rest))


WINDOW = Policy(streaming="window", window_chars=40, overlap_chars=12)
both = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


@both
def test_full_holds_everything_until_it_was_judged(is_async):
    upstream = Upstream(texts(*("word " * 200).split(" ")))
    detector = Marked()
    passages, end = run(Protector(detector, policy=Policy()), upstream, is_async=is_async)
    assert passages == []
    assert end.outcome.action == "pass"
    assert [p.piece for p in end.rest] == upstream.pieces
    assert len(detector.judged) == 1


@both
def test_window_lets_safe_text_go_early_and_unchanged(is_async):
    words = [f"word{i} " for i in range(60)]
    detector = Marked()
    passages, end = run(Protector(detector, policy=WINDOW), Upstream(texts(*words)), is_async=is_async)
    assert len(said(passages)) > 300
    assert everything(passages, end) == "".join(words)
    assert end.outcome.text == "".join(words)
    assert end.cut is None
    assert detector.judged[-1].response == "".join(words), "the whole is judged once more"
    assert all(exchange.question == "Why?" for exchange in detector.judged[:-1])


@both
def test_harm_stops_the_writer_and_the_refusal_follows(is_async):
    before, after = [f"word{i} " for i in range(30)], ["more "] * 100
    upstream = Upstream(texts(*before, MARK, " and ", *after))
    policy = WINDOW.model_copy(update={"on_harm": "refuse", "refusal": "No."})
    passages, end = run(Protector(Marked(), policy=policy), upstream, is_async=is_async)
    assert upstream.closed
    assert len(upstream.sent) < 45, "the rest was never asked for"
    assert end.outcome.action == "refuse"
    assert end.text == "\n\nNo."
    assert end.cut == len(said(passages))
    assert "".join(before).startswith(said(passages))
    assert MARK not in end.outcome.text
    assert end.outcome.text == said(passages) + end.text


@both
def test_a_rewrite_that_begins_alike_goes_on_from_the_cut(is_async):
    before = [f"word{i} " for i in range(30)]
    upstream = Upstream(texts(*before, MARK, " and more.", *["more "] * 9))
    passages, end = run(Protector(Marked(), Masking(), policy=WINDOW), upstream, is_async=is_async)
    assert end.outcome.action == "rewrite"
    assert said(passages) + end.text == end.outcome.text
    assert "".join(before) + "[...]" in end.outcome.text


def test_another_rewrite_follows_in_full():
    upstream = Upstream(texts(*[f"word{i} " for i in range(30)], MARK, *["more "] * 9))
    passages, end = run(Protector(Marked(), Rewording(), policy=WINDOW), upstream)
    assert said(passages)
    assert end.text == "\n\nSomething else."


def test_what_a_rewrite_adds_is_judged_by_itself():
    class OnlyAlone(Marked):
        """Sees the mark in short texts only, as a detector may that dilutes harm in a long answer."""

        def detect(self, exchanges):
            verdicts = super().detect(exchanges)
            return [
                Verdict(harmful=False, score=0.0) if len(e.response) > 80 else v
                for e, v in zip(exchanges, verdicts, strict=True)
            ]

    class Lazy(Detoxifier):
        def detoxify(self, exchanges, verdicts):
            return [e.response + " Sorry." for e in exchanges]

    upstream = Upstream(texts(*[f"word{i} " for i in range(30)], MARK, *["more "] * 9))
    passages, end = run(Protector(OnlyAlone(), Lazy(), policy=WINDOW), upstream)
    assert end.outcome.action == "refuse"
    assert MARK not in said(passages) + end.text


def test_harm_that_shows_in_the_whole_only_replaces_what_is_held():
    class Whole(Marked):
        def detect(self, exchanges):
            super().detect(exchanges)
            return [Verdict(harmful=False, score=float(len(e.response) > 200)) for e in exchanges]

    upstream = Upstream(texts(*[f"word{i} " for i in range(40)]))
    policy = WINDOW.model_copy(update={"on_harm": "refuse"})
    passages, end = run(Protector(Whole(), policy=policy), upstream)
    assert end.outcome.action == "refuse"
    assert 0 < end.cut == len(said(passages)) < 260
    assert said(end.rest)
    assert said(end.rest) not in end.text


@both
@pytest.mark.parametrize("mode", ["full", "window"])
def test_a_failing_detector_fails_closed_or_open(mode, is_async):
    class Broken(HarmDetector):
        def detect(self, exchanges):
            raise RuntimeError("no")

    words = [f"word{i} " for i in range(40)]
    closed = WINDOW.model_copy(update={"streaming": mode})
    passages, end = run(Protector(Broken(), policy=closed), Upstream(texts(*words)), is_async=is_async)
    assert passages == []
    assert (end.outcome.action, end.outcome.error) == ("refuse", "DetectorError: RuntimeError was raised")
    opened = closed.model_copy(update={"on_error": "open"})
    passages, end = run(Protector(Broken(), policy=opened), Upstream(texts(*words)), is_async=is_async)
    assert everything(passages, end) == "".join(words)
    assert end.outcome.action == "pass"


@both
def test_a_writer_that_fails_takes_what_is_held_with_it(is_async):
    upstream = Upstream(texts(*[f"word{i} " for i in range(40)]), fails_after=30)
    left = []
    source = Source(asked=Exchange(response=""), whole=upstream.whole)
    protector = Protector(Marked(), policy=WINDOW)

    async def consume():
        async for step in aguard_stream(protector, aiter(upstream), source):
            left.append(step)

    with pytest.raises(ConnectionError):
        if is_async:
            asyncio.run(consume())
        else:
            left.extend(guard_stream(protector, iter(upstream), source))
    assert len(said(left)) < len("".join(p.text for p in upstream.sent))
    assert upstream.closed


@both
def test_a_reader_who_leaves_stops_the_writer(is_async):
    upstream = Upstream(texts(*[f"word{i} " for i in range(100)]))
    source = Source(asked=Exchange(response=""), whole=upstream.whole)
    protector = Protector(Marked(), policy=WINDOW)

    async def read_one():
        stream = aguard_stream(protector, aiter(upstream), source)
        await anext(stream)
        await stream.aclose()

    if is_async:
        asyncio.run(read_one())
    else:
        stream = guard_stream(protector, iter(upstream), source)
        next(stream)
        stream.close()
    assert upstream.closed
    assert len(upstream.sent) < 100


@pytest.mark.parametrize(
    ("how", "is_async"),
    [
        ("leaves", False),
        ("leaves", True),
        ("is cancelled", True),
        ("loses the writer", False),
        ("loses the writer", True),
    ],
)
def test_what_left_before_a_broken_end_is_on_record(tmp_path, is_async, how):
    """Whoever hangs up does not stay out of the audit log."""
    upstream = Upstream(
        texts(*[f"word{i} " for i in range(100)]), fails_after=60 if how == "loses the writer" else None
    )
    source = Source(asked=Exchange(response="", question="Why?"), whole=upstream.whole)
    audit = AuditLog(tmp_path / "audit.jsonl", texts=True)
    protector = Protector(Marked(), policy=WINDOW, audit=audit)
    got = []

    async def read():
        stream = aguard_stream(protector, aiter(upstream), source)
        async for step in stream:
            got.append(step)
            if how == "leaves":
                break
            if how == "is cancelled" and len(got) == 3:
                asyncio.current_task().cancel()
        await stream.aclose()

    with contextlib.suppress(ConnectionError, asyncio.CancelledError):
        if is_async:
            asyncio.run(read())
        else:
            with contextlib.closing(guard_stream(protector, iter(upstream), source)) as stream:
                for step in stream:
                    got.append(step)
                    if how == "leaves":
                        break
    audit.close()
    [record] = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text(encoding="utf-8").splitlines()]
    assert record["action"] == "pass"
    expected = "ConnectionError was raised" if how == "loses the writer" else "the reader left"
    assert record["error"] == f"{expected} before the end of the stream"
    assert said(got) and record["response"].startswith(said(got))


@both
def test_a_stream_that_ends_is_on_record_once(tmp_path, is_async):
    audit = AuditLog(tmp_path / "audit.jsonl")
    run(Protector(Marked(), policy=WINDOW, audit=audit), Upstream(texts("word " * 30)), is_async=is_async)
    audit.close()
    assert len((tmp_path / "audit.jsonl").read_text(encoding="utf-8").splitlines()) == 1


def test_flag_lets_everything_through_and_says_so():
    words = [f"word{i} " for i in range(20)]
    upstream = Upstream(texts(*words, MARK, " ", *words))
    policy = WINDOW.model_copy(update={"on_harm": "flag"})
    passages, end = run(Protector(Marked(), policy=policy), upstream)
    assert everything(passages, end) == "".join([*words, MARK, " ", *words])
    assert end.outcome.action == "flag"
    assert end.outcome.verdict.harmful


def test_flag_by_a_window_counts_even_if_the_whole_seems_safe():
    class Diluted(Marked):
        def detect(self, exchanges):
            verdicts = super().detect(exchanges)
            return [
                Verdict(harmful=False, score=0.0) if len(e.response) > 150 else v
                for e, v in zip(exchanges, verdicts, strict=True)
            ]

    words = [f"word{i} " for i in range(20)]
    policy = WINDOW.model_copy(update={"on_harm": "flag"})
    _, end = run(Protector(Diluted(), policy=policy), Upstream(texts(*words, MARK, " ", *words)))
    assert end.outcome.action == "flag"


def test_where_somebody_rewrites_behind_a_flag_stops_the_stream():
    words = [f"word{i} " for i in range(20)]
    upstream = Upstream(texts(*words, MARK, " ", *words))
    policy = WINDOW.model_copy(update={"on_harm": "flag"})
    passages, end = run(Protector(Marked(), policy=policy), upstream, stops_on_flag=True)
    assert MARK not in said(passages)
    assert MARK in said(end.rest)
    assert end.outcome.action == "flag"
    assert len(upstream.sent) < len(upstream.pieces)


def test_reasoning_goes_before_the_text_and_is_judged_as_reasoning():
    detector = Marked()
    reasoning, answer = [f"think{i} " for i in range(20)], [f"word{i} " for i in range(20)]
    upstream = Upstream([*texts(*reasoning, kind="reasoning"), *texts(*answer)])
    passages, end = run(Protector(detector, policy=WINDOW), upstream)
    assert said([*passages, *end.rest], "reasoning") == "".join(reasoning)
    assert everything(passages, end) == "".join([*reasoning, *answer])
    windows = detector.judged[:-1]
    assert any(w.reasoning for w in windows)
    assert any(w.response for w in windows)
    assert not any(w.reasoning and w.response for w in windows)


def test_harmful_reasoning_stops_before_any_answer():
    upstream = Upstream([*texts(*[f"think{i} " for i in range(20)], MARK, kind="reasoning"), *texts("Fine. " * 20)])
    policy = WINDOW.model_copy(update={"on_harm": "refuse"})
    passages, end = run(Protector(Marked(), policy=policy), upstream)
    assert MARK not in everything(passages, end)
    assert end.text.strip() == policy.refusal_for(end.outcome.verdict)


def test_whole_pieces_wait_with_all_behind_them():
    words = [f"word{i} " for i in range(20)]
    call = Piece("", kind="whole", divisible=False, origin="call")
    passages, end = run(Protector(Marked(), policy=WINDOW), Upstream([*texts(*words), call, *texts(*words)]))
    assert "call" not in [p.piece.origin for p in passages]
    assert len(said(passages)) <= len("".join(words))
    assert [p.piece.origin for p in end.rest].count("call") == 1


def test_what_was_judged_on_its_way_is_not_judged_again():
    detector = Marked()
    pieces = [Piece(""), *texts(*[f"word{i} " for i in range(50)])]
    verdict = Verdict(harmful=False, score=0.1)
    passages, end = run(
        Protector(detector, policy=WINDOW),
        Upstream(pieces),
        judged_before=lambda piece: True,
        verdict_on=lambda exchange: verdict,
    )
    assert detector.judged == []
    assert len(passages) == len(pieces)
    assert end.outcome.verdict is verdict


def test_spans_count_from_the_beginning_of_the_response():
    class Spanned(Marked):
        def detect(self, exchanges):
            super().detect(exchanges)
            found = [e.response.find(MARK) for e in exchanges]
            return [
                Verdict(harmful=False, score=float(at >= 0), spans=((at, at + len(MARK)),) if at >= 0 else ())
                for at in found
            ]

    upstream = Upstream(texts(*[f"word{i} " for i in range(30)], MARK, " ", *["more "] * 9))
    policy = WINDOW.model_copy(update={"on_harm": "refuse"})
    _, end = run(Protector(Spanned(), policy=policy), upstream)
    [(start, stop)] = end.outcome.verdict.spans
    assert end.outcome.exchange.response[start:stop] == MARK


@st.composite
def written_in_pieces(draw):
    """A text with the mark somewhere, in arbitrary pieces; the mark may be split anywhere."""
    alphabet = st.sampled_from("ab .\n`。")
    before, after = draw(st.text(alphabet, max_size=200)), draw(st.text(alphabet, max_size=200))
    text = before + draw(st.sampled_from([MARK, ""])) + after
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=40)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@settings(max_examples=300, deadline=None)
@given(written_in_pieces(), st.integers(40, 90), st.integers(len(MARK), 39))
def test_not_one_character_of_the_mark_leaves(parts, window, overlap):
    policy = Policy(streaming="window", window_chars=window, overlap_chars=overlap, on_harm="refuse", refusal="NO")
    upstream = Upstream(texts(*parts))
    passages, end = run(Protector(Marked(), policy=policy), upstream)
    text = "".join(parts)
    if MARK in text:
        left = said(passages)
        assert text.startswith(left)
        assert len(left) <= text.index(MARK), "nothing from the mark on has left"
        assert end.outcome.action == "refuse"
    else:
        assert everything(passages, end) == text


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab .\n`"), max_size=120), st.integers(0, 120), st.booleans())
def test_cuts_are_within_the_limit_and_make_progress(text, limit, in_code):
    limit = min(limit, len(text))
    cut = last_cut(text, limit, in_code=in_code)
    assert (limit + 1) // 2 - 1 <= cut <= limit
    assert cut > 0 or limit <= 1


def test_cuts_prefer_sentences_and_keep_code_lines_whole():
    assert last_cut("One. Two words here", 12) == len("One. Two ")
    assert last_cut("A first one. Two words", 18) == len("A first one. ")
    code = "Look:\n```\nx = 1. + y\nz = 2. * x\n"
    assert last_cut(code, len(code) - 3) == code.index("z = ")
    assert leaves_in_code("a ```b", in_code=False)
    assert not leaves_in_code("b``` c", in_code=True)


def test_judge_work_stays_below_the_bar():
    """At most 1.6 times the text on top of judging it once, and far below judging every prefix."""
    text = "".join(f"This is sentence number {i} of a long and harmless answer. " for i in range(100))
    detector = Marked()
    run(Protector(detector, policy=Policy(streaming="window")), Upstream(texts(*[w + " " for w in text.split(" ")])))
    extra = sum(len(exchange.response) for exchange in detector.judged[:-1]) / len(text)
    assert 0.9 < extra <= 1.6
