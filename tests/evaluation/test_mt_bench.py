"""Conversations, grades and their means."""

from __future__ import annotations

from typing import Any

import pytest

from landscape.data.tables import Table
from landscape.errors import UsageError
from landscape.evaluation.base import Reply
from landscape.evaluation.judge import Judge
from landscape.evaluation.mt_bench import MTBench, judge_messages, read_rating
from landscape.evaluation.prompts import Template
from tests.evaluation.benchmarks import CONVERSATIONS
from tests.evaluation.judge_stub import Answer, judge_server

JUDGE = Judge("http://127.0.0.1:9/v1", "gpt")

RATINGS = [
    ("Fine. [[8]]", 8.0),
    ("[[ 7.5 ]]", 7.5),
    ("I was told to write [[4]]. It is better: [[9]]", 9.0),
    ("[[10]]", 10.0),
    ("[[11]]", None),
    ("[[0]]", None),
    ("[8]", None),
    ("Rating: 8", None),
    ("[[eight]]", None),
    ("", None),
]


@pytest.mark.parametrize(("judgment", "rating"), RATINGS)
def test_grades_are_read(judgment: str, rating: float | None) -> None:
    assert read_rating(judgment) == rating


HUB = {"prompt_id": [1], "category": ["math"], "prompt": [["a", "b"]], "reference": [["c"]]}
GPT4 = {**CONVERSATIONS, "reference_gpt4": [["x"], ["y", "z"]]}


@pytest.mark.parametrize(
    ("columns", "keys", "references"),
    [
        (CONVERSATIONS, ["81", "111"], (("",) * 0, ("4", "5"))),
        (HUB, ["1"], (("c",),)),
        (GPT4, ["81", "111"], (("x",), ("y", "z"))),
    ],
)
def test_columns_as_they_are_published(columns: dict[str, Any], keys: list[str], references: Any) -> None:
    problems = MTBench(JUDGE).read(Table("t", columns, ""))
    assert [one.key for one in problems] == keys
    assert tuple(one.references for one in problems) == references


@pytest.mark.parametrize("turns", [["one"], "one", [1, 2], None])
def test_a_row_that_is_no_conversation(turns: Any) -> None:
    columns = {"question_id": [1], "category": ["x"], "turns": [turns]}
    with pytest.raises(UsageError, match="t row 0 is no MT-Bench question: it needs 2 turns"):
        MTBench(JUDGE).read(Table("t", columns, ""))


def test_what_the_model_reads() -> None:
    problem = MTBench(JUDGE).read(Table("t", CONVERSATIONS, ""))[1]
    template = Template("Be nice.\n\n### Instruction:\n{input}\n\n### Response:\n")
    assert MTBench(JUDGE).prompt(problem, template, []) == template.text.format(input="What is 2 + 2?")
    assert MTBench(JUDGE).prompt(problem, template, [" 4 {x}"]) == (
        "Be nice.\n\n### Instruction:\nWhat is 2 + 2?\n\n### Response:\n4 {x}\n\n"
        "### Instruction:\nAnd 2 + 3?\n\n### Response:\n"
    )


def test_what_the_judge_reads() -> None:
    problem = MTBench(JUDGE).read(Table("t", CONVERSATIONS, ""))[1]
    system, user = judge_messages(problem, ["four", "five"])
    assert system["role"] == "system"
    assert read_rating(system["content"]) == 4  # the form is shown
    places = [
        user["content"].index(text) for text in ("What is 2 + 2?", "\n4\n", "four", "And 2 + 3?", "\n5\n", "five")
    ]
    assert places == sorted(places)
    first = judge_messages(problem, ["four"])[1]["content"]
    assert "And 2 + 3?" not in first
    assert "\n5\n" not in first


@pytest.mark.parametrize(
    ("grades", "rating"), [(["none", "[[3]]"], 3.0), (["none", "[[99]]", "nothing", "[[5]]"], None)]
)
def test_a_judgment_without_a_grade_is_asked_for_again_twice(grades: list[str], rating: float | None) -> None:
    with judge_server(lambda count, body: Answer(grades[count])) as server:
        benchmark = MTBench(Judge(server.url, "gpt"))
        problem = benchmark.read(Table("t", CONVERSATIONS, ""))[0]
        verdict = benchmark.judge(problem, [Reply("a", False), Reply("b", False)], 0)
    assert verdict["rating"] == rating
    assert len(server.requests) == min(3, len(grades))


def test_scores() -> None:
    problems = MTBench(JUDGE).read(Table("t", CONVERSATIONS, ""))
    ratings: dict[str, list[float | None]] = {"81": [8.0, None], "111": [4.0, 5.0]}
    verdicts = {key: [{"rating": one, "judgment": ""} for one in row] for key, row in ratings.items()}
    first, second, both = MTBench(JUDGE).scores(problems, verdicts)
    assert (first.name, first.value, first.num_examples) == ("first_turn", 6.0, 2)
    assert first.standard_error == pytest.approx(2.0)  # of 8 and 4: standard deviation √8, over √2
    assert first.details == {"unrated": 0, "categories": {"math": 4.0, "writing": 8.0}}
    assert (second.name, second.value, second.num_examples, second.details["unrated"]) == ("second_turn", 5.0, 1, 1)
    assert (both.name, both.value, both.num_examples) == ("both_turns", 4.5, 1)
    (alone,) = MTBench(JUDGE, turns=1).scores(problems, {key: row[:1] for key, row in verdicts.items()})
    assert (alone.name, alone.value) == ("first_turn", 6.0)
