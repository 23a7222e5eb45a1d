"""How the tests call the command line, and the small run that they call it with."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from landscape.cli import app

SMALL = {
    "model": "tiny", "task": "arithmetic", "rank": 4, "alpha": "r", "max_steps": 3, "eval_steps": 3,
    "train_examples": 32, "eval_examples": 8, "probe_examples": 8, "per_device_train_batch_size": 4,
    "base_loss": False,
}  # fmt: skip
SETS = [item for key, value in SMALL.items() for item in ("--set", f"{key}={json.dumps(value)}")]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def payload(result: Result) -> dict[str, Any]:
    return json.loads(result.stdout.splitlines()[-1], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
