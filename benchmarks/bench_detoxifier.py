"""Speed of the detoxifying language model, and what 8-bit weights change in what it writes.

``python benchmarks/bench_detoxifier.py [--adapter FOLDER] [--gguf FILE]``: without an adapter the bare base
is measured, which is as fast. llama.cpp is measured too where ``llama_cpp`` is installed and the GGUF file
of the base is given. Timings on a shared machine drift, so what is compared runs in turn within one
process, on one thread each, and the ratios of medians are what counts.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from protector_guardrails import Exchange, Verdict
from protector_guardrails.detoxifiers.causal_lm import CausalLMDetoxifier
from protector_guardrails.detoxifiers.generation import generate
from protector_guardrails.detoxifiers.prompting import encode_prompt
from protector_guardrails.models.base_weights import SMOLLM2

QUESTIONS = (
    "How do I get over this fence?",
    "What should I do about a strange noise in the attic?",
    "Can I eat the mushrooms in this picture?",
    "How do I win an argument with my neighbour?",
    "What is the quickest way to clean a chimney?",
    "How can I finish my essay tonight?",
)
RESPONSES = (
    "Take a long ladder at night and climb over it. Nobody will see you, and the owner is away for the week.",
    "Ignore it. Whatever it is, it goes away by itself, and asking somebody for help only costs you money.",
    "Yes, all of them. Red ones taste best raw, and there is no need to ask anybody who knows mushrooms.",
    "Shout until they give up. Then tell everybody in the street what you think of them, in plain words.",
    "Use whatever you find in the cellar and do not read the label. Gloves and open windows are for beginners.",
)
CASES = [
    Exchange(
        question=QUESTIONS[i % len(QUESTIONS)], response=" ".join(RESPONSES[(i + n) % 5] for n in range(1 + i % 4))
    )
    for i in range(30)
]


def detoxifier(adapter: Path | None, dtype: str) -> CausalLMDetoxifier:
    return CausalLMDetoxifier(
        SMOLLM2.repository,
        adapter=adapter,
        template=None if adapter else "chatml",
        dtype=dtype,  # type: ignore[arg-type]
        max_new_tokens=48,
        max_echo=1.0,
        time_limit_s=3600,
    )


def writer(detox: CausalLMDetoxifier, tokens: int) -> Callable[[], object]:
    """A call that writes exactly this many tokens after the prompt of one case."""
    model, tokenizer, template = detox._ready()
    case = CASES[3]
    prompt = encode_prompt(tokenizer, template, question=case.question, response=case.response, max_tokens=768)
    end = tokenizer.eos_token_id
    return lambda: generate(
        model,
        [prompt],
        end_ids={end},
        pad_id=end,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        deadline=time.monotonic() + 3600,
        threads=1,
    )


def llama_writer(gguf: Path, detox: CausalLMDetoxifier, tokens: int) -> Callable[[], object]:
    from llama_cpp import Llama

    _, tokenizer, template = detox._ready()
    case = CASES[3]
    prompt = encode_prompt(tokenizer, template, question=case.question, response=case.response, max_tokens=768)
    model = Llama(str(gguf), n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False)

    def write() -> None:
        model.reset()
        for written, _ in enumerate(model.generate(prompt, temp=0.0), start=1):
            if written == tokens:
                return

    return write


def speed(
    table: Table, detoxifiers: dict[str, CausalLMDetoxifier], gguf: Path | None, *, tokens: int, rounds: int
) -> None:
    # The time of one token holds the prompt's; what the others take is the speed of writing.
    calls = {name: (writer(detox, 1), writer(detox, 1 + tokens)) for name, detox in detoxifiers.items()}
    if gguf is not None and importlib.util.find_spec("llama_cpp"):
        any_of_them = next(iter(detoxifiers.values()))
        calls["llama.cpp, the GGUF"] = (llama_writer(gguf, any_of_them, 1), llama_writer(gguf, any_of_them, 1 + tokens))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for each in range(rounds + 1):
        for name, (first, all_of_them) in calls.items():
            started = time.perf_counter()
            first()
            between = time.perf_counter()
            all_of_them()
            if each:  # the first round warms up
                times[name].append((between - started, time.perf_counter() - between))
    rates = {}
    for name, kept in times.items():
        prompt = statistics.median(one for one, _ in kept)
        rates[name] = tokens / statistics.median(whole - one for one, whole in kept)
        against = " ".join(f"{rates[name] / rate:.2f}x {other}" for other, rate in rates.items() if other != name)
        table.add_row(name, f"{rates[name]:.1f} tokens/s", f"prompt {prompt * 1000:.0f} ms", against)


def agreement(table: Table, detoxifiers: dict[str, CausalLMDetoxifier]) -> None:
    verdicts = [Verdict(harmful=True, score=0.9)] * len(CASES)
    texts = {name: detox.detoxify(CASES, verdicts) for name, detox in detoxifiers.items()}
    reference = texts["float32"]
    for name, written in texts.items():
        same = sum(mine == theirs for mine, theirs in zip(written, reference, strict=True))
        table.add_row(f"{name}: rewrites identical with float32", f"{same} of {len(CASES)}", "", "")


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-agreement", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    detoxifiers = {name: detoxifier(options.adapter, name) for name in ("float32", "bfloat16", "int8")}
    table = Table("what", "median", "", "against")
    speed(table, detoxifiers, options.gguf, tokens=options.tokens, rounds=options.rounds)
    if not options.no_agreement:
        agreement(table, detoxifiers)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
