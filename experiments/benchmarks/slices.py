"""Loss slices of LoRA models beside loss-landscapes, landscaper and loss-landscape-3d.

    python experiments/benchmarks/slices.py --peers-python PYTHON -o experiments/benchmarks/results/slices-cpu.json
    python experiments/benchmarks/slices.py --only "cost 4x32" correctness

*Cost*: seconds a point over those of a bare ``no_grad`` forward pass with the model's own loss, measured just before
and after; the median over rounds that alternate between the tools, all in one process. Drawing directions and other
preparation is not counted, neither ours nor theirs. *Correctness*: what a tool does to the model, and its values
against direct evaluation. Every peer is measured as documented, and with only the adapter displaced, to which end it
must be led (slices_parts/peers.py). *Adaptive*: 51x51 points from few evaluations, and the error at 200 points that
were not among them. The JSON is written after every part, so that an interruption loses one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slices_parts.measure import run_part
from slices_parts.peers import PEERS
from slices_parts.tables import show
from slices_parts.workload import SMOLLM2

from landscape.store.atomic import read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
ALL_SPACES = ["adapter", "merged", "tangent"]


def parts(peers: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Tasks by the name of their part; a task is a process."""

    def cost(case: str, points: int, steps: int, rounds: int, **other: Any) -> list[dict[str, Any]]:
        task = {"part": "cost", "case": case, "points": points, "steps": steps, "rounds": rounds, "peers": peers}
        return [{**task, "spaces": ALL_SPACES, **other}]

    def adaptive(case: str, spaces: list[str], seeds: int) -> list[dict[str, Any]]:
        return [
            {"part": "adaptive", "case": case, "space": space, "seed": seed}
            for space in spaces
            for seed in range(seeds)
        ]

    return {
        "cost 4x32": cost("4x32", 48, 5, 5),
        "cost 4x32, 2 threads": cost("4x32", 48, 5, 5, threads=2),
        "cost 16x64": cost("16x64", 4, 3, 3),
        f"cost {SMOLLM2}": cost(SMOLLM2, 16, 3, 2, spaces=["adapter", "merged"]),
        "correctness": [{"part": "correctness", "case": "4x32", "steps": 5, "peers": peers}],
        "adaptive 4x32": adaptive("4x32", ALL_SPACES, 2),
        "adaptive 16x64": adaptive("16x64", ["adapter", "merged"], 1),
        f"adaptive {SMOLLM2}": adaptive(SMOLLM2, ["adapter"], 1),
    }


def in_process(python: str, task: dict[str, Any]) -> Any:
    """A task's result from a fresh process."""
    threads = str(task.get("threads", 1))
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }  # fmt: skip
    command = [python, __file__, "--child", json.dumps(task)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> str:
    """The processor's name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def run(arguments: argparse.Namespace) -> None:
    """The parts that were asked for, each printed and written when it is done."""
    survey = in_process(arguments.peers_python, {"part": "survey"})
    for name, requirement in survey.pop("missing").items():
        print(f"{name} is missing from {arguments.peers_python}: pip install --no-deps {requirement}", file=sys.stderr)
        arguments.tools = [tool for tool in arguments.tools if tool != name]
    for name, tasks in parts(arguments.tools).items():
        if arguments.only and name not in arguments.only:
            continue
        began = time.perf_counter()
        about = {
            "machine": machine(), "cores": os.cpu_count(), "system": platform.platform(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"), "load": os.getloadavg(), **survey,
        }  # fmt: skip
        results = [in_process(arguments.peers_python, task) for task in tasks]
        result = results if tasks[0]["part"] == "adaptive" else results[0]
        show(name, result)
        print(f"  ({time.perf_counter() - began:.0f} s)")
        if arguments.output:
            kept = read_json(arguments.output) if arguments.output.exists() else {}
            write_json(arguments.output, {**kept, name: {"about": about, "tasks": tasks, "result": result}})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter with the peers, torch and peft")
    parser.add_argument("--only", nargs="+", choices=list(parts([])), metavar="PART", help=", ".join(parts([])))
    parser.add_argument("--tools", nargs="*", choices=list(PEERS), default=list(PEERS), help="peers to compare with")
    parser.add_argument("-o", "--output", type=Path, help="JSON; parts that are not measured now are kept")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.child:
        print(json.dumps(run_part(json.loads(arguments.child))))
        return
    run(arguments)


if __name__ == "__main__":
    main()
