"""What the documentation generates from code is what the code says, and what it tells people to run runs."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from landscape.cli import app
from landscape.config.reference import config_table

ROOT = Path(__file__).parent.parent


def blocks(page: str, language: str) -> list[str]:
    """Fenced blocks of one language ('' for plain ones)."""
    text = (ROOT / page).read_text()
    return [body for name, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S) if name == language]


def test_config_reference_is_current():
    assert config_table() in (ROOT / "docs/config.md").read_text()


@pytest.mark.parametrize("page", sorted(["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]))
def test_relative_links_lead_somewhere(page):
    # What is commented out is not shown.
    text = re.sub(r"<!--.*?-->", "", (ROOT / page).read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_readme_lists_every_method():
    from landscape.methods.table import methods_table

    assert methods_table() in (ROOT / "README.md").read_text()


def test_the_commands_and_the_code_on_slices_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = [line for block in blocks("docs/slices.md", "") for line in block.splitlines()]
    assert len(commands) >= 6
    for line in commands:
        program, *arguments = shlex.split(line)
        result = CliRunner().invoke(app, arguments)
        assert (program, result.exit_code) == ("landscape", 0), f"{line}\n{result.output}\n{result.exception!r}"
    pictures = {path.name for path in (tmp_path / "out/figures").iterdir()}
    assert {"slice1d.png", "slice2d.png", "slice2d-2.png", "slice2d.html", "slice2d.csv"} <= pictures
    # One after the other in one session, as a reader would; the last draws the store that the commands made.
    session: dict = {}
    for code in blocks("docs/slices.md", "python"):
        exec(compile(code, "docs/slices.md", "exec"), session)
    assert session["s"].loss.shape == (7, 7)
    assert session["path"].distance.shape == (12,)
    assert (tmp_path / "plane.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_commands_on_sharpness_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = [line for block in blocks("docs/sharpness.md", "") for line in block.splitlines()]
    assert len(commands) == 5
    for line in commands:
        program, *arguments = shlex.split(line)
        result = CliRunner().invoke(app, arguments)
        assert (program, result.exit_code) == ("landscape", 0), f"{line}\n{result.output}\n{result.exception!r}"


def test_the_commands_on_sweeps_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = [line for block in blocks("docs/sweeps.md", "") for line in block.splitlines()]
    assert len(commands) >= 7
    for line in commands:
        result = CliRunner().invoke(app, shlex.split(line)[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
    assert "4 runs: 4 done" in CliRunner().invoke(app, ["status", "out/sweep"]).output
    (benchmark,) = blocks("docs/sweeps.md", "console")
    _, script, *_ = shlex.split(benchmark)
    options = ["--runs", "1", "--kills", "0", "--engines", "inline"]
    done = subprocess.run([sys.executable, ROOT / script, *options], capture_output=True, text=True, check=True)
    assert "for 1 runs" in done.stdout
    (recipe,) = blocks("docs/sweeps.md", "sh")
    (pods, cloud) = (yaml.safe_load(block) for block in blocks("docs/sweeps.md", "yaml"))
    started = [
        recipe.split("srun ")[1].split(),
        [str(word) for word in pods["spec"]["template"]["spec"]["containers"][0]["command"]],
        cloud["run"].split(),
    ]
    for program, name, _, *options in started:
        assert (program, name) == ("landscape", "worker")
        assert CliRunner().invoke(app, [name, "out/sweep", *options]).exit_code == 0


def test_the_commands_on_importing_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = ROOT / "tests/importers/data"
    shutil.copytree(data / "wandb", tmp_path / "wandb")
    shutil.copytree(data / "mlflow/mlruns", tmp_path / "mlruns")
    losses = [2 / (1 + 0.1 * step) for step in range(1, 61)]
    for folder in (tmp_path, tmp_path / "outputs/checkpoint-500"):
        folder.mkdir(parents=True, exist_ok=True)
        history = [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": history, "global_step": 60}))
    rows = [f"baseline,{step},{loss}" for step, loss in enumerate(losses, 1)]
    (tmp_path / "runs.csv").write_text("\n".join(["run,step,loss", *rows]))
    for line in blocks("docs/import.md", "")[0].splitlines():
        result = CliRunner().invoke(app, shlex.split(line)[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
    assert (tmp_path / "out/report.html").is_file()
