"""What a run says of its memory."""

from __future__ import annotations

import sys

import numpy as np
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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets an earlier peak")
def test_the_peak_is_of_this_run_alone():
    block = np.ones(128 * MEGABYTE, dtype=np.uint8)
    with_block = memory.PeakMemory().read()["rss"]
    del block
    peak = memory.PeakMemory()
    without = peak.read()["rss"]
    assert with_block - without > 100 * MEGABYTE
    block = np.ones(64 * MEGABYTE, dtype=np.uint8)
    del block
    assert peak.read()["rss"] - without > 50 * MEGABYTE


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
