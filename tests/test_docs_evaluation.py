"""The commands and the code of docs/evaluation.md, on small stand-ins for the benchmarks, a judge and lm-eval."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from landscape.cli import app
from tests.command_line import invoke
from tests.evaluation import harness_stub
from tests.evaluation.benchmarks import write_benchmarks
from tests.evaluation.judge_stub import judge_server
from tests.test_docs import blocks

PAGE = "docs/evaluation.md"


def test_the_commands_and_the_code_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_benchmarks(tmp_path / "data")
    harness_stub.install(monkeypatch)
    commands = [line for block in blocks(PAGE, "") for line in block.splitlines() if line.startswith("landscape ")]
    assert len(commands) == 7
    with judge_server() as server:
        for line in commands:
            result = invoke(*shlex.split(line.replace("http://127.0.0.1:8000/v1", server.url))[1:])
            assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
    assert server.requests
    for code in blocks(PAGE, "python"):
        exec(compile(code, PAGE, "exec"), {})
    printed = capsys.readouterr().out
    for score in ("exact_match 0 ", "exact_match 20 ", "pass@1 ", "pass@10 ", "first_turn 20 8.0", "arc_easy/acc"):
        assert score in printed, score
    written = {path.name.split("-step")[0] for path in (tmp_path / "out/evaluation").rglob("evaluation*")}
    assert written >= {"evaluation.parquet", "evaluation-gsm8k", "evaluation-humaneval", "evaluation-mt-bench"}


def test_every_option_of_the_page_exists() -> None:
    from typer.main import get_command

    command = get_command(app).commands["evaluate"]  # type: ignore[attr-defined]
    options = {name for parameter in command.params for name in parameter.opts}
    text = Path(__file__).parent.parent.joinpath(PAGE).read_text()
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) - {"--set", "--store"}  # of train
    assert mentioned <= options
    assert len(mentioned) >= 15
