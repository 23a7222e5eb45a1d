"""From a reply to a program, and from outcomes to pass@k."""

from __future__ import annotations

from itertools import combinations

import pytest

from landscape.data.tables import Table
from landscape.errors import UsageError
from landscape.evaluation.humaneval import Function, HumanEval, pass_at_k, program
from landscape.evaluation.prompts import Template
from tests.evaluation.benchmarks import FUNCTIONS

ADD, FIRST = HumanEval().read(Table("t", FUNCTIONS, ""))

RIGHT: list[tuple[Function, str]] = [
    (ADD, "    return a + b\n"),
    (ADD, "\n    total = a + b\n    return total\n\n\ndef other(:\n"),
    (ADD, "    return a + b\n# and now\nnonsense("),
    (ADD, " return a + b"),
    (ADD, "return a + b"),
    (ADD, "total = a + b\nreturn total"),
    (ADD, "total = a + b\n    return total"),
    (ADD, "```python\ndef add(a, b):\n    return a + b\n```\nThis adds."),
    (ADD, "Sure!\n```\n    return a + b\n```"),
    (ADD, "```python\ndef add(a, b):\n    return a + b"),
    (ADD, "  def add(a, b):\n      return a + b\n"),
    (ADD, "def helper(a):\n    return a\n\ndef add(a, b):\n    return helper(a) + b\n"),
    (FIRST, "```python\ndef first(xs: List[int]) -> int:\n    return xs[0]\n```"),
    (FIRST, "    return xs[0]"),
]
WRONG: list[tuple[Function, str]] = [
    (ADD, "    return a - b\n"),
    (ADD, ""),
    (ADD, "I cannot."),
    (ADD, "```python\ndef added(a, b):\n    return a + b\n```"),
    (FIRST, "    return xs[1]"),
]


@pytest.mark.parametrize(("problem", "reply"), RIGHT)
def test_right_replies_pass(problem: Function, reply: str) -> None:
    exec(compile(program(problem, reply), "reply", "exec"), {})


@pytest.mark.parametrize(("problem", "reply"), WRONG)
def test_wrong_replies_do_not(problem: Function, reply: str) -> None:
    with pytest.raises((AssertionError, SyntaxError, TypeError)):
        exec(compile(program(problem, reply), "reply", "exec"), {})


@pytest.mark.parametrize("prompting", ["instruction", "completion"])
def test_prompts(prompting: str) -> None:
    template = Template("### Instruction:\n{input}\n\n### Response:\n")
    prompt = HumanEval(prompting=prompting).prompt(ADD, template, [])
    if prompting == "completion":
        assert prompt == ADD.prompt
    else:
        assert prompt.startswith("### Instruction:\nComplete")
        assert ADD.prompt.strip() in prompt
        assert prompt.endswith("\n\n### Response:\n")


@pytest.mark.parametrize(
    ("samples", "correct", "k"), [(5, 2, 1), (5, 2, 3), (6, 1, 2), (4, 0, 2), (4, 4, 4), (7, 3, 5)]
)
def test_pass_at_k_against_every_choice_of_k_samples(samples: int, correct: int, k: int) -> None:
    results = [index < correct for index in range(samples)]
    chosen = [any(results[i] for i in picks) for picks in combinations(range(samples), k)]
    assert pass_at_k(samples, correct, k) == pytest.approx(sum(chosen) / len(chosen), rel=1e-12)


def test_pass_at_k_needs_k_samples() -> None:
    with pytest.raises(ValueError, match="pass@10 needs at least 10 samples, there are 5"):
        pass_at_k(5, 1, 10)


def test_scores() -> None:
    def verdicts(*outcomes: str) -> list[dict[str, object]]:
        return [{"outcome": one, "error": None, "guards": ["limits", "namespaces"]} for one in outcomes]

    half = ["passed", "failed"] * 5
    first, tenth = HumanEval(samples=10).scores(
        [ADD, FIRST], {"T/0": verdicts(*half), "T/1": verdicts(*["timeout"] * 10)}
    )
    assert (first.name, first.value, first.num_examples) == ("pass@1", 0.25, 2)
    # Two problems with 1/2 and 0: their standard deviation is √(1/8).
    assert first.standard_error == pytest.approx((1 / 8 / 2) ** 0.5)
    assert (tenth.name, tenth.value) == ("pass@10", 0.5)
    assert first.details["outcomes"] == {"passed": 5, "failed": 5, "timeout": 10}
    assert first.details["guards"] == ["limits", "namespaces"]


def test_a_row_that_is_no_problem() -> None:
    columns = {**FUNCTIONS, "test": [FUNCTIONS["test"][0], None]}
    with pytest.raises(UsageError, match=r"h\.parquet row 1 is no HumanEval problem"):
        HumanEval().read(Table("h.parquet", columns, ""))
