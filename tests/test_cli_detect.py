"""``landscape detect``: a log file in, a verdict out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.command_line import invoke, payload
from tests.test_imports import HEAVY, ROOT

STEPS = np.arange(400)


def smooth(seed: int = 0, noise: float = 0.03) -> np.ndarray:
    """A descent without any rebound."""
    return 1 + 2 * np.exp(-STEPS / 60) + noise * np.random.default_rng(seed).normal(size=len(STEPS))


def rebound(seed: int = 0, height: float = 0.4) -> np.ndarray:
    """The same with one that is highest at step 240 and over by 300."""
    return smooth(seed) + height * np.exp(-(((STEPS - 240) / 25) ** 2))


def csv(folder: Path, **columns: np.ndarray) -> Path:
    path = folder / "log.csv"
    cells = [STEPS[: len(next(iter(columns.values())))], *columns.values()]
    rows = [",".join(str(value) for value in row) for row in zip(*cells, strict=True)]
    path.write_text("\n".join([",".join(["step", *columns]), *rows]) + "\n")
    return path


def test_a_planted_rebound_is_found(tmp_path: Path) -> None:
    result = invoke("detect", csv(tmp_path, loss=rebound()), "--json")
    assert result.exit_code == 0
    answer = payload(result)
    assert (answer["format"], answer["notes"], answer["files"]) == ("CSV", [], [])
    (curve,) = answer["curves"]
    assert (curve["run"], curve["column"], curve["points"], curve["last_step"]) == ("log", "loss", 400, 399)
    assert curve["count"] == 1
    first = curve["episodes"][0]
    assert (first["kind"], first["tested_curve"]) == ("episode", "raw")
    assert first["p_value"] <= 0.05
    assert 190 <= first["onset"] <= 225 < first["peak"] <= 255 < first["recovery"] <= 300
    assert first["amplitude"] == pytest.approx(0.4, rel=0.3)


def test_a_smooth_curve_has_none(tmp_path: Path) -> None:
    answer = payload(invoke("detect", csv(tmp_path, loss=smooth()), "--json"))
    assert answer["curves"][0]["count"] == 0
    assert "no rebound beyond what noise explains at alpha = 0.05" in answer["curves"][0]["verdict"]


def test_the_table_and_the_verdict(tmp_path: Path) -> None:
    result = invoke("detect", csv(tmp_path, loss=rebound()))
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    titles = ["kind", "onset", "peak", "recovery", "amplitude", "noise", "units", "p", "flags"]
    assert lines[0].split() == titles
    assert lines[1].split()[0] == "episode"
    assert re.match(r"loss \(400 points\): 1 episode at p = [0-9.e-]+: up by 0\.", lines[-1])
    assert "noise units) from step" in lines[-1]


def test_warmup_takes_a_rise_out(tmp_path: Path) -> None:
    path = csv(tmp_path, loss=rebound())
    result = invoke("detect", path, "--warmup", 300)
    assert "1 rise not counted (warmup)" in result.stdout
    assert "no rebound beyond what noise explains" in result.stdout


def test_learning_rate_and_epochs_of_the_file_are_used(tmp_path: Path) -> None:
    rate = np.interp(STEPS, [0, 200, 240, 399], [1e-4, 1e-4, 1e-3, 1e-5])
    path = csv(tmp_path, loss=rebound(), learning_rate=rate, epoch=(STEPS + 1) / 100)
    curve = payload(invoke("detect", path, "--json"))["curves"][0]
    assert curve["learning_rate"]
    assert curve["epoch_steps"] == pytest.approx([99, 199, 299])
    assert curve["count"] == 0  # the loss rose with the learning rate
    assert "schedule_confounded" in curve["verdict"]


def test_every_run_is_tested_on_its_own(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    curves = {"plain": smooth(1), "bumpy": rebound(2), "short": smooth()[:10]}
    lines = [
        json.dumps({"run": run, "step": int(step), "loss": value})
        for run, values in curves.items()
        for step, value in zip(STEPS, values, strict=False)
    ]
    path.write_text("\n".join([*lines, '{"run": "silent", "step": 0, "other": 1}']) + "\n")
    result = invoke("detect", path, "--json")
    answer = payload(result)
    assert {c["run"]: (c["tested"], c["count"]) for c in answer["curves"]} == {
        "plain": (True, 0),
        "bumpy": (True, 1),
        "short": (False, 0),
    }
    assert "not tested: values: 10 finite points; at least 20 are needed" in answer["curves"][2]["verdict"]
    assert any("run 'silent' has no column 'loss'" in note for note in answer["notes"])
    assert any("3 curves, each tested at alpha = 0.05" in note for note in answer["notes"])
    printed = invoke("detect", path).stdout
    assert "plain, loss (400 points): no rebound" in printed
    assert "bumpy, loss (400 points): 1 episode" in printed
    assert "short, loss: not tested" in printed
    assert [c["run"] for c in payload(invoke("detect", path, "--run", "plain", "--json"))["curves"]] == ["plain"]


def test_difficulty_adjusted(tmp_path: Path) -> None:
    difficulty = 0.5 * np.random.default_rng(5).normal(size=len(STEPS))
    path = csv(tmp_path, loss=rebound(height=0.2) + difficulty, loss_base=3 + difficulty)
    raw = payload(invoke("detect", path, "--column", "loss", "--json"))["curves"][0]
    adjusted = payload(invoke("detect", path, "--control", "loss_base", "--json"))["curves"][0]
    assert (raw["count"], adjusted["count"]) == (0, 1)
    assert adjusted["episodes"][0]["tested_curve"] == "adjusted by base"
    assert "tested: the curve adjusted by base" in invoke("detect", path, "--control", "loss_base").stdout


def test_a_resume_is_said(tmp_path: Path) -> None:
    path = csv(tmp_path, loss=smooth())
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:201] + lines[151:]) + "\n")
    result = invoke("detect", path)
    assert result.exit_code == 0
    assert "note: resumed at step 150: 50 earlier values of loss" in result.stdout
    assert "loss (400 points)" in result.stdout


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        (np.full(100, 1.5), "constant at 1.5: nothing to test"),
        (np.where(STEPS > 300, np.nan, smooth()), "not finite from step 301 to 399, the end; no rebound beyond"),
        (
            np.where((STEPS > 99) & (STEPS < 110), np.inf, smooth()),
            "not finite from step 100 until step 110; no rebound beyond",
        ),
        (np.where(STEPS == 200, 9.0, smooth()), "1 spike of one or two points, not counted"),
    ],
)
def test_verdicts(tmp_path: Path, values: np.ndarray, verdict: str) -> None:
    result = invoke("detect", csv(tmp_path, loss=values), "--json")
    assert result.exit_code == 0
    assert verdict in payload(result)["curves"][0]["verdict"]


def test_gradient_norms_are_tested_as_logarithms(tmp_path: Path) -> None:
    norms = np.exp(0.3 * np.random.default_rng(1).normal(size=len(STEPS)) + 3 * (rebound() - 1))
    path = csv(tmp_path, **{"train/grad_norm": norms})
    curve = payload(invoke("detect", path, "--column", "grad_norm", "--json"))["curves"][0]
    assert (curve["tested_curve"], curve["kind"], curve["count"]) == ("logarithm", "steps", 1)
    assert curve["episodes"][0]["tested_curve"] == "logarithm"
    assert curve["episodes"][0]["amplitude"] == pytest.approx(3 * 0.4, rel=0.4)
    printed = invoke("detect", path, "--column", "grad_norm").stdout
    assert "tested: the logarithm; amplitudes are log ratios" in printed
    plain = payload(invoke("detect", path, "--column", "grad_norm", "--no-log", "--json"))["curves"][0]
    assert plain["tested_curve"] == "raw"
    assert plain["episodes"][0]["amplitude"] > 1.5 * 1.2
    path = csv(tmp_path, loss=rebound())
    assert payload(invoke("detect", path, "--log", "--json"))["curves"][0]["tested_curve"] == "logarithm"
    assert "tested:" not in invoke("detect", path).stdout


def test_what_has_no_logarithm_is_tested_as_it_is_unless_asked_for(tmp_path: Path) -> None:
    path = csv(tmp_path, grad_norm=np.where(STEPS == 7, 0, smooth()))
    result = invoke("detect", path, "--column", "grad_norm")
    assert result.exit_code == 0
    assert "tested: the values as they are: not all are above 0" in result.stdout
    asked = invoke("detect", path, "--column", "grad_norm", "--log")
    assert asked.exit_code == 2
    assert "logarithm: 0 at step 7 has none; only values above 0 do." in asked.stderr


def test_evaluations_are_tested_as_such(tmp_path: Path) -> None:
    at = np.arange(40)
    noise = 0.05 * np.random.default_rng(3).normal(size=40)
    values = 1 + np.exp(-at / 6) + 0.4 * np.clip(1 - np.abs(at - 22) / 6, 0, None) + noise
    path = csv(tmp_path, eval_loss=values, eval_loss_stderr=np.full(40, 0.2))
    curve = payload(invoke("detect", path, "--column", "eval_loss", "--json"))["curves"][0]
    assert (curve["kind"], curve["count"], curve["standard_errors"]) == ("evaluation", 1, True)
    assert (
        "tested: as evaluations: few points, of nearly white noise"
        in invoke("detect", path, "--column", "eval_loss").stdout
    )
    steps = payload(invoke("detect", path, "--column", "eval_loss", "--kind", "steps", "--json"))["curves"][0]
    assert (steps["kind"], steps["count"]) == ("steps", 0)


def test_a_rise_that_goes_on_after_the_warmup_counts(tmp_path: Path) -> None:
    path = csv(tmp_path, loss=rebound())
    result = invoke("detect", path, "--warmup", 218)
    assert "1 episode at p = " in result.stdout
    assert "(within the warm-up) to" in result.stdout


@pytest.mark.parametrize("kind", ["png", "svg", "html"])
def test_figure(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"out.{kind}"
    result = invoke("detect", csv(tmp_path, loss=rebound()), "-o", path)
    assert result.exit_code == 0
    assert f"written: {path}" in result.stdout.replace("\n", " ")
    start = {"png": b"\x89PNG", "svg": b"<?xml", "html": b"<!doctype html>"}[kind]
    assert path.read_bytes().startswith(start)
    if kind == "html":
        assert b"episode, p = " in path.read_bytes()


def test_json_and_figure_in_one_call(tmp_path: Path) -> None:
    data, picture = tmp_path / "out.json", tmp_path / "out.svg"
    result = invoke("detect", csv(tmp_path, loss=rebound()), "-o", data, "--output", picture, "--json")
    answer = payload(result)
    assert answer.pop("files") == [str(data), str(picture)]
    assert json.loads(data.read_text()) == answer
    assert picture.read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--column", "losss"], "--column: 'losss' is not known; allowed: loss. Did you mean 'loss'?"),
        (["--run", "lag"], "--run: 'lag' is not known; allowed: log. Did you mean 'log'?"),
        (["--control", "base"], "--control: 'base' is not known; allowed: loss."),
        (["--alpha", "1.5"], "--alpha: 1.5 must lie between 0 and 1."),
        (["--kind", "step"], "--kind: 'step' is not known; allowed: evaluation, steps. Did you mean 'steps'?"),
        (["--log", "--control", "loss"], "--log: difficulty adds to a loss, and so to no logarithm"),
        (["-o", "x.bmp"], "--output: 'bmp' is not known; allowed: html, json, pdf, png, svg."),
        (["-o", "x.svg", "-o", "nowhere/x.json"], "--output: no folder nowhere."),
    ],
)
def test_bad_usage(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = invoke("detect", csv(tmp_path, loss=smooth()), *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"\x00\x01", "a binary file"),
        (b"step,loss\n1,2\n", "values: 1 finite points; at least 20 are needed"),
        (b"step,loss\n", "values: 0 finite points; at least 20 are needed"),
        (b"step,loss\n1,2\n3,2\n2,2\n", "step 2 at line 4 comes after step 3"),
    ],
)
def test_bad_files(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "log.csv").write_bytes(data)
    result = invoke("detect", tmp_path / "log.csv", "--json")
    assert result.exit_code == 2
    assert message in payload(result)["error"]
    assert message in result.stderr


def test_it_is_light(tmp_path: Path) -> None:
    path = csv(tmp_path, loss=rebound())
    code = (
        "import sys\n"
        "from landscape.cli import main\n"
        f"sys.argv = ['landscape', 'detect', {str(path)!r}, '-o', {str(tmp_path / 'a.svg')!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 episode" in done.stdout
