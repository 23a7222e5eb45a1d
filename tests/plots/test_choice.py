"""What a paper's figure takes from a store with several of everything, and what it says about it."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from landscape.errors import StoreError
from landscape.plots import Choice, CurveSet
from tests.synthetic_runs import run


def chosen(runs, methods=("full", "lora", "mgpo"), required=("lora",)) -> Choice:
    return Choice.of("fig", runs, methods=methods, required=required)


def grid(*settings: dict) -> list:
    return [run(**setting) for setting in settings]


@pytest.mark.parametrize(
    ("settings", "prefer", "value", "words"),
    [
        ([{"learning_rate": 1e-3}], None, 1e-3, "lr = 1e-3"),
        # Most runs.
        (
            [{"learning_rate": 1e-3}, {"learning_rate": 1e-4}, {"learning_rate": 1e-4, "seed": 1}],
            5e-4,
            1e-4,
            "lr = 1e-4 (most runs; also in the store: lr = 1e-3)",
        ),
        # The paper's value beats more runs of another.
        (
            [{"learning_rate": 5e-4}, {"learning_rate": 1e-4}, {"learning_rate": 1e-4, "seed": 1}],
            5e-4,
            5e-4,
            "lr = 5e-4 (as in the paper; also in the store: lr = 1e-4)",
        ),
        # A value that both methods have beats the paper's, which only one has.
        (
            [{"learning_rate": 5e-4}, {"learning_rate": 1e-4}, {"learning_rate": 1e-4, "method": "mgpo"}],
            5e-4,
            1e-4,
            "lr = 1e-4 (most methods; also in the store: lr = 5e-4)",
        ),
        (
            [{"learning_rate": 1e-3}, {"learning_rate": 1e-4}],
            5e-4,
            1e-3,
            "lr = 1e-3 (the largest of equals; also in the store: lr = 1e-4)",
        ),
    ],
)
def test_one_learning_rate_and_why(settings: list[dict], prefer: float | None, value: float, words: str) -> None:
    choice = chosen(grid(*settings)).fix("learning_rate", prefer)
    assert {data.cell.learning_rate for data in choice.runs} == {value}
    assert choice.said[-1] == words


def test_the_choice_does_not_depend_on_order() -> None:
    runs = grid(*({"rank": rank, "seed": seed} for rank in (8, 16, 64) for seed in (0, 1)))
    for order in (runs, runs[::-1]):
        assert chosen(order).fix("rank", 16).said[-1] == "r = 16 (as in the paper; also in the store: r = 8, r = 64)"


def test_full_fine_tuning_stays_when_a_rank_is_chosen() -> None:
    runs = grid({"method": "full"}, {"rank": 8}, {"rank": 64})
    assert {data.method for data in chosen(runs).highest("rank").runs} == {"full", "lora"}
    assert chosen(runs).highest("rank").said[-1] == "r = 64 (the highest of 2)"
    assert {data.method for data in chosen(runs).fix("rank", 8).runs} == {"full", "lora"}


@pytest.mark.parametrize(
    ("settings", "ratio", "left", "words"),
    [
        ([{"rank": 8, "alpha": 8}, {"rank": 64, "alpha": 64}], 1, 2, "α = r"),
        ([{"rank": 8, "alpha": 8}, {"rank": 8, "alpha": 16}], 1, 1, "α = r (1 run with another α left out)"),
        ([{"rank": 8, "alpha": 8}, {"rank": 8, "alpha": 16}], 2, 1, "α = 2r (1 run with another α left out)"),
        ([{"rank": 8, "alpha": 32}, {"rank": 64, "alpha": 32}], 1, 2, "α = 32"),
        ([{"rank": 8, "alpha": 4}, {"rank": 64, "alpha": 32}], 1, 2, "α = 0.5r"),
    ],
)
def test_one_rule_for_alpha(settings: list[dict], ratio: float, left: int, words: str) -> None:
    choice = chosen([*grid(*settings), run(method="full")]).alpha_rule(ratio)
    assert sum(data.method == "lora" for data in choice.runs) == left
    assert sum(data.method == "full" for data in choice.runs) == 1
    assert choice.said[-1] == words


def test_one_model_task_and_setting_a_method() -> None:
    runs = grid({"seed": 0}, {"seed": 1}, {"model": "tiny-t5"}, {"max_grad_norm": 1.0})
    choice = chosen(runs)
    assert {data.seed for data in choice.runs} == {0, 1}
    assert choice.said == (
        "model tiny (most runs; also in the store: tiny-t5)",
        "task arithmetic",
        "1 run with other settings (batch size, schedule...) left out",
    )


def test_what_is_missing_is_said() -> None:
    choice = chosen(grid({"rank": 64})).require("rank", [32, 64, 128]).require("learning_rate", [5e-4])
    figure = choice.dress(CurveSet("", ()))
    assert figure.missing == ("no runs of Full FT.", "no runs of LoRA-MGPO.", "the paper's r = 32, r = 128.")
    assert figure.chosen == "model tiny; task arithmetic"


@pytest.mark.parametrize(
    ("runs", "measured", "message"),
    [
        ([], "step", "figure fig needs runs of method lora with step losses .*; the choice from the store has no runs"),
        (
            [run(method="mgpo"), run(method="mgpo", seed=1), run(method="full")],
            "step",
            "the store has full: 1 run, mgpo: 2 runs, 3 of them with such measurements",
        ),
        ([replace(run(), evaluations=pd.DataFrame())], "eval", "evaluations on the eval split.* 0 of them"),
        ([replace(run(), metrics=pd.DataFrame())], "step", "loss_clean.*lora: 1 run, 0 of them"),
    ],
)
def test_what_the_figure_needs_is_said(runs: list, measured: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        Choice.of("fig", runs, methods=["lora"], required=["lora"], measured=measured)
