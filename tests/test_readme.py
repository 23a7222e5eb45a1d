"""Every command and the example method of the README, run as they stand there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from landscape.cli import app
from landscape.config import RunConfig
from landscape.methods import METHODS
from landscape.store import Store
from landscape.training import train
from tests.training.conftest import QUICK

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Fenced blocks of one language ('' for plain ones)."""
    return [body for name, body in re.findall(r"^```(\w*)\n(.*?)^```", README, re.M | re.S) if name == language]


def commands() -> list[str]:
    """Lines that call the console script."""
    return [line for block in blocks("") for line in block.splitlines() if line.startswith("landscape ")]


def commands_in_the_text() -> list[str]:
    """Those with arguments that stand in a sentence, but the app: tests/app starts that."""
    found = re.findall(r"`(landscape [\w-]+ [^`]+)`", README)
    return [command for command in found if not command.startswith("landscape app")]


def test_there_are_commands_to_run():
    assert len(commands()) >= 8
    mentioned = set(re.findall(r"`landscape ([\w-]+)", README))
    assert mentioned <= {command.name or command.callback.__name__ for command in app.registered_commands} | {"analyze"}


def test_every_command_runs_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    for line in commands():
        result = runner.invoke(app, shlex.split(line)[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
    assert (tmp_path / "out/report.html").stat().st_size > 100_000
    assert any((tmp_path / "out/figures").iterdir())


def test_every_command_in_the_text_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "tests/importers/data/wandb", tmp_path / "wandb")
    history = [{"step": step, "loss": 2 / (1 + 0.1 * step)} for step in range(1, 61)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history, "global_step": 60}))
    short = {"max_steps": 120, "per_device_train_batch_size": 1, "eval_steps": 0, "save_steps": 0}
    trained = train(RunConfig.parse({**QUICK, **short}), tmp_path / "store")
    assert len(commands_in_the_text()) >= 5
    for line in commands_in_the_text():
        arguments = shlex.split(line.replace("RUN", trained.run_id))[1:]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
    assert (tmp_path / "adapter/adapter_model.safetensors").is_file()


@pytest.mark.parametrize("target", ["demo", "test"])
def test_make_targets_exist(target):
    assert f"make {target}" in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


@pytest.fixture
def example_method():
    """The README's method, added from outside the package and removed again."""
    code = next(block for block in blocks("python") if "METHODS.add" in block)
    assert len(code.splitlines()) < 40
    before = set(METHODS)
    exec(compile(code, "README.md", "exec"), {})
    (name,) = set(METHODS) - before
    yield name
    del METHODS[name]


def test_the_example_method_trains_and_resumes(tmp_path, example_method):
    config = RunConfig.parse({**QUICK, "method": example_method})

    def interrupt(line):
        if line["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "a", on_step=interrupt)
    result = train(config, tmp_path / "a")
    whole = train(config, tmp_path / "b")
    curves = [Store.open(tmp_path / name).get(whole.run_id).metrics() for name in "ab"]
    assert result.state == "done"
    assert curves[0]["loss_perturbed"].tolist() == curves[1]["loss_perturbed"].tolist()
    assert (curves[0]["loss_perturbed"] != curves[0]["loss_clean"]).any()
