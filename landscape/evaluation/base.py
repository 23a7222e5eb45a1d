"""What a benchmark is to the rest: problems, prompts, verdicts on replies, and scores with their errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from landscape.data.tables import Table
    from landscape.evaluation.prompts import Template

Verdict = dict[str, Any]
"""What was found about one reply; JSON types."""


@dataclass(frozen=True)
class Reply:
    """What the model wrote, and whether it was still writing when the tokens ran out."""

    text: str
    truncated: bool


@dataclass(frozen=True)
class HubSet:
    """Where a benchmark's data is on the hub: the set, its configuration, and the split."""

    path: str
    config: str | None
    split: str


@dataclass(frozen=True)
class Score:
    """One number of an evaluation.

    Attributes:
        num_examples: problems behind it.
        details: counts that explain it.
    """

    name: str
    value: float
    standard_error: float
    num_examples: int
    details: Mapping[str, Any] = field(default_factory=dict)


class Problem(Protocol):
    """One question of a benchmark; ``key`` is unique in it."""

    @property
    def key(self) -> str:
        """Unique in its benchmark."""
        ...


P = TypeVar("P", bound=Problem)


class Benchmark(Protocol[P]):
    """Asks a model questions and judges what it replies.

    A problem is put ``parts`` times: as several samples of one prompt, or as the turns of a conversation.
    """

    @property
    def name(self) -> str:
        """Its name on the command line."""
        ...

    @property
    def hub(self) -> HubSet:
        """Where its data is, if no file is given."""
        ...

    @property
    def parts(self) -> int:
        """Replies a problem."""
        ...

    def settings(self) -> dict[str, Any]:
        """What of its options changes a reply or a verdict."""
        ...

    def read(self, table: Table) -> list[P]:
        """The problems in a table; `UsageError` naming the row where one is no problem of this benchmark."""
        ...

    def prompt(self, problem: P, template: Template, earlier: Sequence[str]) -> str:
        """What the model reads before it writes the next reply."""
        ...

    def judge(self, problem: P, replies: Sequence[Reply], part: int) -> Verdict:
        """What is to be said about one of the replies."""
        ...

    def scores(self, problems: Sequence[P], verdicts: Mapping[str, Sequence[Verdict]]) -> list[Score]:
        """The numbers, the most important first, from each problem's verdicts, by key."""
        ...


def mean_score(name: str, values: Sequence[float], details: Mapping[str, Any] | None = None) -> Score:
    """A mean over problems with s/√n; of values 0 and 1 that is the binomial √(p(1−p)/(n−1))."""
    count = len(values)
    if count == 0:
        return Score(name, math.nan, math.nan, 0, details or {})
    mean = math.fsum(values) / count
    spread = math.fsum((value - mean) ** 2 for value in values)
    error = math.sqrt(spread / (count - 1) / count) if count > 1 else math.nan
    return Score(name, mean, error, count, details or {})
