"""The commands of docs/store.md run, one after the other, in a store like the one that it describes."""

import re
import shlex
import subprocess
import sys

import pytest

from landscape.store import Store
from tests.command_line import invoke
from tests.store.full_runs import add, fill_shared
from tests.test_docs import ROOT, blocks


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    store = Store.create(tmp_path / "store")
    fill_shared(store, add(store, "lora-a"), add(store, "lora-b", seed=1))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_run(in_folder):
    commands = [line for block in blocks("docs/store.md", "") for line in block.splitlines() if line.startswith("land")]
    assert len(commands) == 7
    for line in commands:
        result = invoke(*shlex.split(line)[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
    assert [run.id for run in Store.open(in_folder / "all").runs()] == ["lora-a", "lora-b"]


def test_the_benchmark_of_large_stores_runs_and_its_sizes_are_those_of_the_page():
    page = (ROOT / "docs/scale.md").read_text()
    (line,) = [line for block in blocks("docs/scale.md", "") for line in block.splitlines()]
    program, script, *_ = shlex.split(line)
    assert program == "python"
    command = [sys.executable, ROOT / script, "--runs", "20", "--no-commands"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    sizes = {
        name.strip(): int(value.replace(",", ""))
        for name, value in re.findall(r"^(.{32}) +([\d,]+)$", done.stdout, re.M)
    }
    assert sizes["record"] == 4 * 319_815_680
    assert "319,815,680 parameters, float32) | 1.279 GB" in page
    assert 50 < sizes["index line"] < 150
    assert 200 < sizes["metrics line"] < 400
