"""How values are spelled."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from landscape.config import parse_scalar, parse_values
from landscape.errors import UsageError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8),
        ("2e-4", 2e-4),
        ("1E5", 1e5),
        (".5e1", 5.0),
        ("-3e-2", -0.03),
        ("0.1", 0.1),
        ("lora", "lora"),
        ("2r", "2r"),
        ("true", True),
        ("null", None),
        ("", None),
        ("{rho: 0.1, beta: 0.9}", {"rho": 0.1, "beta": 0.9}),
        ("[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("'8'", "8"),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    parsed = parse_scalar(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_a_scalar_that_is_not_yaml() -> None:
    with pytest.raises(UsageError, match=r"cannot read the value '\[1, 2'"):
        parse_scalar("[1, 2")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("8,32,128", [8, 32, 128]),
        ("8", [8]),
        ("0..4", [0, 1, 2, 3, 4]),
        ("3..3", [3]),
        ("-1..1", [-1, 0, 1]),
        ("0..1,7", [0, 1, 7]),
        ("1e-4, 5e-4", [1e-4, 5e-4]),
        ("r,2r,16", ["r", "2r", 16]),
        ("log:1e-5:1e-3:3", [1e-5, 1e-4, 1e-3]),
        ("log:1e-3:1e-5:3", [1e-3, 1e-4, 1e-5]),
        ("log:1:8:4,100", [1.0, 2.0, 4.0, 8.0, 100]),
        ("{rho: 0.1, beta: 0.9},{}", [{"rho": 0.1, "beta": 0.9}, {}]),
        ("[a, b],[c]", [["a", "b"], ["c"]]),
        ("lora,,mgpo", ["lora", "mgpo"]),
    ],
)
def test_lists(text: str, values: list[Any]) -> None:
    assert parse_values(text) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rank: no value given"),
        (" , ", "rank: no value given"),
        ("4..0", r"rank: the range '4\.\.0' runs backwards; write 0\.\.4"),
        ("log:1:2", "rank: 'log:1:2' is not log:LOW:HIGH:COUNT"),
        ("log:0:1:3", "positive ends"),
        ("log:1:2:1", "COUNT >= 2"),
        ("log:1:2:2.5", "is not log:"),
        ("log:a:b:c", "is not log:"),
    ],
)
def test_bad_lists(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_values(text, "rank")


@given(low=st.floats(1e-8, 1e3, allow_subnormal=False), ratio=st.floats(1.001, 1e6), count=st.integers(2, 30))
def test_log_ranges_are_even_in_the_logarithm(low: float, ratio: float, count: int) -> None:
    values = parse_values(f"log:{low!r}:{low * ratio!r}:{count}")
    assert len(values) == count
    assert values[0] == pytest.approx(low, rel=1e-11)
    assert values[-1] == pytest.approx(low * ratio, rel=1e-11)
    steps = [math.log(b / a) for a, b in itertools.pairwise(values)]
    assert steps == pytest.approx([math.log(ratio) / (count - 1)] * (count - 1), rel=1e-6)


@given(st.lists(st.integers(-(10**6), 10**6), min_size=1, max_size=20))
def test_integers_survive_the_round_trip(values: list[int]) -> None:
    assert parse_values(",".join(map(str, values))) == values
