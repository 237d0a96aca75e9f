from __future__ import annotations

import asyncio
import gc
import json
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
from asking_fakes import FakeMllm, picture, text_cases

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.defense.answering import HOPELESS, answer_all
from protector_guardrails.evaluation.defense.cases import Answer, Case
from protector_guardrails.evaluation.defense.mllms import load_mllm


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "run" / "answers.jsonl"


def records(store: Path) -> list[dict]:
    return [json.loads(line) for line in store.read_text().splitlines()]


def quick(cases, mllm, store, **options):
    return answer_all(cases, mllm, store=store, **{"backoff_s": 0, **options})


# What is kept ----------------------------------------------------------------------------


def test_every_answer_is_kept_and_read_back_in_the_order_of_the_cases(store):
    cases, done = text_cases(9), []
    log = quick(cases, FakeMllm(), store, progress=done.append)
    answers = list(log.answers())
    assert [answer.case for answer in answers] == [case.id for case in cases]
    assert [answer.response for answer in answers] == [f"answer to c{n}" for n in range(9)]
    assert {answer.model for answer in answers} == {"fake-1"}
    assert all(answer.error is None and answer.elapsed_ms >= 0 for answer in answers)
    assert len(log) == sum(done) == 9 and log.taken_over == 0 and not log.failures and not log.notes
    assert list(log.answers()) == answers  # it can be read again
    line = records(store)[0]
    assert set(line) == {"case", "model", "response", "error", "elapsed_ms", "asked", "by"}
    assert "loaf" not in store.read_text()  # questions are in the benchmark


def test_a_real_chat_model_gets_an_image_or_text(store, tmp_path):
    image = picture(tmp_path / "a.png", size=(30, 10))
    cases = [
        Case(id="t", scenario="s", kind="text", question="How?"),
        Case(id="i", scenario="s", kind="SD", question="What?", image=image),
        Case(id="gone", scenario="s", kind="SD", question="What?", image=tmp_path / "gone.png"),
        Case(id="said", scenario="s", kind="SD", question="What?", description="a loaf"),
    ]
    log = quick(cases, load_mllm("asking_fakes:make_model"), store)
    assert [answer.response for answer in log.answers()] == ["text only: How?", "PNG 30x10: What?", None, None]
    assert log.failures == {"UnreadableImageError": 2}
    assert str(tmp_path) not in store.read_text()


def test_strange_text_survives(store):
    text = "line\u2028two\r\n\ud800 \x00 ünï"
    log = quick(text_cases(1), FakeMllm({"c0": text}), store)
    assert [answer.response for answer in log.answers()] == [text]


def test_empty_answers_are_answers(store):
    log = quick(text_cases(1), FakeMllm({"c0": ""}), store)
    [answer] = log.answers()
    assert answer == Answer(case="c0", model="fake-1", response="", elapsed_ms=answer.elapsed_ms)
    assert quick(text_cases(1), FakeMllm(), store).taken_over == 1


# Failures ----------------------------------------------------------------------------------


def test_failures_are_asked_again_and_then_told(store):
    mllm = FakeMllm(
        {"c0": [ValueError("busy"), "fine"], "c1": [OSError("a\nlong " + "x" * 900)] * 3, "c2": KeyError("quoted text")}
    )
    log = quick(text_cases(4), mllm, store, retries=2)
    answers = list(log.answers())
    assert [answer.response for answer in answers] == ["fine", None, None, "answer to c3"]
    assert [mllm.asked.count(f"c{n}") for n in range(4)] == [2, 3, 3, 1]
    assert answers[1].error == "OSError: a long " + "x" * 193 and answers[1].elapsed_ms is None
    assert log.failures == {"OSError": 1, "KeyError": 1}


def test_pauses_grow(store, monkeypatch):
    pauses, sleep = [], asyncio.sleep

    async def noted(seconds):
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", noted)
    answer_all(text_cases(1), FakeMllm({"c0": ValueError("no")}), store=store, retries=9, backoff_s=0.5)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


def test_an_unreadable_case_is_not_tried_twice(store, tmp_path):
    class Counting(FakeMllm):
        async def answer(self, case):
            self.asked.append(case.id)
            from protector_guardrails.evaluation.defense.images import read_image

            read_image(case.image)
            return "never"

    (tmp_path / "bad.png").write_bytes(b"no image")
    mllm = Counting()
    cases = [Case(id="bad", scenario="s", kind="SD", question="What?", image=tmp_path / "bad.png")]
    assert quick(cases, mllm, store, retries=5).failures == {"UnreadableImageError": 1}
    assert mllm.asked == ["bad"]


def test_what_cannot_work_stops_the_run_and_keeps_what_was_there(store):
    mllm = FakeMllm({"c2": ConfigurationError("no such model")})
    with pytest.raises(ConfigurationError, match="no such model"):
        quick(text_cases(50), mllm, store, concurrency=1)
    assert [record["case"] for record in records(store)] == ["c0", "c1"]
    assert mllm.asked == ["c0", "c1", "c2"]


def test_a_model_that_never_answers_is_given_up(store):
    mllm = FakeMllm({f"c{n}": PermissionError("no key") for n in range(100)})
    with pytest.raises(ConfigurationError, match=f"each of the first {HOPELESS} cases.*PermissionError: no key"):
        quick(text_cases(100), mllm, store, retries=0)
    assert len(mllm.asked) < HOPELESS + 4
    mllm.script["c0"] = "one answer"
    log = quick(text_cases(100), mllm, store.with_name("other.jsonl"), retries=0)
    assert log.failures == {"PermissionError": 99}


def test_an_attempt_takes_no_longer_than_it_may(store):
    class Slow(FakeMllm):
        async def answer(self, case):
            self.asked.append(case.id)
            if len(self.asked) < 3:
                await asyncio.sleep(60)
            return "at last"

    mllm = Slow()
    began = time.perf_counter()
    log = quick(text_cases(1), mllm, store, timeout_s=0.05, retries=1)
    assert log.failures == {"TimeoutError": 1} and time.perf_counter() - began < 10
    assert [answer.response for answer in quick(text_cases(1), mllm, store).answers()] == ["at last"]


# Going on ----------------------------------------------------------------------------------


def test_good_answers_are_taken_over_and_failures_tried_again(store):
    quick(text_cases(6), FakeMllm({"c1": ValueError("no"), "c4": ValueError("no")}), store, retries=0)
    mllm = FakeMllm()
    done = []
    log = quick(text_cases(7), mllm, store, progress=done.append)
    assert sorted(mllm.asked) == ["c1", "c4", "c6"]
    assert (log.taken_over, sum(done), len(log)) == (4, 7, 7) and not log.failures
    assert [answer.response for answer in log.answers()] == [f"answer to c{n}" for n in range(7)]


def test_a_smaller_run_reads_its_own_cases_only(store):
    quick(text_cases(6), FakeMllm(), store)
    log = quick(text_cases(6)[3:5], FakeMllm(), store)
    assert [answer.case for answer in log.answers()] == ["c3", "c4"]
    assert len(log) == log.taken_over == 2


def test_another_model_question_or_image_is_asked_again(store, tmp_path):
    image = picture(tmp_path / "a.png")

    def cases(question="What?"):
        return [Case(id="i", scenario="s", kind="SD", question=question, image=image)]

    quick(cases(), FakeMllm(), store)
    assert quick(cases(), FakeMllm(), store).taken_over == 1
    assert quick(cases("Why?"), FakeMllm(), store).taken_over == 0
    picture(image, "another loaf")
    assert quick(cases("Why?"), FakeMllm(), store).taken_over == 0
    other = FakeMllm()
    other.fingerprint = "f2"
    assert quick(cases("Why?"), other, store).taken_over == 0
    assert len(records(store)) == 4


def test_an_interrupted_run_goes_on(store):
    mllm = FakeMllm({"c5": [KeyboardInterrupt(), "answer to c5"]})
    with pytest.raises(KeyboardInterrupt):
        quick(text_cases(9), mllm, store, concurrency=1)
    assert [record["case"] for record in records(store)] == [f"c{n}" for n in range(5)]
    log = quick(text_cases(9), mllm, store)
    assert log.taken_over == 5
    assert [answer.response for answer in log.answers()] == [f"answer to c{n}" for n in range(9)]


SCRIPT = """
import asyncio, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from asking_fakes import FakeMllm, text_cases
from protector_guardrails.evaluation.defense.answering import answer_all

class Slow(FakeMllm):
    async def answer(self, case):
        await asyncio.sleep(0.01)
        return await super().answer(case)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it, and so its children
answer_all(text_cases(100_000), Slow(), store=Path(sys.argv[2]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_stopped_leaves_a_file_to_go_on_with(store, number):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(store)], stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while (not store.exists() or store.stat().st_size < 2000) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert process.returncode != 0
    assert (b"KeyboardInterrupt" in told) == (number == signal.SIGINT)
    before = store.read_bytes().count(b"\n")
    log = quick(text_cases(before + 10), FakeMllm(), store)
    assert log.taken_over >= before - 4  # workers do not finish in the order of the cases
    assert [answer.case for answer in log.answers()] == [f"c{n}" for n in range(before + 10)]


def test_a_line_cut_off_by_a_crash_is_dropped_with_a_note(store):
    quick(text_cases(3), FakeMllm(), store, concurrency=1)
    whole = store.read_bytes()
    for cut in (1, 20, len(whole.splitlines()[-1])):
        store.write_bytes(whole[:-cut])
        mllm = FakeMllm()
        log = quick(text_cases(3), mllm, store)
        assert mllm.asked == ["c2"]
        assert log.notes == ["The last line of answers.jsonl was cut off; that case was asked again."]
        assert len(records(store)) == 3
        assert quick(text_cases(3), mllm, store).notes == []


@pytest.mark.parametrize("line", ["{", "[]", '{"case": "c0"}', "\ufffe", "4"])
def test_a_file_of_something_else_is_left_alone(store, line):
    store.parent.mkdir()
    store.write_text(line + "\n")
    with pytest.raises(ConfigurationError, match="line 1: not written by this command; move the file away"):
        quick(text_cases(1), FakeMllm(), store)
    assert store.read_text() == line + "\n"


# How it asks ---------------------------------------------------------------------------------


def test_no_more_are_asked_at_a_time_than_told_and_cases_are_not_hoarded(store):
    class Watching(FakeMllm):
        running = most = most_alive = 0

        async def answer(self, case):
            self.running += 1
            self.most = max(self.most, self.running)
            self.most_alive = max(self.most_alive, sum(ref() is not None for ref in alive))
            await asyncio.sleep(0)
            self.running -= 1
            return "yes"

    class Tracked:
        """A case with a weak reference."""

    alive: list[weakref.ref] = []

    def source():
        for case in text_cases(300):
            token = Tracked()
            alive.append(weakref.ref(token))
            yield _with(case, token)
            del token

    for concurrency, own_limit, expected in ((5, None, 5), (5, 2, 2), (1, None, 1)):
        alive.clear()
        mllm = Watching()
        mllm.concurrency = own_limit
        quick(source(), mllm, store.with_name(f"{concurrency}{own_limit}.jsonl"), concurrency=concurrency)
        assert mllm.most == expected
        gc.collect()
        assert mllm.most_alive <= expected + 1  # the generator holds one


class _TrackedCase(Case):
    """A case that something hangs on, to see how long it lives."""

    token: object


def _with(case: Case, token: object) -> Case:
    tracked = _TrackedCase(id=case.id, scenario=case.scenario, kind=case.kind, question=case.question)
    object.__setattr__(tracked, "token", token)
    return tracked


def test_the_rate_is_kept_by_a_fake_clock(store, monkeypatch):
    from langchain_core import rate_limiters

    now, sleep = [1000.0], asyncio.sleep

    async def advance(seconds):
        now[0] += seconds
        await sleep(0)

    monkeypatch.setattr(rate_limiters, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(rate_limiters, "asyncio", SimpleNamespace(sleep=advance))

    class Timed(FakeMllm):
        def __init__(self, script=None):
            super().__init__(script)
            self.times = []

        async def answer(self, case):
            self.times.append(now[0])
            return await super().answer(case)

    mllm = Timed({"c3": [ValueError("no"), "fine"]})
    quick(text_cases(20), mllm, store, rate_limit_per_minute=30, concurrency=4)
    gaps = [later - earlier for earlier, later in zip(mllm.times, mllm.times[1:], strict=False)]
    assert len(mllm.times) == 21  # the repetition counts too
    assert min(gaps) >= 2 - 1e-6  # 30 a minute
    assert mllm.times[-1] - mllm.times[0] < 20 * 2.5 * 1.5


def test_ids_must_differ(store):
    with pytest.raises(ConfigurationError, match="the case id 'c0' occurs twice"):
        quick([*text_cases(2), *text_cases(1)], FakeMllm(), store)


@pytest.mark.parametrize(
    "options",
    [{"concurrency": 0}, {"retries": -1}, {"timeout_s": 0}, {"rate_limit_per_minute": 0}, {"timeout_s": float("nan")}],
)
def test_options_out_of_range_are_refused_by_name(store, options):
    [name] = options
    with pytest.raises(ConfigurationError, match=f"{name} is "):
        quick(text_cases(1), FakeMllm(), store, **options)
    assert not store.exists()


async def test_within_an_event_loop_it_says_what_to_do(store):
    with pytest.raises(ConfigurationError, match=r"await asyncio\.to_thread\(answer_all, \.\.\.\)"):
        quick(text_cases(1), FakeMllm(), store)
    log = await asyncio.to_thread(quick, text_cases(1), FakeMllm(), store)
    assert len(log) == 1


def test_a_store_is_appended_to_at_once(store):
    class Peeking(FakeMllm):
        async def answer(self, case):
            sizes.append(store.stat().st_size)
            return await super().answer(case)

    sizes: list[int] = []
    quick(text_cases(5), Peeking(), store, concurrency=1)
    assert sizes == sorted(set(sizes)) and sizes[0] == 0
