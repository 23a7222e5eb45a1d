"""``--where``: what it means, and that nothing but a comparison gets through."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from landscape.config import RunConfig
from landscape.config.where import STATES, Where
from landscape.errors import UsageError

CONFIG = {
    "rank": 64,
    "alpha": 64.0,
    "learning_rate": 5e-4,
    "method": "mgpo-released",
    "method_args": {"rho": 0.1, "max_scale": None},
    "model": "HuggingFaceTB/SmolLM2-135M",
    "bf16": True,
}
RUN = {**RunConfig.parse(CONFIG).model_dump(), "id": "mgpo-released-r64", "state": "done", "step": 200}
FULL = {**RUN, "method": "full", "rank": None, "alpha": None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rank>=64 and lr==5e-4", True),
        ("rank>=64 and lr==1e-4", False),
        ("rank<64 or method==mgpo-released", True),
        ("method==lora or method=='mgpo-released'", True),
        ('method=="mgpo-released"', True),
        ("method != mgpo-released", False),
        ("method in [lora, mgpo-released]", True),
        ("method in (lora, ggpo)", False),
        ("rank not in [8, 32]", True),
        ("rank in [64]", True),
        ("not rank==8", True),
        ("not (rank==64 and bf16)", False),
        ("8 < rank <= 64", True),
        ("64 < rank", False),
        ("r==64 and batch_size==16", True),
        ("rank==alpha", True),
        ("model==HuggingFaceTB/SmolLM2-135M", True),
        ("method_args.rho > 0.05", True),
        ("method_args.max_scale == null", True),
        ("method_args.unheard_of == none", True),
        ("method_args.unheard_of > 0", False),
        ("bf16", True),
        ("bf16 == true", True),
        ("gradient_checkpointing or capture.moments", False),
        ("capture.policy == auto", True),
        ("seed > -1", True),
        ("state==done and step>=200", True),
        ("state in [failed, interrupted]", False),
        ("id == mgpo-released-r64", True),
        ("lr == 0.00050000000000001", True),
        ("label_noise == 0", True),
    ],
)
def test_meaning(text: str, expected: bool) -> None:
    assert Where.parse(text).matches(RUN) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("rank>=8", False), ("rank<8", False), ("rank==null", True), ("rank!=8", True), ("rank in [8, null]", True)],
)
def test_null_has_no_order(text: str, expected: bool) -> None:
    assert Where.parse(text).matches(FULL) is expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--where: empty"),
        ("  ", "--where: empty"),
        ("rnk==8", r"unknown key 'rnk'\. Did you mean 'rank'\?"),
        ("lora==ggpo", "unknown key 'lora'"),
        ("'rank'==8", "unknown key 'rank'"),
        ("foo", "unknown key 'foo'"),
        ("rank.x==8", "unknown key 'rank.x'"),
        ("capture.polic==auto", r"capture: 'polic' is not known; .*Did you mean 'policy'\?"),
        ("state==don", r"state: 'don' is not known; .*Did you mean 'done'\?"),
        ("state in [done, lost]", "state: 'lost' is not known"),
        ("rank=8", r"cannot read '=' at character 5 \(equality is ==\)"),
        ("rank", "compare rank with a value, for example rank==8"),
        ("rank and bf16", "compare rank with a value"),
        ("rank==8 and", "not an expression"),
        ("(rank==8", "not an expression"),
        ("rank 8", "not an expression"),
        ("rank is 8", "not an expression"),
        ("rank==[8]", "a list follows `in` or `not in`"),
        ("rank in 8", "a list follows `in` or `not in`"),
        ("rank in [[8]]", "compare a key with a word, a number or a list of them"),
        ("rank == (1 < 2)", "compare a key with a word"),
        ("true", "only comparisons"),
        ("[rank]", "only comparisons"),
        ("rank+1==9", "compare a key with a word"),
        ("lambda: 1", "cannot read ':'"),
        ("__import__('os')", "only comparisons"),
        ("__import__('os').system('ls')", "cannot read '.'"),
        ("rank.__class__", "unknown key 'rank.__class__'"),
        ("method_args.rho.real > 0", "unknown key 'method_args.rho.real'"),
        ("{8}", "cannot read '{'"),
        ("rank==8; bf16", "cannot read ';'"),
        ("rank==`ls`", "cannot read '`'"),
        ("rank==8\nbf16", "not an expression"),
        ("(bf16 := true)", "cannot read ':'"),
        ("rank if bf16 else rank", "not an expression|only comparisons"),
        ("rank==8" + " and bf16" * 150, "1357 characters; at most 1000"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refusal:
        Where.parse(text)
    assert "\n" not in str(refusal.value)


def test_a_word_and_a_number_have_no_order() -> None:
    with pytest.raises(UsageError, match="'method' and 3 cannot be ordered: 'mgpo-released' against 3"):
        Where.parse("method > 3").matches(RUN)


def test_deep_nesting_is_no_crash() -> None:
    assert Where.parse("not " * 200 + "bf16").matches(RUN)
    with pytest.raises(UsageError, match="not an expression"):
        Where.parse("(" * 400 + "bf16" + ")" * 400)


@given(st.text(max_size=60))
def test_any_text_parses_or_is_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert Where.parse(text).matches(RUN) in (True, False)


WORDS = [
    "rank",
    "method",
    "lora",
    "8",
    "5e-4",
    "==",
    "<",
    "in",
    "not",
    "and",
    "or",
    "(",
    ")",
    "[",
    "]",
    ",",
    "bf16",
    "'a'",
]


@given(st.lists(st.sampled_from(WORDS), max_size=12))
def test_any_words_parse_or_are_refused(words: list[str]) -> None:
    with contextlib.suppress(UsageError):
        assert Where.parse(" ".join(words)).matches(RUN) in (True, False)


@given(rank=st.integers(1, 256), rate=st.sampled_from([1e-5, 5e-4, 1e-3]), state=st.sampled_from(STATES))
def test_against_python(rank: int, rate: float, state: str) -> None:
    run = {**RUN, "rank": rank, "learning_rate": rate, "state": state}
    text = "(rank>=64 or lr<1e-4) and state in [done, diverged] and not (rank==128 and lr==5e-4)"
    expected = (rank >= 64 or rate < 1e-4) and state in ("done", "diverged") and not (rank == 128 and rate == 5e-4)
    assert Where.parse(text).matches(run) == expected
