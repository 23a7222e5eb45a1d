"""A stand-in for lm-eval that answers in the form of version 0.4.13."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest

RESULTS = {
    "results": {
        "arc_easy": {"alias": "arc_easy", "acc,none": 0.25, "acc_stderr,none": 0.1, "sample_len": 4},
        "gsm8k": {"exact_match,strict-match": 0.5, "exact_match_stderr,strict-match": "N/A"},
    },
    "n-samples": {"arc_easy": {"original": 100, "effective": 4}, "gsm8k": {"original": 9, "effective": 2}},
    "versions": {"arc_easy": 1.0, "gsm8k": 3.0},
}


def install(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Put the stand-in in lm-eval's place; returns what it will have been asked."""
    calls: list[dict[str, Any]] = []

    class TaskManager:
        def __init__(self, include_path: list[str] | None = None) -> None:
            self.all_tasks = ["arc_easy", "gsm8k", *(include_path or [])]

    def simple_evaluate(**options: Any) -> Any:
        calls.append(options)
        return RESULTS

    class HFLM:
        def __init__(self, **options: Any) -> None:
            self.options = options

    names = ("lm_eval", "lm_eval.tasks", "lm_eval.models", "lm_eval.models.huggingface")
    modules = {name: ModuleType(name) for name in names}
    for name, module in modules.items():
        module.__spec__ = ModuleSpec(name, None, is_package=True)
        monkeypatch.setitem(sys.modules, name, module)
    vars(modules["lm_eval"]).update(simple_evaluate=simple_evaluate, __version__="0.4.13")
    vars(modules["lm_eval.tasks"])["TaskManager"] = TaskManager
    vars(modules["lm_eval.models.huggingface"])["HFLM"] = HFLM
    return calls
