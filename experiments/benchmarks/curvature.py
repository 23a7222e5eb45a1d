"""Sharpness, the largest algebraic Hessian eigenvalue, beside PyHessian, hessian-eigenthings and curvlinops.

    python experiments/benchmarks/curvature.py --peers-python PYTHON            # one snapshot
    python experiments/benchmarks/curvature.py --no-snapshot --trajectory       # 50 consecutive ones
    python experiments/benchmarks/curvature.py --no-snapshot --tiny-run         # every 4th of a run of the tiny preset

One snapshot: every tool on the same model and batch (curvature_parts/workload.py), with untrained and trained weights.
Two stops: *right*, the earliest moment at which its answer is within 1e-3 of the truth, which only an oracle knows, and
*certified*, when its residual is at most 1e-3, which the tool could know. Every measurement is a process of its own,
with its peak memory; rounds alternate between the tools, and a ratio is the median over rounds of two times of the same
round. Peers that are not installed are named and left out. Truths are kept in results/curvature-truth.json and computed
where they are missing, which takes minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from curvature_parts.measure import OURS, fewest_products, run_part, tiny_run
from curvature_parts.peers import PEERS
from curvature_parts.tables import show_snapshot, show_tiny_run, show_trajectory
from curvature_parts.workload import SHAPES, WEIGHTS, TruthTable, build, load_weights, source_digest, train

RESULTS = Path(__file__).resolve().parent / "results"
ROOT = Path(__file__).resolve().parents[2]


def in_process(arguments: argparse.Namespace, task: dict[str, Any]) -> Any:
    """A task's result from a fresh process under the peers' Python."""
    threads = str(arguments.threads)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }  # fmt: skip
    command = [arguments.peers_python, __file__, "--child", json.dumps({"threads": arguments.threads, **task})]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def prepare(arguments: argparse.Namespace, table: TruthTable, folder: Path) -> dict[str, dict[str, Any]]:
    """By shape: trained weights, and by weights what is true of them. Nothing here is timed."""
    prepared: dict[str, dict[str, Any]] = {}
    for shape in arguments.shapes:
        trained = train(shape, arguments.train_steps, arguments.learning_rate, folder)
        cases = {}
        for weights in WEIGHTS:
            path = trained["path"] if weights == "trained" else None
            model, batch = build(shape)
            load_weights(model, path)
            truths = {"largest": table.largest(shape, model), "smallest": table.smallest(shape, model)}
            oracle = []
            for seed in range(arguments.repeats if OURS in arguments.tools else 0):
                name = f"{OURS}, seed {seed}, code {source_digest()}"
                search = lambda: fewest_products(model, batch, seed, truths["largest"])  # noqa: B023, E731
                oracle.append(table.oracle(shape, model, name, search))
            cases[weights] = {"path": path, "truths": truths, "oracle": oracle}
        prepared[shape] = {
            "training": {key: trained[key] for key in ("steps", "learning_rate", "loss")},
            "cases": cases,
        }
    return prepared


def snapshot_part(arguments: argparse.Namespace, table: TruthTable) -> dict[str, Any]:
    """Rounds over tools and shapes; every process measures both kinds of weights."""
    with tempfile.TemporaryDirectory(prefix="landscape-bench-") as folder:
        prepared = prepare(arguments, table, Path(folder))
        rounds: dict[str, dict[str, list[Any]]] = {
            shape: {tool: [] for tool in arguments.tools} for shape in arguments.shapes
        }
        for number in range(arguments.repeats):
            for shape in arguments.shapes:
                for tool in arguments.tools if number % 2 == 0 else arguments.tools[::-1]:
                    cases = {
                        weights: {**case, "oracle": case["oracle"][number] if case["oracle"] else None}
                        for weights, case in prepared[shape]["cases"].items()
                    }
                    task = {"part": "tool", "tool": tool, "shape": shape, "seed": number, "weights": cases}
                    rounds[shape][tool].append(in_process(arguments, task))
            print(f"round {number + 1}/{arguments.repeats}", file=sys.stderr)
    return {
        shape: {
            "training": prepared[shape]["training"],
            "truths": {weights: case["truths"] for weights, case in prepared[shape]["cases"].items()},
            "rounds": rounds[shape],
        }
        for shape in arguments.shapes
    }


def machine() -> str:
    """The processor's name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The parts that were asked for, each printed when it is done."""
    survey = in_process(arguments, {"part": "survey"})
    for name, requirement in survey.pop("missing").items():
        print(f"{name} is missing from {arguments.peers_python}: pip install --no-deps {requirement}", file=sys.stderr)
        arguments.tools = [tool for tool in arguments.tools if tool != name]
    about = {
        "machine": machine(), "cores": os.cpu_count(), "threads": arguments.threads, "system": platform.platform(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "load": os.getloadavg(), **survey,
    }  # fmt: skip
    table = TruthTable(arguments.truth, arguments.recompute_truth)
    result: dict[str, Any] = {}
    if not arguments.no_snapshot:
        result["snapshot"] = snapshot_part(arguments, table)
        show_snapshot(result["snapshot"])
    if arguments.trajectory:
        settings = {
            "shape": arguments.trajectory_shape, "snapshots": arguments.snapshots, "every": arguments.check_every,
            "learning_rate": arguments.learning_rate, "tools": arguments.tools,
        }  # fmt: skip
        task = {"part": "trajectory", **settings, "truth": str(arguments.truth), "recompute": arguments.recompute_truth}
        result["trajectory"] = {**settings, **in_process(arguments, task)}
        show_trajectory(result["trajectory"])
    if arguments.tiny_run:
        with tempfile.TemporaryDirectory(prefix="landscape-bench-") as folder:
            result["tiny-run"] = tiny_run(Path(folder), arguments.probe_tokens, 4, arguments.tiny_steps)
        show_tiny_run(result["tiny-run"])
    return {part: {"about": about, "result": measured} for part, measured in result.items()}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter with the peers, torch and peft")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--tools", nargs="+", choices=[OURS, *PEERS], default=[OURS, *PEERS])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--train-steps", type=int, default=40)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--no-snapshot", action="store_true", help="leave out the main part")
    parser.add_argument("--trajectory", action="store_true", help="also along a training run")
    parser.add_argument("--trajectory-shape", choices=SHAPES, default="4x32")
    parser.add_argument("--snapshots", type=int, default=50, help="of the trajectory")
    parser.add_argument("--check-every", type=int, default=10, help="snapshots between checks against truth and peers")
    parser.add_argument("--tiny-run", action="store_true", help="also every 4th snapshot of a run of the tiny preset")
    parser.add_argument("--tiny-steps", type=int, default=200)
    parser.add_argument("--probe-tokens", type=int, default=256)
    parser.add_argument("--truth", type=Path, default=RESULTS / "curvature-truth.json", help="where truths are kept")
    parser.add_argument("--recompute-truth", action="store_true")
    parser.add_argument("-o", "--output", type=Path, help="JSON; parts that are not measured now are kept")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        print(json.dumps(run_part(json.loads(arguments.child))))
        return
    result = run(arguments)
    if arguments.output:
        kept = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
        arguments.output.write_text(json.dumps({**kept, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
