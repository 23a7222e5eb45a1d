"""What a method and the toolkit around it cost: step times and peak memory, measured side by side.

    python experiments/benchmarks/training.py                            # SmolLM2-135M, 4x96 tokens, r=16, CPU
    python experiments/benchmarks/training.py --methods                  # every method over LoRA
    python experiments/benchmarks/training.py --shapes llama-2-7b ...    # random weights of that shape, on a GPU
    python experiments/benchmarks/training.py --table FILE               # the table of a file with "time" and "memory"

Rounds alternate between the variants, each with its own trainer, and a ratio is the median over rounds of two step
times of the same round: machines are shared, so that seconds drift and ratios much less. With ``--together`` so many
variants are measured at a time, each group beside a LoRA of its own. Memory is the peak of a process of its own: the
operating system's (CPU), or the allocator's (GPU). Every ratio is printed beside its goal; GGPO's also beside its
floor, the time that drawing its noise takes. The JSON that comes out names the hardware and its load.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from training_parts.tables import cost_table
from training_parts.trainers import build_model, draw_floor, make_stepper, run_config
from training_parts.variants import EVERY_METHOD, GOALS, TOOLKIT

from landscape.training.memory import PeakMemory


def measure(arguments: argparse.Namespace, names: list[str]) -> dict[str, list[float]]:
    """Alternate rounds over the variants; per variant the median step of each round, in seconds."""
    steppers = {}
    for name in names:
        print(f"preparing {name}", file=sys.stderr)
        steppers[name] = make_stepper(arguments, name)
        steppers[name](2)
    floor_model = build_model(arguments, run_config(arguments, {}))
    draw_floor(floor_model)
    rounds: dict[str, list[float]] = {name: [] for name in [*names, "noise draw"]}
    for number in range(arguments.rounds):
        for name in names if number % 2 == 0 else names[::-1]:
            rounds[name].append(statistics.median(steppers[name](arguments.steps)))
        rounds["noise draw"].append(draw_floor(floor_model))
        print(f"round {number + 1}/{arguments.rounds}", file=sys.stderr)
    return rounds


def measure_groups(arguments: argparse.Namespace) -> list[dict[str, list[float]]]:
    """All variants in one group, or so many at a time beside a LoRA of the group's own."""
    if not arguments.together:
        return [measure(arguments, arguments.variants)]
    names = [name for name in arguments.variants if name != "lora"]
    starts = range(0, len(names), arguments.together)
    return [measure(arguments, ["lora", *names[start : start + arguments.together]]) for start in starts]


def ratios(seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Median over rounds of paired ratios, with the range; GGPO with the floor of the same round."""
    rows = []
    for (name, over), goal in GOALS.items():
        if name in seconds and over in seconds:
            paired = [a / b for a, b in zip(seconds[name], seconds[over], strict=True)]
            row = {"variant": name, "over": over, "ratio": statistics.median(paired), "goal": goal}
            row["range"] = [min(paired), max(paired)]
            if name.startswith("ggpo"):
                row["extra_over_draw"] = statistics.median(
                    (a - b) / d for a, b, d in zip(seconds[name], seconds[over], seconds["noise draw"], strict=True)
                )
            rows.append(row)
    return rows


def peak_memory(arguments: argparse.Namespace, name: str) -> float:
    """Peak MiB of one variant in a fresh process."""
    command = [sys.executable, __file__, "--memory-of", name, "--model", arguments.model, "--rank", str(arguments.rank)]
    command += ["--batch", str(arguments.batch), "--length", str(arguments.length), "--dtype", arguments.dtype]
    command += ["--accumulation", str(arguments.accumulation), "--device", arguments.device]
    command += ["--shapes", arguments.shapes] if arguments.shapes else []
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(output.strip().splitlines()[-1])


def own_memory(arguments: argparse.Namespace) -> float:
    """Peak MiB of this process after a few steps of one variant.

    Not ``ru_maxrss``: Linux hands that on from the process that started this one.
    """
    memory = PeakMemory()
    make_stepper(arguments, arguments.memory_of)(3)
    peaks = memory.read()
    return peaks["cuda" if arguments.device.startswith("cuda") else "rss"] / 2**20


def hardware() -> dict[str, Any]:
    """What was measured on."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    threads, load = torch.get_num_threads(), os.getloadavg()
    return {"device": name, "cores": os.cpu_count(), "threads": threads, "torch": torch.__version__, "load": load}


def processor() -> str:
    """The processor's name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def token_curve(arguments: argparse.Namespace) -> list[dict[str, float]]:
    """GGPO's overhead against tokens a step: its draw is paid once, however large the batch."""
    rows = []
    for batch in arguments.curve:
        scaled = argparse.Namespace(**{**vars(arguments), "batch": batch})
        seconds = measure(scaled, ["lora", "ggpo, swap"])
        paired = [a / b for a, b in zip(seconds["ggpo, swap"], seconds["lora"], strict=True)]
        rows.append({"tokens": batch * arguments.length * arguments.accumulation, "ratio": statistics.median(paired)})
    return rows


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    for row in result["ratios"]:
        goal = f"goal {row['goal']:.2f}" if row["goal"] else "no goal"
        low, high = row["range"]
        extra = f"; extra time / noise draw {row['extra_over_draw']:.2f} (goal 1.2)" if "extra_over_draw" in row else ""
        print(f"{row['variant']:34s} / {row['over']:10s} {row['ratio']:.3f}  [{low:.3f}, {high:.3f}]  {goal}{extra}")
    for name, peak in result["memory_mib"].items():
        print(f"{name:34s} peak {peak:8.0f} MiB  x{peak / result['memory_mib'].get('lora', peak):.3f} of lora")
    for row in result["ggpo_against_tokens"]:
        print(f"ggpo, swap / lora at {row['tokens']:6.0f} tokens a step: {row['ratio']:.3f}")


def _settings(arguments: argparse.Namespace) -> dict[str, str]:
    return {key: str(value) for key, value in vars(arguments).items() if key not in ("output", "memory_of", "table")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--shapes", choices=["llama-2-7b"], help="random weights of this shape instead of --model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=96)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6, help="steps a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--variants", nargs="*", default=[name for name in TOOLKIT if name != "full"])
    parser.add_argument("--methods", action="store_true", help="all methods instead of --variants")
    parser.add_argument("--together", type=int, default=0, help="variants measured at a time, beside a LoRA (0: all)")
    parser.add_argument("--curve", nargs="*", type=int, default=[1, 4, 16], help="batch sizes of GGPO's token curve")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--no-time", action="store_true")
    parser.add_argument("--table", type=Path, help="print the table of such a file and measure nothing")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(own_memory(arguments))
        return
    if arguments.table:
        known = json.loads(arguments.table.read_text())
        print(cost_table(known["time"], known["memory"]))
        return
    if arguments.methods:
        arguments.variants, arguments.curve = ["lora", *EVERY_METHOD], []
    result: dict[str, Any] = {"hardware": hardware(), "arguments": _settings(arguments)}
    result["memory_mib"] = {} if arguments.no_memory else {n: peak_memory(arguments, n) for n in arguments.variants}
    groups = [] if arguments.no_time else measure_groups(arguments)
    result["seconds"] = groups[0] if len(groups) == 1 else groups
    result["ratios"] = [row for seconds in groups for row in ratios(seconds)]
    result["ggpo_against_tokens"] = [] if arguments.no_time else token_curve(arguments)
    result["load_at_end"] = os.getloadavg()
    show(result)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
