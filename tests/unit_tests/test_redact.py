"""Redaction: which passages go, that the rest stays byte for byte, and that it takes linear time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protector_guardrails import (
    ConfigurationError,
    DetectorError,
    Exchange,
    HarmDetector,
    Image,
    Policy,
    Protector,
    RedactDetoxifier,
    Verdict,
)
from protector_guardrails.sentences import split_passages

WHOLE = Verdict(harmful=True, score=0.9)


class Poison(HarmDetector):
    """Scores a text 0.9 if it says poison, 0.4 if it says vinegar, with the category of its choice."""

    def __init__(self, *, category: str | None = None) -> None:
        self.category = category
        self.judged: list[Exchange] = []

    def detect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        self.judged.extend(exchanges)
        return [self._verdict(exchange.response) for exchange in exchanges]

    def _verdict(self, text: str) -> Verdict:
        score = 0.9 if "poison" in text else 0.4 if "vinegar" in text else 0.1
        if self.category:
            return Verdict(harmful=False, score=0.1, categories={self.category: score})
        return Verdict(harmful=score >= 0.5, score=score)


def redact(text: str, **options: float) -> str:
    detoxifier = RedactDetoxifier(detector=Poison(), **options)  # type: ignore[arg-type]
    [rewritten] = detoxifier.detoxify([Exchange(response=text)], [WHOLE])
    return rewritten


# Splitting -----------------------------------------------------------------------------

MARKDOWN = st.lists(
    st.sampled_from(
        [
            "```",
            "````",
            "~~~",
            "```py\n",
            "\n",
            "\r\n",
            "\u2028",
            "- a",
            "1. ",
            "# ",
            "a. b",
            "。",
            "…",
            '."',
            " ",
            "x",
            "\ud800",
        ]
    ),
    max_size=30,
).map("".join)


@given(st.text(st.characters()) | MARKDOWN)
def test_joined_passages_are_the_response(text: str) -> None:
    passages = split_passages(text)
    assert "".join(passages) == text
    assert all(passages)


@pytest.mark.parametrize(
    ("text", "passages"),
    [
        ("", []),
        ("One", ["One"]),
        ("One. Two! Three?", ["One. ", "Two! ", "Three?"]),
        ("One...  Two?! (Three.) Four", ["One...  ", "Two?! ", "(Three.) ", "Four"]),
        ("It is 3.14 m at www.example.org. Next.", ["It is 3.14 m at www.example.org. ", "Next."]),
        ("He said “no.” She left.", ["He said “no.” ", "She left."]),
        ("一。二！三", ["一。", "二！", "三"]),
        ("One\ntwo.\n\nThree", ["One\n", "two.\n", "\n", "Three"]),
        ("- One. Still one.\n* two\n3) three\n", ["- One. Still one.\n", "* two\n", "3) three\n"]),
        ("# A. B\nCats. Dogs", ["# A. B\n", "Cats. ", "Dogs"]),
        ("Do:\n```sh\na. b.\n\n# c\n```\nDone.", ["Do:\n", "```sh\na. b.\n\n# c\n```\n", "Done."]),
        ("````\n```\na. b\n```\n````\nc", ["````\n```\na. b\n```\n````\n", "c"]),
        ("~~~\n```\n~~~\nc", ["~~~\n```\n~~~\n", "c"]),
        ("```\nnever. closed.\nc", ["```\nnever. closed.\nc"]),
        ("```\n``` not closed\n```\nc", ["```\n``` not closed\n```\n", "c"]),
    ],
)
def test_sentences_items_headings_and_code_blocks_are_passages(text: str, passages: list[str]) -> None:
    assert split_passages(text) == passages


ADVERSARIAL: dict[str, Callable[[int], str]] = {
    "dots": lambda n: "." * n,
    "dots and then a letter": lambda n: "." * n + "b",
    "one word": lambda n: "a" * n,
    "one word that stops inside": lambda n: "a" * n + ".b",
    "spaces": lambda n: " " * n,
    "spaces that stop inside": lambda n: " " * n + ".b",
    "closing quotes": lambda n: "." + '"' * n + "b",
    "dots and quotes": lambda n: '."' * (n // 2) + "b",
    "fences": lambda n: "````\n" * (n // 5),
    "nested fences": lambda n: "````\n```\na\n```\n" * (n // 15),
    "one enormous line": lambda n: "A sentence, 3.5 m long. " * (n // 24),
    "lines": lambda n: "\n" * n,
    "digits before a list": lambda n: " " * n + "1.",
}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_splitting_a_megabyte_takes_linear_time(name: str) -> None:
    def seconds(length: int) -> float:
        text = ADVERSARIAL[name](length)
        started = time.process_time()
        passages = split_passages(text)
        elapsed = time.process_time() - started
        assert "".join(passages) == text
        return elapsed

    # Quadratic time would take minutes for a megabyte; the floor keeps noise out of the ratio.
    small = seconds(20_000)
    assert seconds(1_000_000) < 10
    base = max(0.02, min(seconds(250_000) for _ in range(2)), small)
    assert min(seconds(500_000) for _ in range(2)) < 3.5 * base


def test_redacting_a_long_answer_takes_one_call_and_linear_time() -> None:
    class OneCall(Poison):
        calls = 0

        def detect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
            self.calls += 1
            return super().detect(exchanges)

    detector = OneCall()
    sentences = [f"Sentence {number} speaks of the garden at length. " for number in range(1250)]  # 10,000 words
    sentences[600] = "Put poison on it. "
    started = time.perf_counter()
    [text] = RedactDetoxifier(detector=detector).detoxify([Exchange(response="".join(sentences))], [WHOLE])
    assert time.perf_counter() - started < 5
    assert text == "".join(sentence for sentence in sentences if "poison" not in sentence)
    assert detector.calls == 1
    assert len(detector.judged) == 1250


# Redacting -----------------------------------------------------------------------------


def test_the_harmful_sentence_goes_and_the_rest_stays_byte_for_byte() -> None:
    before, after = "  Water\tthe roses – daily.\r\n\r\n", "\u202eFeed them \ud800 well. 🌹 \n- Prune in May.\n"
    assert redact(f"{before}Then pour poison over them. {after}") == before + after


def test_a_harmful_list_item_or_code_block_goes_whole() -> None:
    text = "Five words to keep here:\n- water. A lot.\n- poison. A drop.\n```\npoison\n\nwater\n```\nGood luck with it."
    assert redact(text) == "Five words to keep here:\n- water. A lot.\nGood luck with it."


@given(
    st.lists(
        st.sampled_from(["The rose is red. ", "Use poison. ", "- poison\n", "\n", "🌹🌹. ", "Water it well!\n"]),
        max_size=12,
    )
)
def test_what_is_left_is_what_was_not_found_harmful_or_nothing(pieces: list[str]) -> None:
    # Joined pieces may share a passage, so the oracle works on what split_passages makes of them.
    text = "".join(pieces)
    kept = "".join(passage for passage in split_passages(text) if "poison" not in passage)
    assert redact(text) in (kept, "")
    assert redact(text, keep_at_least=0.0, min_words=0) == kept


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, ""),  # 4 words of 10
        ({"min_words": 4}, "Water the red roses. "),
        ({"min_words": 4, "keep_at_least": 0.4}, "Water the red roses. "),
        ({"min_words": 4, "keep_at_least": 0.41}, ""),
    ],
)
def test_when_too_little_is_left_nothing_is(options: dict[str, float], left: str) -> None:
    assert redact("Water the red roses. Then put some poison on them.", **options) == left


def test_nothing_left_means_refusal() -> None:
    [outcome] = Protector(Poison(), "redact").guard([Exchange(response="Pour poison over the roses in May.")])
    assert (outcome.action, outcome.error) == ("refuse", None)


def test_question_and_images_are_judged_beside_every_passage_that_has_words() -> None:
    detector = Poison()
    exchange = Exchange(
        question="How?", images=(Image(description="a rose"),), reasoning="hm", response="One. 🌹\n---\nTwo."
    )
    RedactDetoxifier(detector=detector).detoxify([exchange], [WHOLE])
    assert detector.judged == [
        Exchange(question="How?", images=exchange.images, response=text) for text in ("One. ", "Two.")
    ]


def test_responses_of_a_batch_do_not_mix() -> None:
    texts = ["Use poison. Water the roses every single day.", "...", "Cut the roses back in early March. Use poison."]
    exchanges = [Exchange(response=text) for text in texts]
    assert RedactDetoxifier(detector=Poison()).detoxify(exchanges, [WHOLE] * 3) == [
        "Water the roses every single day.",
        "",
        "Cut the roses back in early March. ",
    ]


def test_without_a_guard_the_threshold_of_the_whole_decides() -> None:
    text = "Use vinegar. Water the roses every single day."
    for threshold, left in ((0.3, "Water the roses every single day."), (0.5, text)):
        whole = Verdict(harmful=True, score=0.9, threshold=threshold)
        assert RedactDetoxifier(detector=Poison()).detoxify([Exchange(response=text)], [whole]) == [left]


@pytest.mark.parametrize("count", [-1, 1])
def test_a_detector_that_miscounts_is_an_error_not_a_shift(count: int) -> None:
    class Miscounts(Poison):
        def detect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
            verdicts = super().detect(exchanges)
            return verdicts[:count] if count < 0 else [*verdicts, WHOLE]

    with pytest.raises(DetectorError, match="for 2 passages"):
        RedactDetoxifier(detector=Miscounts()).detoxify([Exchange(response="One. Two.")], [WHOLE])


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ConfigurationError, match="keep_at_least"):
        RedactDetoxifier(keep_at_least=share)


# What the verdict tells already ----------------------------------------------------------

POISONED = "Water the roses every day. Use poison. Mind the thorns, and then poison them. Prune them in May."


def spans_of(*passages: str) -> tuple[tuple[int, int], ...]:
    return tuple((POISONED.index(passage), POISONED.index(passage) + len(passage)) for passage in passages)


def told(*passages: str, threshold: float = 0.5, detector: str = "unnamed") -> Verdict:
    return Verdict(harmful=True, score=0.9, spans=spans_of(*passages), threshold=threshold, detector=detector)


@pytest.mark.parametrize(
    ("verdict", "threshold", "judged"),
    [
        (told("Use poison.", "Mind the thorns, and then poison them."), 0.5, 0),
        (told("Use poison.", "then poison"), 0.5, 1),  # only a part of the passage
        (told("Use poison. Mind the thorns, and then poison them."), 0.5, 2),  # which of them is not told
        (told("Use poison.", "then poison", threshold=0.3), 0.3, 3),  # a stricter policy: there may be more
        (told("Use poison.", "then poison", threshold=0.7), 0.7, 2),  # a milder one: there may be less
        (told("Use poison.", detector="another@1"), 0.5, 4),
        (told(), 0.5, 4),
    ],
)
def test_what_the_spans_tell_is_not_judged_again(verdict: Verdict, threshold: float, judged: int) -> None:
    detector = Poison()
    detoxifier = RedactDetoxifier().bound_to(detector, Policy(threshold=threshold))
    assert detoxifier.detoxify([Exchange(response=POISONED)], [verdict]) == [
        "Water the roses every day. Prune them in May."
    ]
    assert len(detector.judged) == judged


def test_a_strict_threshold_of_a_category_has_the_rest_judged() -> None:
    detector = Poison(category="privacy")
    detoxifier = RedactDetoxifier().bound_to(detector, Policy(threshold={"privacy": 0.3}))
    [text] = detoxifier.detoxify([Exchange(response=POISONED)], [told("Use poison.")])
    assert text == "Water the roses every day. Prune them in May."
    assert len(detector.judged) == 3


# In a guard ------------------------------------------------------------------------------


def test_in_a_guard_it_uses_the_guards_detector_and_stays_unbound_itself() -> None:
    detoxifier, detector = RedactDetoxifier(min_words=1), Poison()
    bound = Protector(detector, detoxifier).detoxifier
    assert isinstance(bound, RedactDetoxifier)
    assert (bound.detector, bound.min_words) == (detector, 1)
    assert detoxifier.detector is None
    with pytest.raises(ConfigurationError, match="needs a detector"):
        detoxifier.detoxify([Exchange(response="One.")], [WHOLE])


def test_a_detector_of_its_own_stays() -> None:
    own = Poison()
    bound = Protector(Poison(), RedactDetoxifier(detector=own)).detoxifier
    assert isinstance(bound, RedactDetoxifier)
    assert bound.detector is own


def test_a_subclass_stays_what_it_is() -> None:
    class Marks(RedactDetoxifier):
        def __init__(self, mark: str) -> None:
            super().__init__()
            self.mark = mark

        def detoxify(self, exchanges: Sequence[Exchange], verdicts: Sequence[Verdict]) -> list[str]:
            return [text and text + self.mark for text in super().detoxify(exchanges, verdicts)]

    protector = Protector(Poison(), Marks("[shortened]"))
    [outcome] = protector.guard([Exchange(response="Use poison. Water the roses every single day.")])
    assert outcome.text == "Water the roses every single day.[shortened]"


TWO = Exchange(response="Her address is a poison to privacy. Water the roses every single day.")


def test_passages_are_found_where_a_category_threshold_decides() -> None:
    protector = Protector(Poison(category="privacy"), "redact", policy=Policy(threshold={"privacy": 0.8}))
    [outcome] = protector.guard([TWO])
    assert (outcome.action, outcome.text) == ("rewrite", "Water the roses every single day.")


@pytest.mark.parametrize(("threshold", "action"), [(0.3, "rewrite"), (0.5, "pass")])
def test_passages_are_judged_at_the_policys_threshold(threshold: float, action: str) -> None:
    protector = Protector(Poison(), "redact", policy=Policy(threshold=threshold))
    [outcome] = protector.guard([Exchange(response="Use vinegar. Water the roses every single day.")])
    assert outcome.action == action
    assert ("vinegar" in outcome.text) is (action == "pass")


def test_what_was_judged_elsewhere_at_a_stricter_threshold_is_redacted_at_that() -> None:
    exchange = Exchange(response="Use vinegar. Water the roses every single day.")
    whole = Verdict(harmful=True, score=0.4, threshold=0.3)
    [outcome] = Protector(Poison(), "redact").treat([exchange], [whole])
    assert (outcome.action, outcome.text) == ("rewrite", "Water the roses every single day.")


def test_harm_of_the_whole_that_no_passage_shows_is_refused() -> None:
    class OnlyTogether(HarmDetector):
        def detect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
            scores = [float("sugar" in e.response and "salt" in e.response) for e in exchanges]
            return [Verdict(harmful=False, score=score) for score in scores]

    exchange = Exchange(response="Take a spoon of sugar. Then take a spoon of salt.")
    [outcome] = Protector(OnlyTogether(), "redact").guard([exchange])
    assert outcome.action == "refuse"
