"""Reading the final number of a worked answer."""

from __future__ import annotations

from decimal import Decimal

import pytest

from landscape.data.tables import Table
from landscape.errors import UsageError
from landscape.evaluation.base import Reply
from landscape.evaluation.gsm8k import GSM8K, extract_answer

ANSWERS = [
    ("2+2=4\n#### 4", "4", "marked"),
    ("#### $1,234.50 in total, or 7 a day", "1234.50", "marked"),
    ("####-3", "-3", "marked"),
    ("#### - $5", "-5", "marked"),
    ("#### 4\nQ: and 5?\n#### 9", "4", "marked"),
    ("#### none of 12", "12", "last"),
    ("The answer is: 42.", "42", "last"),
    ("He pays $1,000, then 20%", "20", "last"),
    ("1,000,", "1000", "last"),
    ("it is .5", ".5", "last"),
    ("it fell to -7", "-7", "last"),
    ("it is 12-5", "5", "last"),
    ("x2", "2", "last"),
    ("no idea", None, "none"),
    ("####", None, "none"),
    ("", None, "none"),
]


@pytest.mark.parametrize(("text", "number", "found"), ANSWERS)
def test_the_number_and_how_it_was_found(text: str, number: str | None, found: str) -> None:
    answer = extract_answer(text)
    assert (answer.number, answer.found) == (None if number is None else Decimal(number), found)


def table(answer: object) -> Table:
    return Table("gsm8k.jsonl", {"question": ["How many?", "And?"], "answer": ["#### 1", answer]}, "", first_line=1)


@pytest.mark.parametrize("answer", ["5", None, "#### five", 5])
def test_a_row_without_a_marked_number_is_no_problem(answer: object) -> None:
    with pytest.raises(UsageError, match=r"gsm8k\.jsonl line 2 is no GSM8K problem: its answer has no '#### number'"):
        GSM8K().read(table(answer))


REPLIES = [("#### 18.0", True), ("18", True), ("#### 17", False), ("#### 18 or #### 17", True), ("", False)]


@pytest.mark.parametrize(("reply", "right"), REPLIES)
def test_numbers_are_compared_and_not_texts(reply: str, right: bool) -> None:
    problem = GSM8K().read(table("#### 18"))[1]
    assert GSM8K().judge(problem, [Reply(reply, False)], 0)["correct"] is right


def test_scores_with_a_binomial_error() -> None:
    problems = GSM8K().read(Table("t", {"question": ["?"] * 10, "answer": ["#### 1"] * 10}, ""))
    replies = ["#### 1"] * 3 + ["1"] + ["2"] * 5 + ["-"]
    verdicts = {
        problem.key: [GSM8K().judge(problem, [Reply(reply, False)], 0)]
        for problem, reply in zip(problems, replies, strict=True)
    }
    (score,) = GSM8K().scores(problems, verdicts)
    assert (score.name, score.value, score.num_examples) == ("exact_match", 0.4, 10)
    assert score.standard_error == pytest.approx((0.4 * 0.6 / 9) ** 0.5, rel=1e-12)
    assert score.details == {"found": {"marked": 3, "last": 6, "none": 1}, "correct": {"marked": 3, "last": 1}}
