"""Generation against the arg max of plain forward passes, one token at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from landscape.config import RunConfig
from landscape.errors import UsageError
from landscape.evaluation.generation import Generator
from landscape.models import LoadedModel, load_model

PROMPTS = ["Q: Tom has 3 apples.\nA:", "Q: 2\nA:", "Q: Ann has 12 pens and buys 7 more. How many has she?\nA:"]


@pytest.fixture(scope="module", params=["tiny", "tiny-t5"])
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    return load_model(RunConfig.parse({"model": request.param, "dtype": "float64"}))


def generator(loaded: LoadedModel, max_new_tokens: int = 12, **options: Any) -> Generator:
    return Generator(loaded.model, loaded.tokenizer, loaded.kind, max_new_tokens, **options)


def by_hand(loaded: LoadedModel, prompt: str, max_new_tokens: int) -> tuple[list[int], bool]:
    """The tokens that greedy decoding writes, and whether it was cut: no cache, no padding."""
    model: Any = loaded.model
    ids = torch.tensor([loaded.tokenizer(prompt)["input_ids"]])
    if loaded.kind == "causal" and int(ids[0, -1]) == loaded.tokenizer.eos_token_id:
        ids = ids[:, :-1]
    written: list[int] = []
    start = [] if loaded.kind == "causal" else [model.config.decoder_start_token_id]
    for _ in range(max_new_tokens):
        more = torch.tensor([[*start, *written]], dtype=torch.long)
        with torch.no_grad():
            if loaded.kind == "causal":
                logits = model(input_ids=torch.cat([ids, more], dim=1)).logits
            else:
                logits = model(input_ids=ids, decoder_input_ids=more).logits
        token = int(logits[0, -1].argmax())
        if token == loaded.tokenizer.eos_token_id:
            return written, False
        written.append(token)
    return written, True


def test_greedy_replies_in_one_batch(loaded: LoadedModel) -> None:
    replies = generator(loaded).write(PROMPTS)
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        tokens, cut = by_hand(loaded, prompt, 12)
        assert reply.text.strip() == str(loaded.tokenizer.decode(tokens, skip_special_tokens=True)).strip()
        assert reply.truncated is cut
    assert len({reply.text for reply in replies}) > 1


def test_a_reply_that_ends_and_one_that_is_cut(loaded: LoadedModel) -> None:
    long, short = (generator(loaded, tokens).write(PROMPTS[:1])[0] for tokens in (60, 2))
    assert not long.truncated
    assert short.truncated
    assert long.text.startswith(short.text)


def test_the_model_s_own_generation_defaults_do_not_count(loaded: LoadedModel) -> None:
    model: Any = loaded.model
    expected = generator(loaded).write(PROMPTS)
    own = model.generation_config
    try:
        model.generation_config = type(own)(
            do_sample=True, repetition_penalty=5.0, suppress_tokens=list(range(5, 300)), max_length=3,
            decoder_start_token_id=getattr(own, "decoder_start_token_id", None),
        )  # fmt: skip
        assert generator(loaded).write(PROMPTS) == expected
        assert model.generation_config.repetition_penalty == 5.0
    finally:
        model.generation_config = own


def test_samples_are_those_of_their_seed_and_name(loaded: LoadedModel) -> None:
    def sample(seed: int, draw: str) -> list[str]:
        made = generator(loaded, temperature=2.0, seed=seed).write(PROMPTS, draw)
        return [reply.text for reply in made]

    before = torch.random.get_rng_state()
    first = sample(0, "0 0")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert sample(0, "0 0") == first
    assert sample(1, "0 0") != first
    assert sample(0, "0 1") != first


def test_samples_follow_the_distribution_of_the_first_token(loaded: LoadedModel) -> None:
    """Frequencies of 400 first tokens within four standard errors of softmax(logits / T)."""
    if loaded.kind != "causal":
        loaded = load_model(RunConfig.parse({"model": "tiny"}))
    ids = torch.tensor([loaded.tokenizer(PROMPTS[1])["input_ids"]])
    with torch.no_grad():
        chances = torch.softmax(loaded.model(input_ids=ids).logits[0, -1].double() / 1.5, dim=0)
    token = int(chances.argmax())
    text = str(loaded.tokenizer.decode([token]))
    made = generator(loaded, 1, temperature=1.5, seed=3).write([PROMPTS[1]] * 400)
    found = sum(reply.text == text for reply in made) / 400
    chance = float(sum(c for i, c in enumerate(chances) if str(loaded.tokenizer.decode([i])) == text))
    assert 0.01 < chance < 0.999
    assert abs(found - chance) < 4 * (chance * (1 - chance) / 400) ** 0.5


def test_nothing_to_write(loaded: LoadedModel) -> None:
    assert generator(loaded).write([]) == []


def test_prompts_that_leave_no_room() -> None:
    loaded = load_model(RunConfig.parse({"model": "tiny"}))
    positions = loaded.model.config.max_position_embeddings
    longest = max(len(loaded.tokenizer(prompt)["input_ids"]) for prompt in PROMPTS)
    generator(loaded, positions - longest).check(PROMPTS)
    with pytest.raises(UsageError, match=f"--max-new-tokens: {positions} after the longest prompt of {longest} tokens"):
        generator(loaded, positions).check(PROMPTS)
    with pytest.raises(UsageError, match="allowed: none: the prompt alone is too long"):
        generator(loaded, 1).check(["word " * positions])
    # A later turn is cut short instead: the conversation is already under way.
    (reply,) = generator(loaded, 5).write(["word " * positions])
    assert (reply.text, reply.truncated) == ("", True)
