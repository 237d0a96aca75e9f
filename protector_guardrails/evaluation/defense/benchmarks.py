"""The benchmarks that are named on the command line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.defense.benign_sets import BENIGN_SETS
from protector_guardrails.evaluation.defense.cases import Benchmark, Case
from protector_guardrails.evaluation.defense.directory import read_own, stem
from protector_guardrails.evaluation.defense.figstep import FIGSTEP_PROMPT, read_figstep
from protector_guardrails.evaluation.defense.folders import Found, sha256_over
from protector_guardrails.evaluation.defense.mm_safetybench import read_mm_safetybench


@dataclass(slots=True, kw_only=True)
class LoadedBenchmark:
    """A benchmark whose questions were read; its images are still on disk only.

    Attributes:
        name: What it is called in results.
        path: Its folder or file.
        sha256: Over the names and contents of the files of questions and of the images of :attr:`cases`.
        problems: What is missing or unusable, in sentences with counts.
        cases: The cases.
    """

    name: str
    path: Path
    sha256: str
    problems: list[str]
    cases: tuple[Case, ...]

    def __iter__(self) -> Iterator[Case]:
        """The cases, in a fixed order."""
        return iter(self.cases)

    def __len__(self) -> int:
        """How many cases there are."""
        return len(self.cases)


def open_benchmarks(
    specs: Sequence[str],
    *,
    limit: int | None = None,
    kinds: Collection[str] | None = None,
    figstep_prompt: str = FIGSTEP_PROMPT,
) -> list[Benchmark]:
    """Read benchmarks.

    ========================== ===================================================================
    Spec                       What is read
    ========================== ===================================================================
    ``mm-safetybench:FOLDER``  :func:`~.mm_safetybench.read_mm_safetybench`
    ``figstep:FOLDER``         :func:`~.figstep.read_figstep`
    ``mm-vet:PATH``            :func:`~.benign_sets.read_mm_vet`
    ``mmmu:PATH``              :func:`~.benign_sets.read_mmmu`
    ``scienceqa:FOLDER``       :func:`~.benign_sets.read_scienceqa`
    ``PATH``                   our own form, a folder or a file: :func:`~.directory.read_own`
    ========================== ===================================================================

    Args:
        specs: What to read.
        limit: Only so many cases of each benchmark; they are taken from its scenarios in turn.
        kinds: Only attacks that are asked in one of these ways; benign questions are always asked.
        figstep_prompt: What is asked with a picture of FigStep.

    Returns:
        The benchmarks. Ids of cases differ across all of them.

    Raises:
        ConfigurationError: If one cannot be read, nothing is left to ask, or an id occurs twice.

    Example:
        >>> [benchmark] = open_benchmarks(["figstep:FigStep"], kinds=["image"])  # doctest: +SKIP
        >>> benchmark.problems  # doctest: +SKIP
        []
    """
    if not specs:
        raise ConfigurationError(
            "no benchmark was named: name attacks with --benchmark, harmless questions with --benign"
        )
    if limit is not None and limit < 1:
        raise ConfigurationError(f"limit is {limit}: it must be 1 or more")
    readers: dict[str, Callable[[Path], Found]] = {
        "mm-safetybench": read_mm_safetybench,
        "figstep": lambda folder: read_figstep(folder, prompt=figstep_prompt),
        **BENIGN_SETS,
    }
    read: list[tuple[str, Path, Found]] = []
    for spec in specs:
        known, path = _split(spec, readers)
        found = readers[known](path) if known else read_own(path)
        read.append((known or stem(path.resolve()), path, found))
    _check_kinds(kinds, [found for _, _, found in read])
    benchmarks: list[Benchmark] = []
    owners: dict[str, str] = {}
    for told, path, found in read:
        cases = _limited([case for case in found.cases if _is_wanted(case, kinds)], limit)
        if not cases:
            raise ConfigurationError(f"{path} has no questions of the kinds {', '.join(sorted(kinds or ()))}")
        name = _free_name(told, {benchmark.name for benchmark in benchmarks})
        _check_ids(cases, name, owners)
        images = [case.image for case in cases if case.image is not None]
        benchmarks.append(
            LoadedBenchmark(
                name=name,
                path=path,
                sha256=sha256_over(found.root, [*found.files, *images]),
                problems=list(found.problems),
                cases=tuple(cases),
            )
        )
    return benchmarks


def _split(spec: str, readers: Collection[str]) -> tuple[str | None, Path]:
    before, colon, after = spec.partition(":")
    if colon and before in readers:
        known, path = before, Path(after)
    else:
        known, path = None, Path(spec)
        if colon and not path.exists() and "/" not in before:
            raise ConfigurationError(f"there is no benchmark {before!r}; there are: {', '.join(readers)}")
    if not path.exists():
        raise ConfigurationError(
            f"{path} does not exist: a benchmark is PATH, or NAME:PATH with NAME one of {', '.join(readers)}"
        )
    return known, path


def _is_wanted(case: Case, kinds: Collection[str] | None) -> bool:
    return kinds is None or case.benign or case.kind in kinds


def _check_kinds(kinds: Collection[str] | None, found: Sequence[Found]) -> None:
    if kinds is None:
        return
    there = sorted({case.kind for one in found for case in one.cases if not case.benign})
    if unknown := sorted(set(kinds).difference(there)):
        raise ConfigurationError(f"no attack is of the kind {unknown[0]!r}; there are: {', '.join(there) or 'none'}")


def _limited(cases: Sequence[Case], limit: int | None) -> list[Case]:
    """The first cases of every scenario in turn, so that a few of them speak for the whole."""
    if limit is None or limit >= len(cases):
        return list(cases)
    turns: Counter[str] = Counter()
    order: list[tuple[int, int]] = []
    for position, case in enumerate(cases):
        order.append((turns[case.scenario], position))
        turns[case.scenario] += 1
    return [cases[position] for position in sorted(position for _, position in sorted(order)[:limit])]


def _free_name(name: str, taken: Collection[str]) -> str:
    number = 1
    while (free := name if number == 1 else f"{name} {number}") in taken:
        number += 1
    return free


def _check_ids(cases: Sequence[Case], name: str, owners: dict[str, str]) -> None:
    for case in cases:
        owner = owners.setdefault(case.id, name)
        if owner != name:
            raise ConfigurationError(
                f"the id {case.id[:80]!r} occurs in {owner} and in {name}: give the cases ids that differ"
            )
    counts = Counter(case.id for case in cases)
    [(most, count)] = counts.most_common(1)
    if count > 1:
        raise ConfigurationError(f"the id {most[:80]!r} occurs {count} times in {name}: give the cases ids that differ")
