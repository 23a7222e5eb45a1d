"""GSM8K: grade school word problems, right where the final number is (Cobbe et al. 2021, arXiv 2110.14168)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from landscape.errors import UsageError
from landscape.evaluation.base import HubSet, Reply, Score, Verdict, mean_score

if TYPE_CHECKING:
    from landscape.data.tables import Table
    from landscape.evaluation.prompts import Template

_HUB = HubSet("openai/gsm8k", "main", "test")
_NUMBER = r"(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
_MARKED = re.compile(rf"####\s*(-?)\s*\$?\s*({_NUMBER})")
# A hyphen after a word, a number or a bracket is no sign.
_ANY = re.compile(rf"((?<![\w.)])-)?\$?({_NUMBER})")


@dataclass(frozen=True)
class Answer:
    """A number read from a text, and how: ``marked`` (after ####), ``last`` (the last number) or ``none``."""

    number: Decimal | None
    found: str


def extract_answer(text: str) -> Answer:
    """The number after the first ``####``, the form that GSM8K's answers teach; else the last number of the text."""
    if (match := _MARKED.search(text)) and (number := _decimal(match[1] + match[2])) is not None:
        return Answer(number, "marked")
    numbers = [number for found in _ANY.findall(text) if (number := _decimal("".join(found))) is not None]
    return Answer(numbers[-1], "last") if numbers else Answer(None, "none")


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(text.replace(",", ""))
    except InvalidOperation:
        return None


@dataclass(frozen=True)
class WordProblem:
    """A question and the number that answers it."""

    key: str
    question: str
    answer: Decimal


@dataclass(frozen=True)
class GSM8K:
    """Exact match of the final number, without examples in the prompt."""

    name: str = "gsm8k"
    hub: HubSet = _HUB
    parts: int = 1

    def settings(self) -> dict[str, Any]:
        """Nothing to choose."""
        return {}

    def read(self, table: Table) -> list[WordProblem]:
        """From columns question and answer; the answer holds ``#### number``."""
        problems = []
        pairs = zip(table.column("question", "question"), table.column("answer", "answer"), strict=True)
        for row, (question, worked) in enumerate(pairs):
            answer = extract_answer(worked) if isinstance(worked, str) else Answer(None, "none")
            if answer.number is None or answer.found != "marked" or not isinstance(question, str):
                raise UsageError(f"--data: {table.place(row)} is no GSM8K problem: its answer has no '#### number'")
            problems.append(WordProblem(str(row), question, answer.number))
        return problems

    def prompt(self, problem: WordProblem, template: Template, earlier: Sequence[str]) -> str:
        """The question alone."""
        return template.prompt([problem.question])

    def judge(self, problem: WordProblem, replies: Sequence[Reply], part: int) -> Verdict:
        """Equal as numbers: 18, 18.00 and $18 are the same."""
        answer = extract_answer(replies[part].text)
        return {
            "correct": answer.number == problem.answer,
            "answer": None if answer.number is None else str(answer.number),
            "found": answer.found,
        }

    def scores(self, problems: Sequence[WordProblem], verdicts: Mapping[str, Sequence[Verdict]]) -> list[Score]:
        """``exact_match``; details: how many answers were found in which way, and how many of those are right."""
        found = [verdicts[problem.key][0] for problem in problems]
        details = {
            "found": dict(Counter(one["found"] for one in found)),
            "correct": dict(Counter(one["found"] for one in found if one["correct"])),
        }
        return [mean_score("exact_match", [float(one["correct"]) for one in found], details)]
