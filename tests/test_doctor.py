"""What `landscape doctor` says is what was tried, and each thing that is missing comes with what to do."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend

from landscape import doctor
from tests.command_line import invoke, payload


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    said = payload(invoke("doctor", "--store", tmp_path / "not" / "there", "--json"))
    found = {(item["group"], item["name"]): item for item in said["findings"]}
    assert found["versions", "torch"]["detail"] == torch.__version__
    assert found["attention", "math on cpu"]["status"] == "ok"
    assert found["attention", "eager on cpu"]["status"] == "ok"
    assert found["browsers", "chromium"]["status"] == "missing"
    assert "GB free at" in found["machine", "disk"]["detail"]
    assert found["engines", "local"]["status"] == "ok"
    for name in ("wandb", "mlflow", "trackio"):
        there = importlib.util.find_spec(name) is not None
        assert found["optional", name]["status"] == ("ok" if there else "missing")
    assert all(item["advice"] for item in said["findings"] if item["status"] != "ok")
    assert not any(item["advice"] for item in said["findings"] if item["status"] == "ok")
    assert sum(said["counts"].values()) == len(said["findings"])


def test_the_table_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "ray" else "1.0")
    result = invoke("doctor", "--store", tmp_path)
    assert result.exit_code == 0, result.output
    assert "pip install 'lora-landscape[ray]'" in result.stdout


def test_the_probe_tells_right_from_wrong_and_impossible(monkeypatch):
    """Flash attention of the CPU has no second derivative; a kernel that is off is found out."""
    problem = doctor.second_derivative_problem(SDPBackend.FLASH_ATTENTION, "cpu")
    assert problem is not None
    assert "derivative" in problem
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: 1.01 * real(*a, **k))
    assert doctor.second_derivative_problem(SDPBackend.MATH, "cpu").startswith("wrong: off by")


@pytest.mark.parametrize(
    ("script", "status"), [("#!/bin/sh\necho Chromium 999", "ok"), ("#!/bin/sh\nexit 3", "limited")]
)
def test_a_browser_is_started(tmp_path, monkeypatch, script, status):
    program = tmp_path / "chromium"
    program.write_text(script)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = doctor._browsers()
    assert found.status == status
    assert ("Chromium 999" in found.detail) == (status == "ok")


def test_little_disk_and_too_many_threads_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "LITTLE_DISK", 1e18)
    monkeypatch.setattr(doctor, "_usable_cores", lambda: 0)
    found = {item.name: item for item in doctor._machine(tmp_path)}
    assert found["disk"].status == found["threads"].status == "limited"


def test_help_is_light():
    code = "import sys; import landscape.doctor, landscape.cli; print(sorted({'torch', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
