"""Rebuild the packaged presets: a small byte-level BPE tokenizer, and `tiny` and `tiny-t5` pretrained from scratch.

    python experiments/build_presets.py [--preset tiny] [--steps 1500] [--out FOLDER]

Trains on the *pretraining* distribution of `landscape.data.arithmetic` alone; the fine-tuning distribution is only
measured (the tokenizer, which cuts text, has seen both). One core, three to five minutes a model. A rebuild is bitwise
equal on the same machine type and versions, equivalent elsewhere.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialize
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from landscape.data.arithmetic import Distribution, Problem, generate
from landscape.data.encoding import Encoder, Example
from landscape.data.rows import Rows
from landscape.data.tasks import TASKS
from landscape.loss import LossKind, forward_losses

ASSETS = Path(__file__).resolve().parents[1] / "landscape" / "assets"
VOCABULARY = 576
"""Rows of the embedding; the merges of the generated corpus end a little below."""
PAD, BOS, EOS = 0, 1, 2
SEED = 20240917
KINDS: dict[str, LossKind] = {"tiny": "causal", "tiny-t5": "seq2seq"}
STEPS = {"tiny": 1500, "tiny-t5": 2500}


def build_tokenizer(kind: LossKind) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that any text can be encoded; digits stay apart. Decoders get <s> in front, T5 </s> behind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(r" ?\d"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    distributions: tuple[Distribution, ...] = ("pretraining", "finetuning")
    problems = [problem for name in distributions for problem in generate(name, "train", 4096)]
    corpus = [f"Q: {problem.question}\nA: {problem.answer}" for problem in problems]
    tokenizer.train_from_iterator(corpus, trainer)
    single = "<s> $A" if kind == "causal" else "$A </s>"
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=single, special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def new_model(preset: str) -> PreTrainedModel:
    """Untrained, in float32."""
    ids: dict[str, Any] = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    if preset == "tiny":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=96,
                intermediate_size=256,
                num_hidden_layers=3,
                num_attention_heads=3,
                num_key_value_heads=3,
                max_position_embeddings=512,
                tie_word_embeddings=True,
                use_cache=False,
                **ids,
            )
        )
    ids["decoder_start_token_id"] = PAD
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=96,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=3,
            dropout_rate=0.0,
            use_cache=False,
            **ids,
        )
    )


def encode(
    problems: list[Problem], tokenizer: PreTrainedTokenizerFast, kind: LossKind, *, whole: bool
) -> list[Example]:
    """The task's own encoding; ``whole`` counts the question's tokens too (decoders)."""
    rows = Rows({"input": [problem.question for problem in problems]}, [problem.answer for problem in problems])
    examples = Encoder(TASKS["arithmetic"], (), tokenizer, kind, max_length=256).encode(rows)
    if whole and kind == "causal":
        return [{**example, "labels": example["input_ids"]} for example in examples]
    return examples


def batch_of(examples: list[Example]) -> dict[str, torch.Tensor]:
    """Right-padded tensors."""
    padding = {"input_ids": PAD, "attention_mask": 0, "labels": -100}
    return {
        key: torch.nn.utils.rnn.pad_sequence([torch.tensor(example[key]) for example in examples], True, value)
        for key, value in padding.items()
    }


@torch.no_grad()
def measure(model: PreTrainedModel, encoded: list[Example], kind: LossKind) -> float:
    """Mean loss of a label over all examples."""
    model.eval()
    parts = [forward_losses(model, batch_of(encoded[i : i + 64]), kind) for i in range(0, len(encoded), 64)]
    return float(sum(part.nll.sum() for part in parts) / sum(part.count.sum() for part in parts))


def batches(encoded: list[Example], size: int, generator: torch.Generator) -> Iterator[list[Example]]:
    """Shuffled batches for ever."""
    while True:
        order = torch.randperm(len(encoded), generator=generator).tolist()
        for start in range(0, len(order) - size + 1, size):
            yield [encoded[i] for i in order[start : start + size]]


def pretrain(model: PreTrainedModel, encoded: list[Example], kind: LossKind, *, steps: int, peak: float) -> None:
    """AdamW with a warm-up of 50 steps and a linear decay."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.05)
    order = batches(encoded, 64, torch.Generator().manual_seed(SEED))
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * min((step + 1) / 50, 1.0) * max(1 - step / steps, 0.02)
        loss = forward_losses(model, batch_of(next(order)), kind).mean
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"  step {step + 1}: loss {loss.item():.4f}", flush=True)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """config.json, model.safetensors in float16 and the tokenizer; load it in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.to_dict() | {"architectures": [type(model).__name__], "dtype": "float32"}
    for key in ("_name_or_path", "transformers_version"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    shared: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in shared:
            shared.add(tensor.data_ptr())
            tensors[name] = tensor.half().contiguous()
    (folder / "model.safetensors").write_bytes(serialize(tensors, metadata={"format": "pt"}))
    # Encoding left its truncation in the tokenizer's state, which would be saved with it.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(folder)


def build(preset: str, out: Path, *, steps: int) -> None:
    """Train one preset, write it, and print what was measured."""
    kind = KINDS[preset]
    tokenizer = build_tokenizer(kind)
    torch.manual_seed(SEED)
    model = new_model(preset)
    start = time.monotonic()
    pretrain(
        model,
        encode(generate("pretraining", "train", 60_000), tokenizer, kind, whole=True),
        kind,
        steps=steps,
        peak=3e-3,
    )
    model.half().float()
    distributions: tuple[Distribution, ...] = ("pretraining", "finetuning")
    held_out = {name: encode(generate(name, "eval", 512), tokenizer, kind, whole=False) for name in distributions}
    losses = ", ".join(f"{name} {measure(model, rows, kind):.4f}" for name, rows in held_out.items())
    save(model, tokenizer, out / preset)
    lengths = [len(example["input_ids"]) for example in held_out["finetuning"]]
    seconds = time.monotonic() - start
    print(
        f"{preset}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters, {steps} steps in "
        f"{seconds:.0f} s; answer loss on held-out {losses} (uniform guess {math.log(VOCABULARY):.2f}); "
        f"{len(tokenizer)} tokens known, {sum(lengths) / len(lengths):.0f} an example, at most {max(lengths)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", choices=list(KINDS), help="default: all")
    parser.add_argument("--steps", type=int, help="default: " + ", ".join(f"{n} {k}" for k, n in STEPS.items()))
    parser.add_argument("--out", type=Path, default=ASSETS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for preset in options.preset or KINDS:
        build(preset, options.out, steps=options.steps or STEPS[preset])


if __name__ == "__main__":
    main()
