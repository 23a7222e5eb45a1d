"""What a model writes after a prompt: batches padded on the left, greedy unless a temperature is asked for."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from landscape.errors import UsageError
from landscape.evaluation.base import Reply

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from landscape.loss import LossKind


@dataclass(frozen=True)
class Generator:
    """Writes replies.

    Args:
        model: a decoder or encoder-decoder, with or without adapter, in eval mode.
        max_new_tokens: after which a reply is cut, and marked as truncated.
        temperature: 0: the most probable token at each step; else samples from softmax(logits/temperature).
        seed: of the samples.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    kind: LossKind
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0

    def check(self, prompts: Sequence[str]) -> None:
        """`UsageError` where a prompt leaves no room for ``max_new_tokens`` in the model's positions."""
        longest = max((len(ids) for ids in self._encode(prompts)), default=0)
        if self._positions is not None and longest + self.max_new_tokens > self._positions:
            room = self._positions - longest
            allowed = f"at most {room}" if room > 0 else "none: the prompt alone is too long"
            raise UsageError(
                f"--max-new-tokens: {self.max_new_tokens} after the longest prompt of {longest} tokens exceeds the "
                f"model's {self._positions} positions; allowed: {allowed}"
            )

    def write(self, prompts: Sequence[str], draw: str = "") -> list[Reply]:
        """A reply to each prompt. Greedy ones do not depend on their company, up to the arithmetic of a batch.

        Args:
            draw: names the samples: with the same seed, name and prompts they are the same.
        """
        import torch

        if not prompts:
            return []
        encoded = self._encode(prompts)
        room = self.max_new_tokens
        if self._positions is not None:
            room = min(room, self._positions - max(map(len, encoded)))
        if room < 1:
            return [Reply("", truncated=True) for _ in prompts]
        inputs = self._padded(encoded)
        with torch.no_grad(), _drawing(self._seed(draw) if self.temperature else None, inputs["input_ids"].device):
            output = self._generate(inputs, room)
        start = inputs["input_ids"].shape[1] if self.kind == "causal" else 1
        return [
            self._reply(ids if self.kind == "causal" else [], row[start:].tolist())
            for ids, row in zip(encoded, output, strict=True)
        ]

    @property
    def _positions(self) -> int | None:
        """How many tokens a decoder can tell apart; encoder-decoders of ours count relatively."""
        config: Any = self.model.config
        return getattr(config, "max_position_embeddings", None) if self.kind == "causal" else None

    def _encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """As in training, where a text's own end-of-sequence token comes after the target."""
        rows: list[list[int]] = self.tokenizer(list(prompts))["input_ids"]  # type: ignore[assignment]
        if self.kind == "causal":
            return [ids[:-1] if len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id else ids for ids in rows]
        return rows

    def _padded(self, rows: list[list[int]]) -> dict[str, Tensor]:
        """On the left, so that what is written follows every prompt directly."""
        import torch

        device, longest = next(self.model.parameters()).device, max(map(len, rows))
        ids = torch.full((len(rows), longest), int(self.tokenizer.pad_token_id))  # type: ignore[arg-type]
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, longest - len(row) :] = torch.tensor(row)
            mask[index, longest - len(row) :] = 1
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}

    def _generate(self, inputs: dict[str, Tensor], room: int) -> Tensor:
        from transformers import GenerationConfig

        get_base_model = getattr(self.model, "get_base_model", None)
        model: Any = get_base_model() if callable(get_base_model) else self.model
        own = model.generation_config
        start = [one.decoder_start_token_id for one in (own, model.config) if hasattr(one, "decoder_start_token_id")]
        sampling = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        config = GenerationConfig(
            max_new_tokens=room,
            num_beams=1,
            use_cache=True,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            decoder_start_token_id=next((token for token in start if token is not None), None),
            **(sampling if self.temperature else {"do_sample": False}),
        )
        # A model's own defaults (penalties, a temperature) would fill in what is not said here.
        model.generation_config = GenerationConfig()
        try:
            return model.generate(**inputs, generation_config=config)
        finally:
            model.generation_config = own

    def _reply(self, prompt: list[int], ids: list[int]) -> Reply:
        """Decoded together with the prompt: alone, some tokenizers would lose the space at the beginning."""
        eos = self.tokenizer.eos_token_id
        ended = eos in ids
        ids = ids[: ids.index(eos)] if ended else ids
        before, whole = self._decode(prompt), self._decode([*prompt, *ids])
        return Reply(whole[len(before) :] if whole.startswith(before) else self._decode(ids), truncated=not ended)

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _seed(self, draw: str) -> int:
        digest = hashlib.sha256(f"samples {self.seed} {draw}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1


@contextlib.contextmanager
def _drawing(seed: int | None, device: torch.device) -> Iterator[None]:
    """Sampling in transformers draws from the global generators: lend them a seed, and put them back."""
    import torch

    if seed is None:
        yield
        return
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed(seed)
        yield
