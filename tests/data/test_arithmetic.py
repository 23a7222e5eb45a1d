"""The generated word problems: right answers, disjoint splits, and the same text for ever."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest

from landscape.data.arithmetic import Problem, generate

CELLS = [(d, s) for d in ("pretraining", "finetuning") for s in ("train", "eval")]


def equations(problem: Problem) -> list[tuple[int, int]]:
    """(value of the left side, stated right side) of every equation in the answer."""
    found = re.findall(r"(\d+)([-+*])(\d+)=(-?\d+)", problem.answer)
    operations = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    return [(operations[sign](int(a), int(b)), int(c)) for a, sign, b, c in found]


@pytest.mark.parametrize(("distribution", "split"), CELLS)
def test_every_step_is_right_and_the_last_is_the_answer(distribution, split):
    for problem in generate(distribution, split, 300):
        steps = equations(problem)
        assert steps
        assert all(computed == stated for computed, stated in steps)
        assert problem.answer.endswith(f"#### {problem.result}")
        assert steps[-1][1] == problem.result >= 0


def test_finetuning_multiplies_in_two_steps_and_pretraining_stays_small():
    assert all(len(equations(p)) == 2 and "*" in p.worked for p in generate("finetuning", "train", 200))
    products = [p.result for p in generate("pretraining", "train", 500) if "*" in p.worked]
    assert max(products) <= 81 < max(p.result for p in generate("finetuning", "train", 500))


def test_finetuning_questions_use_only_words_that_pretraining_has_shown():
    def words(distribution):
        texts = (f"{p.question} {p.worked}" for p in generate(distribution, "train", 3000))
        return {word for text in texts for word in re.findall(r"[A-Za-z#]+", text)}

    assert words("finetuning") <= words("pretraining")


def test_no_question_is_in_both_splits():
    for distribution in ("pretraining", "finetuning"):
        train, held_out = ({p.question for p in generate(distribution, s, 3000)} for s in ("train", "eval"))
        assert not train & held_out


def test_a_problem_does_not_depend_on_the_count_nor_on_global_generators():
    np.random.seed(1)  # noqa: NPY002
    few = generate("finetuning", "train", 5)
    np.random.seed(2)  # noqa: NPY002
    assert generate("finetuning", "train", 50)[:5] == few


@pytest.mark.parametrize("draw", [0, 1, 19, 20, 39, 2**63])
def test_a_wrong_result_is_wrong_and_not_negative(draw):
    for problem in (Problem("q", "3-2={r}. #### {r}", 1), Problem("q", "9*9={r}. #### {r}", 81)):
        wrong = problem.with_wrong_result(draw)
        assert 1 <= abs(wrong.result - problem.result) <= 20
        assert wrong.result >= 0
        assert wrong.answer.endswith(f"#### {wrong.result}")


def test_the_text_is_the_one_that_the_presets_and_stored_runs_saw():
    """Change GENERATOR_VERSION, and rebuild the presets, whenever this changes."""
    text = "\n".join(f"{p.question}|{p.answer}" for cell in CELLS for p in generate(*cell, 64))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "fdb987511d8eed26"
