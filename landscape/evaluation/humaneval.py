"""HumanEval: functions from their docstrings, right where the set's tests pass (Chen et al. 2021, arXiv 2107.03374)."""

from __future__ import annotations

import math
import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from landscape.errors import UsageError
from landscape.evaluation.base import HubSet, Reply, Score, Verdict, mean_score
from landscape.evaluation.sandbox import Limits, run_program

if TYPE_CHECKING:
    from landscape.data.tables import Table
    from landscape.evaluation.prompts import Template

_HUB = HubSet("openai/openai_humaneval", None, "test")
PROMPTINGS = ("instruction", "completion")
"""As a request in the run's own template, or the bare beginning of the function, for models that continue text."""

_REQUEST = (
    "Complete this Python function. Reply with the whole function in one block of code.\n\n```python\n{code}\n```"
)
_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@")
"""Where a function is over when a model goes on writing (as in the paper, section 2.1, with decorators)."""
_AT = (1, 10, 100)
_LIMITS = Limits()


@dataclass(frozen=True)
class Function:
    """The beginning of a function, its name, and a program that defines ``check(candidate)``."""

    key: str
    prompt: str
    entry_point: str
    test: str


@dataclass(frozen=True)
class HumanEval:
    """Writes functions, and runs them against their tests under limits.

    Args:
        samples: replies a problem, from which pass@k is estimated.
        prompting: one of `PROMPTINGS`.
    """

    samples: int = 1
    prompting: str = "instruction"
    limits: Limits = _LIMITS
    name: str = "humaneval"
    hub: HubSet = _HUB

    @property
    def parts(self) -> int:
        """As many as samples."""
        return self.samples

    def settings(self) -> dict[str, Any]:
        """The limits decide too: a slow solution is a wrong one."""
        return {"prompting": self.prompting, **self.limits.settings()}

    def read(self, table: Table) -> list[Function]:
        """From columns task_id, prompt, entry_point and test."""
        names = ("task_id", "prompt", "entry_point", "test")
        problems = [Function(*row) for row in zip(*(table.column(name, name) for name in names), strict=True)]
        for row, problem in enumerate(problems):
            if not all(isinstance(value, str) for value in vars(problem).values()):
                raise UsageError(
                    f"--data: {table.place(row)} is no HumanEval problem: {', '.join(names)} must be texts"
                )
        return problems

    def prompt(self, problem: Function, template: Template, earlier: Sequence[str]) -> str:
        """A request in the run's template, or the function's beginning."""
        if self.prompting == "completion":
            return problem.prompt
        return template.prompt([_REQUEST.format(code=problem.prompt.strip())])

    def judge(self, problem: Function, replies: Sequence[Reply], part: int) -> Verdict:
        """Runs the reply; `SandboxError` where no program can be run here."""
        outcome = run_program(program(problem, replies[part].text), self.limits)
        return {"outcome": outcome.outcome, "error": outcome.error, "guards": list(outcome.guards)}

    def scores(self, problems: Sequence[Function], verdicts: Mapping[str, Sequence[Verdict]]) -> list[Score]:
        """pass@k for k = 1, 10 and 100 as far as there are samples; details: outcomes, and the guards that held."""
        outcomes = {problem.key: [one["outcome"] for one in verdicts[problem.key]] for problem in problems}
        guards = [frozenset(one["guards"]) for problem in problems for one in verdicts[problem.key]]
        details = {
            "outcomes": dict(Counter(outcome for found in outcomes.values() for outcome in found)),
            "guards": sorted(frozenset.intersection(*guards)) if guards else [],
            "samples": self.samples,
        }
        return [
            mean_score(
                f"pass@{k}", [pass_at_k(self.samples, one.count("passed"), k) for one in outcomes.values()], details
            )
            for k in _AT
            if k <= self.samples
        ]


def program(problem: Function, reply: str) -> str:
    """The reply as a function, with the problem's imports and helpers before it and its tests after."""
    block = _BLOCK.search(reply)
    code = block[1] if block else reply
    if re.search(rf"^[ \t]*def\s+{re.escape(problem.entry_point)}\b", code, re.MULTILINE):
        # The prompt ends in a docstring, so it defines the function too; the later definition holds.
        function = f"{problem.prompt}\n\n{textwrap.dedent(code)}"
    else:
        function = problem.prompt + _body(code)
    return f"{function}\n\n{problem.test}\n\ncheck({problem.entry_point})\n"


def _body(code: str) -> str:
    """A function's body, indented, without what the model wrote after it."""
    code = "\n" + code.lstrip("\n")
    end = min((position for stop in _STOPS if (position := code.find(stop, 1)) > 0), default=len(code))
    body = code[1:end]
    first = next((line for line in body.splitlines() if line.strip()), "")
    if first and not first.startswith(("    ", "\t")):
        # A decoder may lose leading spaces of the first line alone.
        rest = body[body.index(first) + len(first) :]
        indented = not rest.strip() or all(line[:1].isspace() for line in rest.splitlines() if line.strip())
        body = f"    {first.strip()}{rest}" if indented else textwrap.indent(body, "    ")
    return body


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The chance that one of k samples is right, unbiased: 1 − C(n−c, k)/C(n, k) (Chen et al. 2021, eq. 1).

    Raises:
        ValueError: more than ``samples`` are asked for.
    """
    if k > samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, there are {samples}")
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)
