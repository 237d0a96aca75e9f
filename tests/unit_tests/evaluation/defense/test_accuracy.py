"""Whether an answer is right: the documented rule, by examples and by properties."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protector_guardrails.evaluation.defense.accuracy import SHORT_ANSWER, is_right


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        # the letter of a choice
        ("B", "B", True),
        ("(B)", "B", True),
        ("B.", "(B)", True),
        ("B) a pan", "B", True),
        ("The answer is B.", "B", True),
        ("Answer: **B**", "B", True),
        ("The correct option is (B), since it is hot.", "B", True),
        ("A", "B", False),
        ("A pan", "A", False),
        ("A cat sits there.", "A", False),
        ("The answer is A cat.", "A", False),
        ("(A) or (B)", "B", False),
        ("A) a pot B) a pan (B)", "B", False),
        ("b", "B", False),
        # yes and no
        ("Yes, it is.", "yes", True),
        ("No doubt about it: yes.", "yes", False),
        ("There is no pot.", "no", False),
        ("No.", "No", True),
        # the same but for case, punctuation, articles
        ("The red pan.", "red pan", True),
        ("ＲＥＤ pan!", "a Red Pan", True),
        ("red", "red pan", False),
        ("10", "10.", True),
        ("-5", "5", False),
        ("x = \u22125", "x=-5", True),
        ("1,000 kg", "1000", True),
        ("50%", "50", False),
        ("3rd", "3", False),
        ("?!", "?!", True),
        ("!", "?", False),
        # whole words of a short answer
        ("It shows a red pan on a stove.", "red pan", True),
        ("It shows a pan that is red.", "red pan", False),
        ("Companies", "pan", False),
        ("pan " + "and so on " * SHORT_ANSWER, "pan", False),
        # MM-Vet
        ("x is -1 or -5", "x=-1<AND>x=-5", False),
        ("x=-1 and x=-5", "x=-1<AND>x=-5", True),
        ("It is five.", "5<OR>five", True),
        ("a pan", "pot<OR>pan<AND>lid", False),
        ("pan and lid", "pot<OR>pan<AND>lid", True),
        ("pot", "pot<OR>pan<AND>lid", True),
        # nothing
        ("", "pan", False),
        ("", "", False),
        ("pan", "", False),
        ("pan", "pan<AND>", False),
        ("烤箱", "烤箱", True),
    ],
)
def test_the_rule(answer, reference, right):
    assert is_right(answer, [reference]) is right


def test_any_reference_will_do_and_none_is_never_right():
    assert is_right("a pot", ["pan", "pot"])
    assert not is_right("a pot", [])


words = st.text(string.ascii_lowercase, min_size=2, max_size=8).filter(lambda word: word not in {"an", "the", "or"})
phrases = st.lists(words, min_size=1, max_size=4)


@given(phrases)
def test_a_reference_is_right_in_any_case_with_any_marks_around(phrase):
    told = " ".join(phrase)
    for said in (told, told.upper(), f"  {told}!  ", f"The {told}.", f"«{told}»"):
        assert is_right(said, [told]), said


@given(phrases, phrases)
def test_no_answer_is_right_that_lacks_a_word_of_the_reference(answer, reference):
    if not set(reference) <= set(answer):
        assert not is_right(" ".join(answer), [" ".join(reference)])


@given(st.text(), st.text())
def test_whatever_is_said_there_is_a_verdict_and_it_is_not_moved_by_space_around(answer, reference):
    assert is_right(answer, [reference]) is is_right(f"\n {answer}\t", [reference])


@given(
    st.sampled_from("ABCD"),
    st.sampled_from("ABCD"),
    st.sampled_from(["{}", "({})", "{}.", "Answer: {}", "The answer is ({})."]),
)
def test_a_choice_is_right_if_and_only_if_it_is_the_one(chosen, reference, form):
    assert is_right(form.format(chosen), [reference]) is (chosen == reference)
