"""What a run says of its memory."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest
import torch

from landscape.config import RunConfig
from landscape.errors import StoreError
from landscape.store import Store
from landscape.training import memory, recorder, train
from tests.training.conftest import QUICK

MEGABYTE = 2**20


def test_a_run_records_its_peak(trained):
    peak = trained(max_steps=2).status.peak_memory
    assert set(peak) == ({"rss", "cuda"} if torch.cuda.is_available() else {"rss"})
    # Other libraries may give pages back between the peak and now, none of them more than half.
    assert psutil.Process().memory_info().rss / 2 < peak["rss"] < psutil.virtual_memory().total


def test_a_failed_run_records_it_too_and_a_resumed_one_keeps_the_higher(tmp_path, monkeypatch):
    config = RunConfig.parse(QUICK)

    def full(*_: object, **__: object) -> None:
        raise StoreError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(recorder, "save_checkpoint", full)
        with pytest.raises(StoreError, match="no room"):
            train(config, tmp_path)
    (run,) = Store.open(tmp_path).runs()
    assert run.status.peak_memory["rss"] > 0
    run.set_status(peak_memory={"rss": 2**50})
    train(config, tmp_path)
    assert run.status.state == "done"
    assert run.status.peak_memory["rss"] == 2**50


PEAKS = """
import mmap
from landscape.training.memory import PeakMemory

def fill(size):
    block = mmap.mmap(-1, size)
    block.write(bytes(size))
    block.close()

fill({large})
peak = PeakMemory()
first = peak.read()["rss"]
fill({small})
print(first, peak.read()["rss"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets an earlier peak")
def test_the_peak_is_of_this_run_alone():
    # In a process of its own: what earlier tests have freed and kept would hide what is allocated.
    code = PEAKS.format(large=256 * MEGABYTE, small=64 * MEGABYTE)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = map(int, done.stdout.split())
    assert 50 * MEGABYTE < second - first < 200 * MEGABYTE


def test_the_device_counts_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 7)
    peak = memory.PeakMemory()
    assert peak.read()["cuda"] == 7
    assert peak.read({"cuda": 9, "rss": 1})["cuda"] == 9


def test_without_proc_it_is_the_processes_peak(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_PROC", tmp_path / "nothing")
    assert memory.PeakMemory().read()["rss"] >= psutil.Process().memory_info().rss / 2
