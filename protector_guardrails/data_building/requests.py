"""Putting prompts to the model and keeping every reply, so that an interrupted build goes on where it was.

Asking, retrying and keeping is what an evaluation does with the cases of a benchmark; a
prompt is such a case.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from protector_guardrails.errors import ConfigurationError

if TYPE_CHECKING:
    from protector_guardrails.evaluation.defense.mllms import Mllm

Phase = Callable[[str, int], Callable[[int], None]]
"""Is told what is done now and how many steps it has; gives what is told of steps that are done."""


def load_writer(spec: str) -> Mllm:
    """The model behind a spec, as ``protector evaluate`` takes them; see :func:`~.evaluation.defense.mllms.load_mllm`.

    Raises:
        ConfigurationError: If there is none, or it cannot write.
        MissingExtraError: If a package for it is missing.
    """
    from protector_guardrails.evaluation.defense.mllms import load_mllm
    from protector_guardrails.evaluation.defense.recorded import RecordedMllm

    model = load_mllm(spec)
    if isinstance(model, RecordedMllm):
        raise ConfigurationError(f"model {spec!r}: recorded answers cannot write; name a chat model")
    return model


class Requests:
    """Prompts and replies of a build.

    Args:
        store: File of the replies, ``requests.jsonl``, readable by its owner alone; made if there is none.
        concurrency: Prompts asked at a time.
        rate_limit_per_minute: Prompts asked in a minute at most; None for no limit.
        timeout_s: How long one attempt may take.
        backoff_s: Pause before a failed attempt is repeated.
        phase: Shows how far it is.

    Attributes:
        asked: How many prompts there were.
        taken_over: How many of them had a reply in the store.
        failures: Class of the error to the number of prompts without a reply.
    """

    def __init__(
        self,
        store: Path,
        *,
        concurrency: int,
        rate_limit_per_minute: float | None,
        timeout_s: float,
        backoff_s: float,
        phase: Phase,
    ) -> None:
        self._store = store
        self._concurrency, self._rate_limit = concurrency, rate_limit_per_minute
        self._timeout_s, self._backoff_s = timeout_s, backoff_s
        self._phase = phase
        self.asked = self.taken_over = 0
        self.failures: Counter[str] = Counter()
        os.close(os.open(store, os.O_WRONLY | os.O_CREAT, 0o600))
        store.chmod(0o600)

    def ask(self, model: Mllm, prompts: Mapping[str, str], *, what: str) -> dict[str, str]:
        """The replies to prompts; one that failed has none.

        A reply in the store is taken over if the same model was asked the same under the same
        id; one that failed is asked for again.

        Args:
            model: Who is asked.
            prompts: Id to prompt.
            what: What is asked for, to be shown.

        Raises:
            ConfigurationError: If the model cannot be used; what it said so far is in the store.
        """
        if not prompts:
            return {}
        from protector_guardrails.evaluation.defense.answering import answer_all
        from protector_guardrails.evaluation.defense.cases import Case

        log = answer_all(
            (Case(id=name, scenario=what, kind="text", question=prompt) for name, prompt in prompts.items()),
            model,
            store=self._store,
            concurrency=self._concurrency,
            rate_limit_per_minute=self._rate_limit,
            timeout_s=self._timeout_s,
            backoff_s=self._backoff_s,
            progress=self._phase(what, len(prompts)),
        )
        self.asked += len(prompts)
        self.taken_over += log.taken_over
        self.failures += log.failures
        return {answer.case: answer.response for answer in log.answers() if answer.response is not None}
