"""What a method and the toolkit around it cost: step times and peak memory, measured side by side.

    python experiments/benchmarks/training.py                            # SmolLM2-135M, 4x96 tokens, r=16, CPU
    python experiments/benchmarks/training.py --shapes llama-2-7b ...    # random weights of that shape, on a GPU

Rounds alternate between the variants, each with its own trainer, and a ratio is the median over rounds of two step
times of the same round: machines are shared, so that seconds drift and ratios much less. Memory is the peak of a
process of its own (CPU) or the allocator's peak (GPU). Every ratio is printed beside its goal; GGPO's also beside its
floor, the time that drawing its noise takes. The JSON that comes out names the hardware.
"""

from __future__ import annotations

import argparse
import atexit
import itertools
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from landscape.config import RunConfig
from landscape.loss import forward_losses
from landscape.methods import METHODS, attach
from landscape.methods.adapted import adapted_linears
from landscape.methods.base import noise_generator

VARIANTS: dict[str, dict[str, Any]] = {
    "bare loop": {"loop": True},
    "lora": {},
    "lora, capture every step": {"capture": {"every": 1}},
    "mgpo": {"method": "mgpo"},
    "mgpo, host copy": {"method": "mgpo", "method_args": {"offload": True}},
    "mgpo, clean loss each step": {"method": "mgpo", "clean_loss_every": 1},
    "mgpo-released": {"method": "mgpo-released"},
    "ggpo, swap": {"method": "ggpo", "method_args": {"apply": "swap"}},
    "ggpo, regenerate": {"method": "ggpo", "method_args": {"apply": "regenerate"}},
    "ggpo, swap, clean loss each step": {
        "method": "ggpo", "method_args": {"apply": "swap"}, "clean_loss_every": 1,
    },
    "full": {"method": "full", "rank": None, "alpha": None},
}  # fmt: skip
GOALS = {
    ("lora", "bare loop"): 1.05,
    ("lora, capture every step", "lora"): 1.02,
    ("mgpo", "lora"): 1.03,
    ("mgpo, clean loss each step", "lora"): None,
    ("mgpo, host copy", "lora"): None,
    ("mgpo-released", "lora"): None,
    ("ggpo, swap", "lora"): None,
    ("ggpo, regenerate", "lora"): None,
    ("ggpo, swap, clean loss each step", "lora"): None,
    ("full", "lora"): None,
}
LLAMA_2_7B = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32000, "use_cache": False,
}  # fmt: skip


def run_config(arguments: argparse.Namespace, variant: dict[str, Any]) -> RunConfig:
    """The run of one variant; everything that is not its own is off."""
    common = {
        "model": arguments.model,
        "dtype": arguments.dtype,
        "rank": arguments.rank,
        "alpha": 2.0 * arguments.rank,
        "learning_rate": 1e-4,
        "max_steps": arguments.steps,
        "per_device_train_batch_size": arguments.batch,
        "gradient_accumulation_steps": arguments.accumulation,
        "max_length": arguments.length,
        "clean_loss_every": 0,
        "base_loss": False,
        "eval_steps": 0,
        "save_steps": 0,
        "capture": "none",
        "data_seed": 0,
    }
    return RunConfig.parse({**common, **{key: value for key, value in variant.items() if key != "loop"}})


def synthetic_batch(vocabulary: int, batch: int, length: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Full-length random tokens: every step costs the same."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, vocabulary, (batch, length), generator=generator).to(device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


class FixedSplit:
    """A training split whose every batch is `synthetic_batch`."""

    def __init__(self, vocabulary: int, length: int) -> None:
        self.vocabulary, self.length = vocabulary, length

    def __len__(self) -> int:
        return 10_000

    def collate(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """As `landscape.data.Split.collate`."""
        return synthetic_batch(self.vocabulary, len(indices), self.length, torch.device("cpu"))


def build_model(arguments: argparse.Namespace, config: RunConfig) -> torch.nn.Module:
    """The pretrained preset, or random weights of a published shape; on the device, with the method's adapter."""
    if arguments.shapes:
        from transformers import LlamaConfig, LlamaForCausalLM

        dtype = getattr(torch, arguments.dtype)
        with torch.device(arguments.device), torch.random.fork_rng(devices=[]):
            torch.set_default_dtype(dtype)
            model: torch.nn.Module = LlamaForCausalLM(LlamaConfig(**LLAMA_2_7B))
            torch.set_default_dtype(torch.float32)
    else:
        from landscape.models import load_model

        model = load_model(config).model  # type: ignore[assignment]
    return attach(model.to(arguments.device), config).train()


def make_stepper(arguments: argparse.Namespace, name: str) -> Callable[[int], list[float]]:
    """A function that takes n steps of this variant and returns each one's seconds."""
    variant = VARIANTS[name]
    config = run_config(arguments, variant)
    model = build_model(arguments, config)
    if variant.get("loop"):
        return bare_loop(arguments, model)
    return shared_trainer(config, model, arguments.length)


def vocabulary_size(model: Any) -> int:
    """From the model's config."""
    return int(model.config.vocab_size)


def bare_loop(arguments: argparse.Namespace, model: torch.nn.Module) -> Callable[[int], list[float]]:
    """What one would write by hand: forward, loss, backward, AdamW, and the loss read once a step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=True)
    device = parameters[0].device
    vocabulary = vocabulary_size(model)

    def steps(count: int) -> list[float]:
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            total = torch.zeros((), device=device)
            for _ in range(arguments.accumulation):
                batch = synthetic_batch(vocabulary, arguments.batch, arguments.length, device)
                loss = forward_losses(model, batch, "causal").mean / arguments.accumulation
                loss.backward()
                total += loss.detach()
            optimizer.step()
            optimizer.zero_grad()
            float(total)
            seconds.append(time.perf_counter() - start)
        return seconds

    return steps


def shared_trainer(config: RunConfig, model: torch.nn.Module, length: int) -> Callable[[int], list[float]]:
    """The real trainer and recorder, into a store of its own."""
    import numpy as np

    from landscape.methods import PerturbationCallback
    from landscape.store import SnapshotLayout, Store, plan_capture
    from landscape.training import LandscapeTrainer, resolve
    from landscape.training.recorder import Recorder

    vocabulary = vocabulary_size(model)
    data: Any = type("Data", (), {"train": FixedSplit(vocabulary, length)})()
    rounds = iter(range(10**6))
    folder = Path(tempfile.mkdtemp(prefix="landscape-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    def steps(count: int) -> list[float]:
        resolved = resolve(config.replace(max_steps=count))
        method = METHODS[config.method]
        factory, callback = method.perturbation, None
        if factory is not None:
            parsed = method.parse_arguments(config.method_args)
            callback = PerturbationCallback(lambda m, o: factory(m, o, parsed, 0))
        order = np.arange(count * config.per_device_train_batch_size * config.gradient_accumulation_steps)
        trainer = LandscapeTrainer(
            model, resolved, split=data.train, order=order, kind="causal", output_dir=folder, perturbation=callback
        )
        run = Store.create(folder).add(resolved, f"bench-{next(rounds)}", {})
        trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
        plan = plan_capture(config.capture, count, SnapshotLayout.from_tensors(trainable).record_bytes)
        stamps: list[float] = []
        attempt = run.begin_attempt()
        recorder = QuietRecorder(
            trainer, resolved, data, order, run=run, attempt=attempt, plan=plan,
            base_loss=None, on_step=lambda _: stamps.append(time.perf_counter()),
        )  # fmt: skip
        trainer.add_callback(recorder)
        trainer.train()
        recorder.close()
        attempt.close()
        # From one step's record to the next: everything between is in it, capture too.
        return [later - earlier for earlier, later in itertools.pairwise(stamps)]

    class QuietRecorder(Recorder):
        """Evaluates nothing, not even at the ends."""

        def _evaluate(self, step: int) -> None: ...

    return steps


def draw_floor(model: torch.nn.Module) -> float:
    """Seconds to draw one standard normal for every adapted weight: what GGPO cannot do without."""
    layers = adapted_linears(model)
    buffers = [torch.empty(layer.shape, device=layer.B.device, dtype=torch.float32) for layer in layers]
    start = time.perf_counter()
    for i, buffer in enumerate(buffers):
        buffer.normal_(generator=noise_generator(buffer.device, 0, 0, i))
    if buffers[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Alternate rounds over the variants; per variant the median step of each round."""
    names = arguments.variants
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
    return {"seconds": rounds}


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
    """Peak MiB of this process after a few steps of one variant."""
    make_stepper(arguments, arguments.memory_of)(3)
    if arguments.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def hardware() -> dict[str, Any]:
    """What was measured on."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"device": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def token_curve(arguments: argparse.Namespace) -> list[dict[str, float]]:
    """GGPO's overhead against tokens a step: its draw is paid once, however large the batch."""
    rows = []
    for batch in arguments.curve:
        scaled = argparse.Namespace(**{**vars(arguments), "batch": batch, "variants": ["lora", "ggpo, swap"]})
        seconds = measure(scaled)["seconds"]
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
    return {key: str(value) for key, value in vars(arguments).items() if key not in ("output", "memory_of")}


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
    parser.add_argument("--variants", nargs="*", default=[name for name in VARIANTS if name != "full"])
    parser.add_argument("--curve", nargs="*", type=int, default=[1, 4, 16], help="batch sizes of GGPO's token curve")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(own_memory(arguments))
        return
    result: dict[str, Any] = {"hardware": hardware(), "arguments": _settings(arguments)}
    result["memory_mib"] = {} if arguments.no_memory else {n: peak_memory(arguments, n) for n in arguments.variants}
    result.update(measure(arguments))
    result["ratios"] = ratios(result["seconds"])
    result["ggpo_against_tokens"] = token_curve(arguments) if arguments.curve else []
    show(result)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
