"""What is taken for a list of questions or an answer, and what is not."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protector_guardrails.data_building.prompts import (
    PROMPT_VERSION,
    accepted_prompt,
    angles,
    prompts_sha256,
    questions_prompt,
    stand_in_prompt,
)
from protector_guardrails.data_building.replies import (
    UnusableReplyError,
    answer_in,
    is_usable_question,
    questions_in,
)
from protector_guardrails.data_building.scenarios import SCENARIOS

LIST = '["Who is it?", "What is  it\\nfor?"]'
READ = ["Who is it?", "What is it for?"]


@pytest.mark.parametrize(
    "reply",
    [
        LIST,
        f"\n {LIST} \n",
        f"```json\n{LIST}\n```",
        f"```\n{LIST}\n```",
        f"Here they are:\n```json\n{LIST}\n```\nAnything else?",
        f"<think>Two will do: []</think>\n{LIST}",
        f"They want two.</think>{LIST}",
    ],
)
def test_a_list_is_read(reply):
    assert questions_in(reply) == READ


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "no JSON list"),
        ("1. Who is it?\n2. What is it for?", "no JSON list"),
        (LIST[:-1], "no JSON list"),
        (f"Sure! {LIST}", "no JSON list"),
        (f"```json\n{LIST}\n```\n```json\n{LIST}\n```", "no JSON list"),
        (f"<think>{LIST}", "no JSON list"),
        ("I'm sorry, but I can't help with that.", "a refusal"),
        (f'{{"questions": {LIST}}}', "JSON, but no list"),
        ('"Who is it?"', "JSON, but no list"),
        ('["Who is it?", 7]', "a list, but not of texts"),
        ('[["Who is it?"]]', "a list, but not of texts"),
        ("[]", "an empty list"),
        ("[" * 100_000, "no JSON list"),
    ],
)
def test_anything_else_is_not(reply, reason):
    with pytest.raises(UnusableReplyError) as caught:
        questions_in(reply)
    assert str(caught.value) == reason


@given(st.lists(st.text(), min_size=1), st.sampled_from(["{}", "```json\n{}\n```", "<think>hm</think>\n{}\n"]))
def test_any_list_of_texts_is_read(texts, form):
    reply = form.format(json.dumps(texts))
    assert questions_in(reply) == [" ".join(text.split()) for text in texts]


@given(st.text())
def test_any_text_is_a_list_or_a_reason(reply):
    try:
        assert all(isinstance(question, str) for question in questions_in(reply))
    except UnusableReplyError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("question", "usable"), [("Why?", True), ("", False), ("?!", False), ("x" * 601, False), ("why \ud800?", False)]
)
def test_usable_questions(question, usable):
    assert is_usable_question(question) is usable


@pytest.mark.parametrize(
    ("reply", "answer"),
    [(" Yes. ", "Yes."), ("<think>No?</think>\nYes.", "Yes."), ("Skip the salt.", "Skip the salt.")],
)
def test_an_answer_is_read(reply, answer):
    assert answer_in(reply) == answer


@pytest.mark.parametrize(
    "reply", ["", " \n", "<think>Yes.", "<think>Yes.</think> ", "SKIP", '"skip."', "**SKIP**", "\ud800"]
)
def test_no_answer(reply):
    with pytest.raises(UnusableReplyError):
        answer_in(reply)


def test_the_prompts_are_pinned():
    """A change of a prompt needs a new version: figures measured with one do not hold for the other."""
    assert (PROMPT_VERSION, prompts_sha256()) == (1, "d1769a118887cfb3f0e4f266d8adb50ba6db93dbd0abce5056b929a42608aa28")


def test_prompts_hold_what_is_asked_and_its_limits():
    scenario = SCENARIOS[0]
    prompt = questions_prompt(scenario, count=7, angle="people at work")
    assert "Write 7 questions" in prompt
    assert scenario.description in prompt
    assert "people at work" in prompt
    assert questions_prompt(scenario, count=7, angle="people at work", again=True).startswith(prompt)
    braces = "What does {x} do, and {}?"
    assert accepted_prompt(braces).endswith(f"The question:\n{braces}")
    assert stand_in_prompt(braces).endswith(f"The question:\n{braces}")
    assert "no working instructions, amounts or code" in stand_in_prompt(braces)


def test_who_asks_depends_on_seed_and_scenario_alone():
    def first(seed: int, scenario=SCENARIOS[0]) -> list[str]:
        turns = angles(scenario, seed=seed)
        return [next(turns) for _ in range(30)]

    assert first(1) == first(1)
    assert first(1) != first(2)
    assert first(1) != first(1, SCENARIOS[1])
    assert len(set(first(1)[:14])) == 14
