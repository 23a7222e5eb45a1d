"""Somebody's log: read under a harmless name, tested, and said in plain words."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from app.logs import episode_table, examine, log_figure, read_upload, sentence
from landscape.errors import UsageError


def trainer_state(values: np.ndarray) -> bytes:
    history = [{"step": int(step), "loss": float(value)} for step, value in enumerate(values, 1)]
    return json.dumps({"log_history": history, "global_step": len(values)}).encode()


def descent(planted: bool, points: int = 400) -> np.ndarray:
    steps = np.arange(points)
    noise = np.random.default_rng(3).normal(0, 0.03, points)
    bump = 0.8 * np.exp(-0.5 * ((steps - 200) / 18) ** 2) if planted else 0.0
    return 0.5 + 2 * np.exp(-steps / 40) + noise + bump


def test_a_planted_rebound_is_found() -> None:
    log = read_upload("trainer_state.json", trainer_state(descent(True)))
    tested = examine(log, "loss", 0, 0.05)
    assert len(tested) == 1
    best = tested[0].episodes[0]
    assert best.p_value <= 0.05
    assert 120 < best.onset < 200 < best.recovery < 280
    assert abs(best.peak - 200) < 25
    assert re.match(r"1 episode at p = 0\.00\d+: up by 0\.[678]\d* \(", sentence(tested[0], 0.05))
    assert episode_table(tested)["p"].iloc[0] == best.p_value
    spans = log_figure(tested, 0.05, "title").panels[0].spans
    assert spans[0].start == best.onset


def test_gradient_norms_are_tested_as_logarithms() -> None:
    rows = "".join(f"{i},{v}\n" for i, v in enumerate(np.exp(descent(True)).tolist()))
    tested = examine(read_upload("a.csv", b"step,grad_norm\n" + rows.encode()), "grad_norm", 0, 0.05)
    assert tested[0].episodes[0].tested_curve == "logarithm"
    assert sentence(tested[0], 0.05).endswith(" Tested was the logarithm; amplitudes are log ratios.")


def test_a_descent_has_none() -> None:
    tested = examine(read_upload("trainer_state.json", trainer_state(descent(False))), "loss", 0, 0.05)
    assert sentence(tested[0], 0.05).startswith("No rebound beyond what noise explains at alpha = 0.05")


def test_a_loss_that_blows_up() -> None:
    values = descent(False)
    values[300:] = np.nan
    log = read_upload("a.csv", b"step,loss\n" + b"".join(f"{i},{v}\n".encode() for i, v in enumerate(values)))
    tested = examine(log, "loss", 0, 0.05)
    assert "Not finite from step 300" in sentence(tested[0], 0.05)


def test_a_curve_that_is_too_short_says_so() -> None:
    tested = examine(read_upload("a.csv", b"step,loss\n1,2\n2,1\n"), "loss", 0, 0.05)
    assert tested[0].curve is None
    assert sentence(tested[0], 0.05).startswith("Not tested: ")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/root/x.csv", "a\x00b.csv", "..", "", "ü/ß.csv"])
def test_names_of_uploads_go_nowhere(name: str) -> None:
    log = read_upload(name, b"step,loss\n" + b"".join(b"%d,1.5\n" % i for i in range(50)))
    assert "/" not in log.path.name
    assert not log.path.exists()


@pytest.mark.parametrize(
    ("content", "match"), [(b"", "empty"), (b"\x80\x04\x95pickle", "binary"), (b'{"a": ', "cut off or damaged")]
)
def test_what_is_no_log_is_refused(content: bytes, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        read_upload("x.json", content)
