"""Small stand-ins for the three benchmarks, with the columns of the published sets, and a way to script a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from landscape.evaluation.base import Reply
from landscape.evaluation.generation import Generator

WORD_PROBLEMS = {
    "question": [f"Tom has {n} apples and buys {n} more. How many has he?" for n in range(1, 6)],
    "answer": [f"{n} + {n} = <<{n}+{n}={2 * n}>>{2 * n}\n#### {2 * n}" for n in range(1, 6)],
}
FUNCTIONS = {
    "task_id": ["T/0", "T/1"],
    "prompt": [
        'def add(a, b):\n    """The sum."""\n',
        'from typing import List\n\n\ndef first(xs: List[int]) -> int:\n    """The first."""\n',
    ],
    "canonical_solution": ["    return a + b\n", "    return xs[0]\n"],
    "test": [
        "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n",
        "def check(candidate):\n    assert candidate([4, 5]) == 4\n",
    ],
    "entry_point": ["add", "first"],
}
CONVERSATIONS = {
    "question_id": [81, 111],
    "category": ["writing", "math"],
    "turns": [["Write a line.", "Now a shorter one."], ["What is 2 + 2?", "And 2 + 3?"]],
    "reference": [[], ["4", "5"]],
}
TABLES = {"gsm8k": WORD_PROBLEMS, "humaneval": FUNCTIONS, "mt_bench": CONVERSATIONS}


def write_benchmarks(folder: Path) -> Path:
    """A folder with a ``test.parquet`` for each benchmark, as users have them."""
    for name, columns in TABLES.items():
        (folder / name).mkdir(parents=True)
        pq.write_table(pa.table(columns), folder / name / "test.parquet")
    return folder


Script = Callable[[str], Reply]


class ScriptedModel:
    """Replies by a script instead of a model; remembers every prompt."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, script: Script | Mapping[str, str]) -> None:
        self.prompts: list[str] = []
        self._script = script if callable(script) else lambda prompt: Reply(_matching(script, prompt), False)
        monkeypatch.setattr(Generator, "write", lambda generator, prompts, draw="": self.write(prompts))

    def write(self, prompts: Sequence[str]) -> list[Reply]:
        self.prompts += prompts
        return [self._script(prompt) for prompt in prompts]


def _matching(script: Mapping[str, str], prompt: str) -> str:
    (found,) = [reply for part, reply in script.items() if part in prompt]
    return found


def options(metric: str, folder: Path, **more: Any) -> dict[str, Any]:
    return {"metric": metric, "data": str(folder), "batch_size": 2, "max_new_tokens": 8, **more}
