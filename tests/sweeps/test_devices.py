"""Places on devices, shared out by number and by memory; no GPU is needed to share out."""

from __future__ import annotations

import contextlib
import subprocess
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from landscape.sweeps.engines import Job, LocalEngine, Resources, devices
from landscape.sweeps.engines.devices import Device, find_devices, most_workers, place_workers

GB = 1 << 30


def smi(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    def run(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        if text is None:
            raise FileNotFoundError("nvidia-smi")
        return subprocess.CompletedProcess([], 0, text, "")

    monkeypatch.setattr(devices.subprocess, "run", run)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["0", "1", "2"]),
        ("1", ["1"]),
        ("2,0", ["2", "0"]),
        ("GPU-b", ["GPU-b"]),
        ("MIG-7", ["MIG-7"]),
        ("", [None]),
        ("-1", [None]),
    ],
)
def test_the_visible_gpus_are_used(monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list) -> None:
    smi(monkeypatch, "0, GPU-a, 1000\n1, GPU-b, 2000\n2, GPU-c, 3000\n")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = find_devices()
    assert [device.name for device in found] == expected
    if "1" in expected:
        assert {device.name: device.free for device in found}["1"] == 1800 << 20


@pytest.mark.parametrize("text", [None, "", "No devices were found\n", "0, GPU-a, [N/A]\n"])
def test_without_gpus_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    smi(monkeypatch, text)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (device,) = find_devices()
    assert device.name is None
    assert device.free > 0


@pytest.mark.parametrize(
    ("free", "memory", "cores", "workers"),
    [
        ({None: 64 * GB}, GB, 8, 8),  # a core each
        ({None: 4 * GB}, GB, 8, 4),  # as many as fit
        ({None: GB}, 4 * GB, 8, 1),
        ({None: 0}, GB, 8, 8),  # free memory unknown
        ({"0": 80 * GB, "1": 80 * GB}, 0, 16, 2),  # need unknown: one each
        ({"0": 80 * GB, "1": 80 * GB}, 30 * GB, 16, 4),
        ({"0": 80 * GB, "1": 10 * GB}, 30 * GB, 16, 3),
        ({"0": 80 * GB}, GB, 16, 4),  # four a device at most
        ({"0": 80 * GB, "1": 80 * GB}, GB, 3, 3),
        ({"0": 80 * GB, "1": 80 * GB}, GB, 1, 2),
    ],
)
def test_how_many_workers(free: dict, memory: int, cores: int, workers: int) -> None:
    assert most_workers([Device(name, bytes_) for name, bytes_ in free.items()], memory, cores) == workers


def test_places_are_shared_out() -> None:
    made = [Device(name) for name in "abc"]
    place_workers(made, 5)
    assert [device.places for device in made] == [2, 2, 1]


def test_fitting_counts_places_and_bytes() -> None:
    device = Device("0", free=10 * GB, places=2)
    assert device.fits(99 * GB), "the first may always try"
    device.taken["a"] = 6 * GB
    assert device.fits(4 * GB)
    assert not device.fits(5 * GB)
    device.taken["b"] = GB
    assert not device.fits(1)


def test_each_worker_sees_its_device() -> None:
    found = Counter(placed([Device("5"), Device("7")], workers=2, memory=[0] * 6).values())
    assert set(found) == {"5", "7"}


def test_what_does_not_fit_beside_the_others_waits() -> None:
    most = {"now": 0, "ever": 0}
    placed([Device("0", free=10 * GB)], workers=3, memory=[6 * GB] * 4, most=most)
    assert most["ever"] == 1
    placed([Device("0", free=13 * GB)], workers=3, memory=[6 * GB] * 4, most=most)
    assert most["ever"] == 2


def placed(
    made: Sequence[Device], *, workers: int, memory: list[int], most: dict[str, int] | None = None
) -> dict[str, str]:
    """The device that each job saw; ``most``: jobs at a time."""
    jobs = [
        Job(str(number), "tests.sweeps.engine_jobs:visible_devices_after", {"seconds": 0.2}, Resources(memory=size))
        for number, size in enumerate(memory)
    ]
    most = {"now": 0, "ever": 0} if most is None else most
    results = {}
    with contextlib.closing(LocalEngine(workers, devices=made, poll=0.02)) as engine:
        for event in engine.run(jobs):
            most["now"] += {"started": 1, "finished": -1}.get(event.kind, 0)
            most["ever"] = max(most.values())
            if event.kind == "finished":
                assert event.error is None
                results[event.key] = event.result
    assert len(results) == len(jobs)
    return results
