"""What a classification head says, as P(harm)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.types import HarmCategory

if TYPE_CHECKING:
    from numpy.typing import NDArray

Polarity = Literal["harm", "safe"]


@dataclass(frozen=True, slots=True)
class Head:
    """How the logits of a head are read.

    Attributes:
        polarity: What a single logit stands for; None for a head with several labels.
        harmful: Indices of the harmful labels; empty for a single logit.
        multi_label: Whether labels are independent of each other (sigmoid), or one excludes the others (softmax).
        categories: Hazard to the indices of the harmful labels that name it.
    """

    polarity: Polarity | None
    harmful: tuple[int, ...]
    multi_label: bool
    categories: Mapping[str, tuple[int, ...]]

    def scores(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """P(harm) of each row of logits (rows, labels).

        One logit: its sigmoid, or one minus it where it stands for safety. Labels that exclude
        each other: the sum over the harmful ones. Independent labels: the largest of the harmful
        ones, since such labels overlap and to treat them as independent events (``1 - prod(1 - p)``)
        would count one insult several times.
        """
        if self.polarity is not None:
            return _sigmoid(logits[:, 0] if self.polarity == "harm" else -logits[:, 0])
        return self._combined(logits, self.harmful)

    def category_scores(self, logits: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """The same for the labels of each hazard."""
        return {name: self._combined(logits, indices) for name, indices in self.categories.items()}

    def _combined(self, logits: NDArray[np.float64], indices: Sequence[int]) -> NDArray[np.float64]:
        chosen = list(indices)
        if self.multi_label:
            highest: NDArray[np.float64] = _sigmoid(logits[:, chosen]).max(axis=1)
            return highest
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        total: NDArray[np.float64] = (weights[:, chosen].sum(axis=1) / weights.sum(axis=1)).clip(0.0, 1.0)
        return total


def check_head_options(polarity: object, harmful_labels: object) -> None:
    """Refuse what suits no head at all.

    Raises:
        ConfigurationError: If an option has no meaning, or both are given.
    """
    if polarity is not None and polarity not in get_args(Polarity):
        raise ConfigurationError(f"polarity must be 'harm' or 'safe', not {polarity!r}")
    if harmful_labels is None:
        return
    if polarity is not None:
        raise ConfigurationError("polarity is for a single logit, harmful_labels for several labels: give one of them")
    if isinstance(harmful_labels, str) or not isinstance(harmful_labels, Sequence) or not harmful_labels:
        raise ConfigurationError(f"harmful_labels must be a list of names or indices, not {harmful_labels!r}")
    wrong = [label for label in harmful_labels if isinstance(label, bool) or not isinstance(label, str | int)]
    if wrong:
        raise ConfigurationError(f"harmful_labels must be names or indices, not {wrong[0]!r}")


def read_head(
    labels: Sequence[str],
    *,
    polarity: Polarity | None,
    harmful_labels: Sequence[str | int] | None,
    multi_label: bool,
) -> Head:
    """How to read a head with these labels. Nothing is guessed.

    Args:
        labels: Names of its outputs, in order.
        polarity: What a single logit stands for.
        harmful_labels: Which of several labels are harmful, by name or index.
        multi_label: Whether several labels may hold at once.

    Raises:
        ConfigurationError: If the options do not suit the head.
    """
    if len(labels) == 1:
        if polarity is None:
            raise ConfigurationError(
                "the checkpoint has a single logit, and nothing in it says what that stands for: pass polarity='harm' "
                "or polarity='safe' (the paper's detectors: 'safe')"
            )
        return Head(polarity, (), multi_label=False, categories={})
    listed = ", ".join(f"{index}: {name!r}" for index, name in enumerate(labels))
    if harmful_labels is None:
        raise ConfigurationError(
            f"the checkpoint has {len(labels)} labels ({listed}): say which are harmful with harmful_labels=[...]"
        )
    chosen = {_index(label, labels, listed) for label in harmful_labels}
    if len(chosen) == len(labels) and not multi_label:
        raise ConfigurationError("all labels are in harmful_labels, so that everything would be harmful")
    categories: dict[str, tuple[int, ...]] = {}
    for index in sorted(chosen):
        hazard = category_of(labels[index])
        if hazard is not None:
            categories[hazard.value] = (*categories.get(hazard.value, ()), index)
    return Head(None, tuple(sorted(chosen)), multi_label, categories)


def category_of(label: str) -> HarmCategory | None:
    """The hazard that a label names: by its value, its wording or a benchmark's name; None if there is none.

    Example:
        >>> category_of("Sexual-Content"), category_of("LABEL_1")
        (<HarmCategory.SEXUAL_CONTENT: 'sexual_content'>, None)
    """
    bare = _letters(label)
    for hazard in HarmCategory:
        if bare in (_letters(hazard.value), _letters(hazard.label)):
            return hazard
    return HarmCategory.from_benchmark(label)


def _index(label: str | int, labels: Sequence[str], listed: str) -> int:
    if isinstance(label, int) and 0 <= label < len(labels):
        return label
    matching = [index for index, name in enumerate(labels) if name == label]
    if len(matching) != 1:
        raise ConfigurationError(f"harmful_labels names {label!r}, which is not one label of the checkpoint ({listed})")
    return matching[0]


def _letters(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalpha())


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    decay = np.exp(-np.abs(logits))
    result: NDArray[np.float64] = np.where(logits >= 0, 1.0, decay) / (1.0 + decay)
    return result
