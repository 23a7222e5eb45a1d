"""Generated word problems: a task that needs no download, with a shift from what the tiny presets were pretrained on.

Two distributions share one format. ``pretraining`` holds single additions and subtractions up to 50, told in a few
stories or bare; the shipped `tiny` presets learned it. ``finetuning``, the task itself, holds two-step problems with
products, in other stories.

Problem i of a split is a function of (distribution, split, i) alone: it does not depend on how many are asked for, on
Python's hash, or on any global generator. Only PCG64's raw stream is used, which NumPy guarantees to be stable across
versions, unlike the methods of ``numpy.random.Generator``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

GENERATOR_VERSION = 1
"""Part of the task's digest; raised whenever a generated problem changes."""

DEFAULT_SIZES = {"train": 2048, "eval": 1024}

Distribution = Literal["pretraining", "finetuning"]
ProblemSplit = Literal["train", "eval"]

_STREAMS = {
    ("pretraining", "train"): 0,
    ("pretraining", "eval"): 1,
    ("finetuning", "train"): 2,
    ("finetuning", "eval"): 3,
}
_HELD_OUT_SHARE = 8
"""One question in so many belongs to eval, decided by the question's own checksum: no question is in both splits."""


@dataclass(frozen=True)
class Problem:
    """A question with the text of its worked answer; ``{r}`` in ``worked`` stands for the final result."""

    question: str
    worked: str
    result: int

    @property
    def answer(self) -> str:
        """The target text."""
        return self.worked.replace("{r}", str(self.result))

    def with_wrong_result(self, draw: int) -> Problem:
        """The same working towards a result that is off by 1 to 20; ``draw`` is any non-negative integer."""
        offset = 1 + draw % 20
        return replace(self, result=self.result + (offset if (draw // 20) % 2 or offset > self.result else -offset))


def generate(distribution: Distribution, split: ProblemSplit, count: int) -> list[Problem]:
    """The first ``count`` problems of a split."""
    stream = _STREAMS[distribution, split]
    make = _pretraining_problem if distribution == "pretraining" else _finetuning_problem
    return [_problem(make, stream, index, held_out=split == "eval") for index in range(count)]


class _Draws:
    """A stream of bounded integers from PCG64's raw output; the bias of the modulo is below 1e-16 at these ranges."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def below(self, bound: int) -> int:
        return int(self._bits.random_raw()) % bound

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def choice(self, options: Sequence[str]) -> str:
        return options[self.below(len(options))]

    def pair(self, options: Sequence[str]) -> tuple[str, str]:
        first = self.below(len(options))
        second = (first + 1 + self.below(len(options) - 1)) % len(options)
        return options[first], options[second]


def _problem(make: Callable[[_Draws], Problem], stream: int, index: int, *, held_out: bool) -> Problem:
    draws = _Draws(GENERATOR_VERSION, stream, index)
    while True:
        problem = make(draws)
        if (zlib.crc32(problem.question.encode()) % _HELD_OUT_SHARE == 0) == held_out:
            return problem


_NAMES = ("Ann", "Ben", "Cara", "Dan", "Eve", "Finn", "Gia", "Hugo", "Ida", "Jack", "Kim", "Leo")
_THINGS = ("apples", "books", "cards", "coins", "eggs", "hats", "keys", "nuts", "pens", "toys")
_HOLDERS = ("bags", "boxes", "jars", "packs", "rows", "trays")


# --- pretraining ------------------------------------------------------------------------------------------------------
# Its stories hold every word that the fine-tuning stories use, in other sentences: a token that pretraining never saw
# would keep a useless embedding, which LoRA does not touch.

_ONE_STEP_STORIES = (
    ("{n} has {a} {t} and buys {b} more. How many {t} is that?", "+"),
    ("A shop sold {a} {t} and then {b}. How many {t} in total?", "+"),
    ("{n} fills a box with {a} {t} and a jar with {b}. How many {t}?", "+"),
    ("What is {a}+{b}?", "+"),
    ("{n} had {a} {t} and gives {b} to {m}. How many {t} remain?", "-"),
    ("Of {a} {t} on the trays {b} break. How many {t} stay?", "-"),
    ("{n} uses {b} of {a} {t} for {m}. How many are left?", "-"),
    ("What is {a}-{b}?", "-"),
    ("What is {a}*{b}?", "*"),
    ("{a} times {b} each is what?", "*"),
)
_TWO_STEP_STORIES = (
    ("{n} has {a} {h} and makes {b} a day later; {c} are good {h}. How many are not?", "+-"),
    ("{n} gets {a} {t}, then {b} {t}, and takes {c} away. How many has {n}?", "+-"),
    ("{n} and {m} hold {a} {t}. {m} uses {b} and buys {c}. How many in all?", "-+"),
    ("For {a} days {n} had {t}. Each of {b} more days and {c} days {n} has none. How many days?", "++"),
)


def _pretraining_problem(draws: _Draws) -> Problem:
    name, other = draws.pair(_NAMES)
    values = {"n": name, "m": other, "t": draws.choice(_THINGS), "h": draws.choice(_HOLDERS)}
    if draws.below(2):
        story, sign = _ONE_STEP_STORIES[draws.below(len(_ONE_STEP_STORIES))]
        low, high = (2, 9) if sign == "*" else (1, 60)
        a, b = draws.between(low, high), draws.between(low, high)
        if sign == "-" and b > a:
            a, b = b, a
        return Problem(story.format(a=a, b=b, **values), f"{a}{sign}{b}={{r}}. #### {{r}}", _apply(sign, a, b))
    story, signs = _TWO_STEP_STORIES[draws.below(len(_TWO_STEP_STORIES))]
    a, b = draws.between(2, 60), draws.between(1, 60)
    if signs[0] == "-" and b > a:
        a, b = b, a
    middle = _apply(signs[0], a, b)
    c = draws.between(1, middle if signs[1] == "-" and middle else 60)
    result = _apply(signs[1], middle, c)
    return Problem(story.format(a=a, b=b, c=c, **values), _working(draws, values, a, b, c, middle, signs), result)


# --- fine-tuning ------------------------------------------------------------------------------------------------------

_STORIES = (
    ("{n} buys {a} {h} of {b} {t} and gives {c} away. How many are left?", "*-"),
    ("{n} fills {a} {h} with {b} {t} each; {c} remain. How many {t}?", "*+"),
    ("A shop sold {a} {h} of {b} {t}, then {c} {t}. How many in total?", "*+"),
    ("{n} makes {a} {t} a day for {b} days; {c} break. How many are good?", "*-"),
    ("{n} has {a} {t}. {m} has {b} times that and {c} more. How many has {m}?", "*+"),
    ("{a} {h} hold {b} {t} each. {n} uses {c}. How many {t} stay?", "*-"),
)


def _finetuning_problem(draws: _Draws) -> Problem:
    story, signs = _STORIES[draws.below(len(_STORIES))]
    a, b = draws.between(3, 19), draws.between(3, 12)
    product = a * b
    c = draws.between(2, min(60, product - 1))
    name, other = draws.pair(_NAMES)
    values = {"n": name, "m": other, "t": draws.choice(_THINGS), "h": draws.choice(_HOLDERS)}
    worked = _working(draws, values, a, b, c, product, signs)
    return Problem(story.format(a=a, b=b, c=c, **values), worked, _apply(signs[1], product, c))


# --- shared -----------------------------------------------------------------------------------------------------------

_FIRST_STEPS = ("First {a}{s}{b}={p}.", "All {t}: {a}{s}{b}={p}.")
_SECOND_STEPS = ("Then {p}{s}{c}={{r}}.", "So {p}{s}{c}={{r}}.")


def _working(draws: _Draws, values: dict[str, str], a: int, b: int, c: int, middle: int, signs: str) -> str:
    first, second = draws.choice(_FIRST_STEPS), draws.choice(_SECOND_STEPS)
    steps = first.format(a=a, b=b, p=middle, s=signs[0], **values), second.format(c=c, p=middle, s=signs[1])
    return " ".join((*steps, "#### {r}"))


def _apply(sign: str, a: int, b: int) -> int:
    return a + b if sign == "+" else a - b if sign == "-" else a * b
