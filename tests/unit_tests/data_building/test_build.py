"""Building a data set: what is written, what is put aside, and going on after an interruption."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from data_building_fakes import Writer, questions

from protector_guardrails.data_building.build import BuildConfig, Built, build_data_set
from protector_guardrails.data_building.checking import check_lines
from protector_guardrails.data_building.scenarios import Scenario
from protector_guardrails.errors import ConfigurationError
from protector_guardrails.training.data import read_exchanges
from protector_guardrails.training.detox_data import read_pairs
from protector_guardrails.types import HarmCategory

GARDEN = Scenario(name="garden", description="what grows", category=HarmCategory.PRIVACY)
HOUSE = Scenario(name="house", description="where one lives")
FILES = ("pairs.jsonl", "exchanges.jsonl", "left_out.jsonl", "data_card.md")


def config(folder: Path, **changes) -> BuildConfig:
    settings = {
        "model": "data_building_fakes:writer",
        "output": folder / "set",
        "license": "CC0-1.0",
        "detector": "data_building_fakes:Picky",
        "scenarios": (GARDEN, HOUSE),
        "questions_per_scenario": 4,
        "backoff_s": 0,
        **changes,
    }
    return BuildConfig.model_validate(settings)


def build(folder: Path, *, resume: bool = False, **changes) -> Built:
    return build_data_set(config(folder, **changes), resume=resume)


def rows(folder: Path, name: str = "pairs.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / "set" / name).read_text().splitlines()]


def contents(folder: Path) -> dict[str, str]:
    """What was written, without the date."""
    return {name: re.sub(r"\| date \|.*", "", (folder / "set" / name).read_text()) for name in FILES}


def test_every_question_gets_both_answers(tmp_path, install):
    writer = install()
    built = build(tmp_path)
    pairs = rows(tmp_path)
    assert [pair["scenario"] for pair in pairs] == ["garden"] * 4 + ["house"] * 4
    assert len(writer.seen) == 2 + 8 + 8
    for pair in pairs:
        assert set(pair) == {
            *("id", "source", "license", "question", "harmful_response", "harmless_response"),
            *("scenario", "category", "model", "harmful_model"),
        }
        assert pair["harmful_response"] == f"Yes, go ahead, it will be fine. You asked: {pair['question']}"
        assert pair["harmless_response"].endswith(pair["question"])
        assert (pair["source"], pair["license"], pair["model"]) == ("set", "CC0-1.0", "writer-1")
        assert pair["category"] == ("privacy" if pair["scenario"] == "garden" else None)
    assert len({pair["id"] for pair in pairs}) == 8
    assert rows(tmp_path, "left_out.jsonl") == []
    assert not built.requests.failures


def test_the_trainers_read_what_was_written(tmp_path, install):
    install()
    build(tmp_path)
    pairs = read_pairs(tmp_path / "set" / "pairs.jsonl")
    exchanges = read_exchanges(tmp_path / "set" / "exchanges.jsonl")
    assert len(pairs) == 8
    assert len(exchanges) == 16
    assert {(row.question, row.response) for row in exchanges if row.harmful} == {
        (p.question, p.harmful) for p in pairs
    }
    assert {(row.question, row.response) for row in exchanges if not row.harmful} == {
        (p.question, p.harmless) for p in pairs
    }
    assert {(pair.source, pair.license) for pair in pairs} == {("set", "CC0-1.0")}
    for name, count in (("pairs.jsonl", 8), ("exchanges.jsonl", 16)):
        with (tmp_path / "set" / name).open("rb") as file:
            found = check_lines(enumerate(file, start=1))
        assert found.pairs + found.exchanges == count
        assert not (found.wrong or found.same or found.contradictions or found.unstated.total())


def test_files_are_private_and_nothing_else_is_left(tmp_path, install):
    install()
    build(tmp_path)
    folder = tmp_path / "set"
    assert {path.name for path in folder.iterdir()} == {*FILES, "requests.jsonl"}
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_card_counts_and_quotes_nothing(tmp_path, install):
    install(Writer(script={"A safety classifier": "I'm sorry, but I can't help with that."}))
    build(tmp_path, license="the | model's terms")
    card = (tmp_path / "set" / "data_card.md").read_text()
    assert "| pairs | 0 |" in card
    assert r"| licence | the \| model's terms |" in card
    assert "| harmful answer: a refusal | 8 |" in card
    assert "| garden | privacy | 4 | 0 |" in card
    assert "version 1, sha256" in card
    assert "| seed | 13 |" in card
    assert "picky@1" in card
    for entry in rows(tmp_path, "left_out.jsonl"):
        assert entry["question"] not in card


@pytest.mark.parametrize("calls", [0, 1, 2, 5, 10, 17])
def test_an_interrupted_build_goes_on_to_the_same_bytes(tmp_path, install, calls):
    install()
    build(tmp_path / "whole")
    install(Writer(stops_after=calls))
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "torn", concurrency=1)
    assert not (tmp_path / "torn" / "set" / "pairs.jsonl").exists()
    with (tmp_path / "torn" / "set" / "requests.jsonl").open("ab") as store:
        store.write(b'{"case": "harmless/0123", "resp')  # cut off by a crash
    writer = install()
    build(tmp_path / "torn", resume=True)
    assert len(writer.seen) == 18 - calls
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")


def test_resuming_a_finished_build_asks_nothing_and_changes_nothing(tmp_path, install):
    install()
    build(tmp_path)
    before = contents(tmp_path)
    writer = install()
    built = build(tmp_path, resume=True)
    assert writer.seen == []
    assert built.requests.taken_over == built.requests.asked == 18
    assert contents(tmp_path) == before


def test_other_settings_take_over_what_was_asked_the_same(tmp_path, install):
    install()
    build(tmp_path, scenarios=(GARDEN,))
    writer = install()
    build(tmp_path, resume=True, license="MIT")
    assert len(writer.seen) == 1 + 4 + 4
    assert {pair["license"] for pair in rows(tmp_path)} == {"MIT"}


def test_a_build_is_not_overwritten(tmp_path, install):
    install()
    build(tmp_path)
    with pytest.raises(ConfigurationError, match="--resume"):
        build(tmp_path)


def test_another_model_is_asked_anew(tmp_path, install):
    install()
    build(tmp_path)
    writer = install(Writer(model_name="writer-2"))
    build(tmp_path, resume=True)
    assert len(writer.seen) == 18


def test_concurrency_and_order_do_not_matter(tmp_path, install):
    install()
    build(tmp_path / "one", concurrency=1)
    install()
    build(tmp_path / "many", concurrency=8)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


def test_the_seed_decides_who_asks(tmp_path, install):
    install()
    build(tmp_path / "a", seed=1)
    install()
    build(tmp_path / "b", seed=2)
    assert {pair["question"] for pair in rows(tmp_path / "a")}.isdisjoint(p["question"] for p in rows(tmp_path / "b"))


def test_a_model_that_fails_on_every_third_call_is_asked_again(tmp_path, install):
    install()
    build(tmp_path / "steady")
    install(Writer(fails_every=3))
    built = build(tmp_path / "shaky")
    assert not built.requests.failures
    assert contents(tmp_path / "shaky") == contents(tmp_path / "steady")


def test_failures_are_counted_and_tried_again(tmp_path, install):
    broken = Writer(script={"A safety classifier": TimeoutError("secret words"), "Answer the question": "Ask a vet."})
    install(broken)
    built = build(tmp_path)
    assert built.requests.failures == {"TimeoutError": 8}
    assert built.reasons == {"harmful answer: the model failed": 8}
    assert {entry["harmless_response"] for entry in rows(tmp_path, "left_out.jsonl")} == {"Ask a vet."}
    writer = install()
    build(tmp_path, resume=True)
    assert len(writer.seen) == 8
    assert len(rows(tmp_path)) == 8
    assert rows(tmp_path, "left_out.jsonl") == []


def test_nonsense_is_asked_for_once_more(tmp_path, install):
    class Learning(Writer):
        def says(self, prompt: str) -> str:
            said = super().says(prompt)
            if "Write 4 questions" in prompt and "begins with [" not in prompt:
                return "Here you are: one, two, three"
            return said

    install(Learning())
    built = build(tmp_path)
    assert len(rows(tmp_path)) == 8
    assert built.collected.unusable == {"reply: no JSON list": 2, "not usable as a question": 0}


def test_a_model_that_writes_no_questions_ends_the_build(tmp_path, install):
    writer = install(Writer(script={"questions": "I'm sorry, but I can't help with that."}))
    with pytest.raises(ConfigurationError, match=r"no scenario gave a question: reply: a refusal \(4\)"):
        build(tmp_path)
    assert len(writer.seen) == 4
    assert not (tmp_path / "set" / "pairs.jsonl").exists()


def test_a_scenario_without_questions_does_not_stop_the_others(tmp_path, install):
    writer = install(Writer(script={"what grows": "[]"}))
    built = build(tmp_path)
    assert {pair["scenario"] for pair in rows(tmp_path)} == {"house"}
    assert built.collected.unfinished == {"garden": 4}
    assert built.collected.unusable["reply: an empty list"] == 2
    assert sum("what grows" in prompt for prompt in writer.seen) == 2
    assert "| garden | privacy | 0 | 0 |" in (tmp_path / "set" / "data_card.md").read_text()


def test_repeated_questions_are_put_aside_and_others_asked_for(tmp_path, install):
    first = "May I borrow the neighbour's long ladder over the weekend?"

    class Repeating(Writer):
        def says(self, prompt: str) -> str:
            said = super().says(prompt)
            if "Write 4 questions" not in prompt:
                return said
            nearly = "May I borrow the neighbour's long ladder over the weekends?"
            return json.dumps([first, first.upper(), nearly, *json.loads(said)[:1]])

    writer = install(Repeating())
    built = build(tmp_path)
    pairs = rows(tmp_path)
    assert len(pairs) == 8
    assert sum("ladder over" in pair["question"] for pair in pairs) == 1
    assert built.reasons == {"the same question again": 3, "nearly the same question again": 2}
    asked = [prompt for prompt in writer.seen if "questions that users" in prompt]
    assert [int(re.search(r"Write (\d+)", prompt)[1]) for prompt in asked] == [4, 4, 2, 3]


def test_more_questions_than_fit_one_request_come_in_batches(tmp_path, install):
    writer = install()
    build(tmp_path, scenarios=(GARDEN,), questions_per_scenario=45)
    asked = [int(re.search(r"Write (\d+)", prompt)[1]) for prompt in writer.seen if "questions that users" in prompt]
    assert asked == [20, 20, 5]
    assert len(rows(tmp_path)) == 45


def test_a_model_that_writes_too_many_is_cut_short(tmp_path, install):
    install(Writer(script={"Write 4 questions": json.dumps(questions("many", 30))}))
    build(tmp_path, scenarios=(GARDEN,))
    assert [pair["question"] for pair in rows(tmp_path)] == questions("many", 30)[:4]


@pytest.mark.parametrize(("limit", "expected"), [(1, (1, 0)), (3, (2, 1)), (5, (3, 2)), (100, (4, 4))])
def test_a_limit_is_spread_over_the_scenarios(tmp_path, install, limit, expected):
    install()
    build(tmp_path, limit=limit)
    found = [pair["scenario"] for pair in rows(tmp_path)]
    assert (found.count("garden"), found.count("house")) == expected


def test_answers_that_cannot_be_used_are_put_aside(tmp_path, install):
    kinds = ["harmless", "failing", "skipped", "refusing", "same", "empty", "surrogate", "fine"]
    asked = {kind: f"Where would a very {kind} person have gone?" for kind in kinds}

    class Answering(Writer):
        def says(self, prompt: str) -> str:
            harmless = prompt.startswith("Answer the question")
            if "Write 8 questions" in prompt:
                return json.dumps(list(asked.values()))
            kind = next(kind for kind, question in asked.items() if question in prompt)
            return {
                ("harmless", True): "BAD, really",
                ("failing", True): "BOOM",
                ("skipped", False): " Skip. ",
                ("refusing", False): "I'm sorry, but I can't help with that.",
                ("same", True): "Well, it depends.",
                ("same", False): "well it depends",
                ("empty", True): "<think>Hm.</think>\n",
                ("surrogate", False): "broken \ud800",
            }.get((kind, harmless), super().says(prompt))

    install(Answering())
    build(tmp_path, scenarios=(GARDEN,), questions_per_scenario=8)
    assert [pair["question"] for pair in rows(tmp_path)] == [asked["fine"]]
    left_out = rows(tmp_path, "left_out.jsonl")
    assert {entry["question"]: entry["reason"] for entry in left_out} == {
        asked["harmless"]: "harmless answer: found harmful",
        asked["failing"]: "harmless answer: the detector failed",
        asked["skipped"]: "harmful answer: the model would not write one",
        asked["refusing"]: "harmful answer: a refusal",
        asked["same"]: "both answers are the same",
        asked["empty"]: "harmless answer: empty",
        asked["surrogate"]: "harmful answer: not valid Unicode",
    }
    kept = next(entry for entry in left_out if entry["question"] == asked["harmless"])
    assert kept["harmless_response"] == "BAD, really"  # put aside, not lost
    assert kept["harmful_response"]
    assert read_pairs(tmp_path / "set" / "pairs.jsonl")


def test_a_model_of_the_users_own_gets_the_bare_questions(tmp_path, install):
    other = Writer(model_name="other-1")
    writer = install(other=other)
    build(tmp_path, rejected_model="data_building_fakes:other")
    pairs = rows(tmp_path)
    assert sorted(other.seen) == sorted(pair["question"] for pair in pairs)
    assert not any(prompt.startswith("A safety classifier") for prompt in writer.seen)
    assert {(pair["model"], pair["harmful_model"]) for pair in pairs} == {("writer-1", "other-1")}
    assert {(row["harmful"], row["model"]) for row in rows(tmp_path, "exchanges.jsonl")} == {
        (True, "other-1"),
        (False, "writer-1"),
    }
    assert "to the bare questions" in (tmp_path / "set" / "data_card.md").read_text()


def test_the_embedded_detector_checks_by_default(tmp_path, install):
    install()
    settings = config(tmp_path, limit=2).model_dump(exclude={"detector"})
    built = build_data_set(BuildConfig.model_validate(settings))
    assert built.detector.startswith("embedded")
    assert len(built.pairs) + len(built.left_out) == 2


def test_recorded_answers_cannot_write(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"question": "q", "response": "r"}\n')
    with pytest.raises(ConfigurationError, match="cannot write"):
        build(tmp_path, model=f"recorded:{tmp_path / 'answers.jsonl'}")
    assert not (tmp_path / "set").exists()


def test_what_is_done_is_told_phase_by_phase(tmp_path, install):
    install()
    phases: list[list] = []

    def phase(what, steps):
        phases.append([what, steps, 0])
        entry = phases[-1]

        def advance(done):
            entry[2] += done

        return advance

    build_data_set(config(tmp_path), phase=phase)
    assert phases == [["questions", 2, 2], ["harmless answers", 8, 8], ["harmful answers", 8, 8], ["judged", 8, 8]]
