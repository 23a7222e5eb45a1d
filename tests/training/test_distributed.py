"""Two processes (gloo) against one process with the same examples a step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from landscape.config import RunConfig
from landscape.store import Store
from landscape.training import train
from tests.training.conftest import QUICK, final_weights


@pytest.mark.parametrize("changes", [{"method": "mgpo"}, {"method": "ggpo", "method_args": {"gradient": "exact"}}])
def test_two_processes_equal_one(tmp_path: Path, changes):
    common = {
        **QUICK,
        **changes,
        "dtype": "float64",
        "lora_dropout": 0.0,
        "learning_rate": 1e-3,
        "max_steps": 3,
        "save_steps": 0,
    }
    one = RunConfig.parse({**common, "gradient_accumulation_steps": 2})
    two = {**common, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(two))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "landscape"]
    command += ["train", "-c", str(tmp_path / "run.yaml"), "--store", str(tmp_path / "two"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]

    result = train(one, tmp_path / "one")
    single = Store.open(tmp_path / "one").get(result.run_id)
    double = Store.open(tmp_path / "two").runs()[0]
    for column in ("loss_clean", "loss_perturbed", "grad_norm", "tokens", "perturbation_norm"):
        a, b = single.metrics()[column].to_numpy(), double.metrics()[column].to_numpy()
        torch.testing.assert_close(torch.tensor(b), torch.tensor(a), rtol=1e-8, atol=1e-12)
    a, b = single.evaluations(), double.evaluations()
    torch.testing.assert_close(
        torch.tensor(b["loss"].to_numpy()), torch.tensor(a["loss"].to_numpy()), rtol=1e-8, atol=0
    )
    expected = final_weights(single)
    for key, value in final_weights(double).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-8)
