"""Spans: which passages of a harmful response they name."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_onnx import word_detector

from protector_guardrails import EmbeddedDetector, Exchange, ToolCall
from protector_guardrails.detectors.attribution import MOST_WINDOWS, candidates, merged


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedDetector:
    words = {"bad": (3.0,), "odd": (-1.0,), "please": (1.0,), ".": (-4.0,), "soup": (-4.0,), "stir": (-4.0,)}
    return word_detector(tmp_path_factory.mktemp("words"), words)


def told(detector: EmbeddedDetector, response: str, question: str | None = None) -> list[str]:
    [verdict] = detector.detect([Exchange(response=response, question=question)])
    return [response[start:end] for start, end in verdict.spans]


def test_the_sentence_is_told_not_its_window(detector: EmbeddedDetector) -> None:
    assert told(detector, "Stir soup. A bad thing. Stir soup.\n- soup\n- bad soup\n") == ["A bad thing.", "- bad soup"]


def test_long_responses_are_looked_into_only_where_they_are_harmful(detector: EmbeddedDetector) -> None:
    response = "Stir soup. " * 40 + "One bad thing. " + "Stir soup. " * 40
    judged: list[str] = []
    encode = detector.encode

    def note(exchanges):
        judged.extend(exchange.response for exchange in exchanges)
        return encode(exchanges)

    detector.encode = note  # type: ignore[method-assign]
    try:
        assert told(detector, response) == ["One bad thing."]
    finally:
        del detector.encode
    assert judged[0] == response and len(judged) < 15


def test_harm_that_no_sentence_has_alone_is_told_by_its_window(tmp_path: Path) -> None:
    class Together(EmbeddedDetector):
        def window_outputs(self, windows):
            outputs = super().window_outputs(windows)
            outputs[:, 0] = [3.0 if len(window.ids) > 8 else -4.0 for window in windows]
            return outputs

    word_detector(tmp_path, {"soup": (-4.0,), ".": (-4.0,)})
    assert told(Together(tmp_path), "Stir soup. Stir soup. Stir soup.") == ["Stir soup. Stir soup. Stir soup."]


def test_a_window_with_no_harmful_sentence_is_told_beside_sentences_of_others() -> None:
    response = "A bad thing. Stir soup. " + "Soup is a thing. " * 3 + "Odd soup. Odd soup."
    first, last = (0, 23), (response.index("Odd"), len(response))
    looked_into = candidates(response, [(3.0, first), (2.5, last)])
    assert looked_into.windows == (first, last)
    harmful = [response[start:end].startswith("A bad") for start, end in looked_into.pieces]
    assert looked_into.spans(harmful) == ((0, 12), last)


def test_one_sentence_is_not_judged_twice(detector: EmbeddedDetector) -> None:
    assert told(detector, "  A bad thing.\n") == ["A bad thing."]


def test_a_sentence_counts_with_the_question(detector: EmbeddedDetector) -> None:
    assert told(detector, "Yes. Do it.", "please bad") == ["Yes.", "Do it."]


def test_harm_elsewhere_than_in_the_response_has_no_span(detector: EmbeddedDetector) -> None:
    [verdict] = detector.detect(
        [Exchange(response="Soup. Soup.", reasoning="bad", tool_calls=(ToolCall(name="x", arguments="bad"),))]
    )
    assert verdict.harmful and verdict.spans == ()


@given(st.lists(st.sampled_from(["Bad. ", "soup ", "stir. ", "\n", "- bad\n", "\u2028", "```\n", ". "]), max_size=60))
def test_spans_are_passages_in_order_and_apart(detector: EmbeddedDetector, parts: list[str]) -> None:
    response = "".join(parts)
    [verdict] = detector.detect([Exchange(response=response)])
    end = 0
    for start, stop in verdict.spans:
        assert end <= start < stop <= len(response)
        assert response[start:stop].strip()
        end = stop
    assert bool(verdict.spans) is verdict.harmful is ("bad" in response.lower())


SPANS = st.tuples(st.integers(0, 80), st.integers(0, 80)).map(lambda pair: (min(pair), max(pair)))


@given(
    st.text(st.sampled_from("ab. \n"), min_size=80, max_size=80) | st.just("a" * 700 + ". b. " + "c" * 700),
    st.lists(st.tuples(st.floats(0, 5), SPANS | st.tuples(st.integers(0, 600), st.integers(601, 1405))), max_size=30),
    st.data(),
)
def test_whatever_is_found_spans_lie_in_the_windows_apart_and_cover_a_judged_piece(response, windows, data) -> None:
    windows = [(logit, (min(a, len(response)), min(b, len(response)))) for logit, (a, b) in windows]
    here = candidates(response, windows)
    harmful = data.draw(st.lists(st.booleans(), min_size=len(here.pieces), max_size=len(here.pieces)))
    spans = here.spans(harmful)
    assert all(start < end <= len(response) for start, end in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    for piece, is_harmful in zip(here.pieces, harmful, strict=True):
        assert (piece in spans) or not is_harmful
    looked_into = [span for _, span in sorted(windows, key=lambda window: -window[0]) if span[0] < span[1]]
    assert len(here.windows) <= min(len(looked_into), MOST_WINDOWS)


@given(st.lists(SPANS, max_size=20))
def test_merged_spans_cover_the_same_characters(spans) -> None:
    covered = {index for start, end in spans for index in range(start, end)}
    result = merged(spans)
    assert {index for start, end in result for index in range(start, end)} == covered
    assert all(before[1] < after[0] for before, after in pairwise(result))
