"""Token ids and counted labels for each kind of model, truncation, padding, and the splits that training gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from landscape.data import TASKS, load_task
from landscape.data.encoding import Encoder, count_labels, encode_rows
from landscape.data.rows import Rows
from landscape.errors import UsageError
from landscape.loss import count_labels as loss_count
from landscape.loss import forward_losses
from landscape.models import load_model

PAIRS = Rows({"text": ["It was good.", "Bad."], "text_pair": ["It was nice.", "Not good."]}, [1, 0])
QUESTIONS = Rows({"input": ["Kim has 3 hats.", "naïve 12?"]}, ["First 3*4=12. #### 12", "x"])


def test_a_decoder_sees_prompt_target_and_end_and_counts_the_last_two(tokenizers):
    """The oracle cuts the text by hand: in a byte-level vocabulary the pieces' tokens are the whole's."""
    tokenizer = tokenizers["causal"]
    examples = Encoder(TASKS["arithmetic"], (), tokenizer, "causal", 128).encode(QUESTIONS)
    for example, question, answer in zip(examples, QUESTIONS.fields["input"], QUESTIONS.targets, strict=True):
        prompt = tokenizer(f"Q: {question}\nA:", add_special_tokens=False).input_ids
        target = tokenizer(f" {answer}", add_special_tokens=False).input_ids
        assert example["input_ids"] == [tokenizer.bos_token_id, *prompt, *target, tokenizer.eos_token_id]
        assert example["labels"] == [-100] * (1 + len(prompt)) + [*target, tokenizer.eos_token_id]
        assert example["attention_mask"] == [1] * len(example["input_ids"])


def test_a_decoder_is_asked_for_the_labels_word(tokenizers):
    task, tokenizer = TASKS["mrpc"], tokenizers["causal"]
    example = Encoder(task, task.label_words, tokenizer, "causal", 256).encode(PAIRS)[0]
    text = tokenizer.decode(example["input_ids"])
    assert "Sentence 1: It was good.\nSentence 2: It was nice.\n" in text
    counted = [label for label in example["labels"] if label != -100]
    assert tokenizer.decode(counted) == " equivalent</s>"


def test_an_encoder_decoder_is_given_t5s_own_texts(tokenizers):
    task, tokenizer = TASKS["mrpc"], tokenizers["seq2seq"]
    example = Encoder(task, task.label_words, tokenizer, "seq2seq", 256).encode(PAIRS)[1]
    assert tokenizer.decode(example["input_ids"]) == "mrpc sentence1: Bad. sentence2: Not good.</s>"
    assert tokenizer.decode(example["labels"]) == "not_equivalent</s>"


def test_a_classifier_is_given_the_pair_and_the_number(tokenizers):
    task, tokenizer = TASKS["mrpc"], tokenizers["classification"]
    example = Encoder(task, task.label_words, tokenizer, "classification", 256).encode(PAIRS)[0]
    assert example["labels"] == 1
    assert example["input_ids"] == tokenizer("It was good.", "It was nice.").input_ids


@pytest.mark.parametrize("kind", ["causal", "seq2seq", "classification"])
@pytest.mark.parametrize("max_length", [8, 14, 20])
def test_truncation_cuts_from_the_right(tokenizers, kind, max_length):
    task, rows = (TASKS["sst2"], PAIRS) if kind == "classification" else (TASKS["arithmetic"], QUESTIONS)
    words = task.label_words
    whole = Encoder(task, words, tokenizers[kind], kind, 256).encode(rows)
    cut = Encoder(task, words, tokenizers[kind], kind, max_length).encode(rows)
    for long, short in zip(whole, cut, strict=True):
        assert len(short["input_ids"]) == min(len(long["input_ids"]), max_length)
        if kind == "causal":
            assert short["input_ids"] == long["input_ids"][:max_length]
            assert short["labels"] == long["labels"][:max_length]
        if kind == "seq2seq":
            assert short["labels"] == long["labels"][:max_length]


@pytest.mark.parametrize("max_length", range(6, 40, 3))
def test_examples_without_a_label_are_found_without_tokenizing_all(tokenizers, max_length):
    """The oracle tokenizes every row; lengths run across the limit."""
    rows = Rows({"input": ["héllo " * n for n in range(12)]}, ["yes"] * 12)
    encoder = Encoder(TASKS["arithmetic"], (), tokenizers["causal"], "causal", max_length)
    expected = [e for e in encoder.encode(rows) if count_labels(e, "causal") > 0]
    assert list(encode_rows(rows, encoder)) == expected


@pytest.mark.parametrize("kind", ["causal", "seq2seq", "classification"])
def test_counts_agree_with_the_losss(tokenizers, kind, sets, make_config):
    config = make_config(task="sst2", data_dir=str(sets), train_examples=8, max_length=400)
    split = load_task(config, tokenizers[kind], kind).train
    counts = [count_labels(example, kind) for example in split.examples]
    assert loss_count(split.collate(range(8))["labels"], kind).tolist() == counts


def test_a_metaspace_vocabulary_with_normalizer_splits_at_the_same_place():
    """As Llama 2's and T5's: spaces become part of tokens, and NFKC makes four characters of one."""
    trained = Tokenizer(models.Unigram())
    trained.normalizer = normalizers.NFKC()  # type: ignore[assignment]
    trained.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
    trained.decoder = decoders.Metaspace()  # type: ignore[assignment]
    special = ["<unk>", "<s>", "</s>"]
    texts = ["Q: is it good ? A: yes", "Q: is it bad ? A: no", "sehr gut kg (株) 123"] * 5
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
    trained.train_from_iterator(texts, trainer)
    trained.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    rows = Rows({"input": ["is it good ?", "㎏ ㎏ good ?", "㈱ " * 9]}, ["yes", "no", "yes"])
    encoder = Encoder(TASKS["arithmetic"], (), tokenizer, "causal", 200)
    for example, target in zip(encoder.encode(rows), rows.targets, strict=True):
        counted = [label for label in example["labels"] if label != -100]
        assert tokenizer.decode(counted) == f"{target}</s>"
        assert example["labels"][len(example["labels"]) - len(counted) :] == counted
    for max_length in range(4, 80, 5):
        short = Encoder(TASKS["arithmetic"], (), tokenizer, "causal", max_length)
        assert list(encode_rows(rows, short)) == [e for e in short.encode(rows) if count_labels(e, "causal") > 0]


# --- splits -----------------------------------------------------------------------------------------------------------


def test_one_warning_tells_how_many_were_left_out(tokenizers, tmp_path, make_config):
    """A prompt of max_length tokens or more leaves no room for a label; the tokenizer alone tells which those are."""
    files = {}
    for split, lengths in (("train", range(1, 61)), ("eval", range(30, 50))):
        files[split] = str(tmp_path / f"{split}.jsonl")
        rows = [{"q": " ".join(["7"] * n), "a": "no"} for n in lengths]
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config(task="files", data_files=files, columns={"input": "q", "target": "a"}, max_length=40)
    tokens = {n: len(tokenizers["causal"](" ".join(["7"] * n)).input_ids) for n in range(1, 61)}
    lost = {"train": sum(tokens[n] >= 40 for n in range(1, 61)), "eval": sum(tokens[n] >= 40 for n in range(30, 50))}
    assert 0 < lost["eval"] < lost["train"] < 60
    with pytest.warns(UserWarning, match="leave no label") as caught:
        data = load_task(config, tokenizers["causal"], "causal")
    assert [str(warning.message) for warning in caught] == [
        f"max_length: 40 tokens leave no label in {lost['train']} of 60 train and {lost['eval']} of 20 eval examples; "
        "left out"
    ]
    assert (len(data.train), len(data.eval)) == (60 - lost["train"], 20 - lost["eval"])


def test_a_length_that_leaves_nothing_is_refused(tokenizers, make_config):
    with pytest.raises(UsageError, match="max_length: 6 tokens leave no label in any of the 20 train examples"):
        load_task(make_config(train_examples=20, max_length=6), tokenizers["causal"], "causal")


def test_text_targets_cannot_be_classified(tokenizers, make_config):
    with pytest.raises(UsageError, match="'arithmetic' has text targets"):
        load_task(make_config(), tokenizers["classification"], "classification")


def test_collate_pads_on_the_right(tokenizers, make_config):
    split = load_task(make_config(train_examples=16), tokenizers["causal"], "causal").train
    batch = split.collate([3, 0, 7])
    longest = max(len(split.examples[i]["input_ids"]) for i in (3, 0, 7))
    fill = {"input_ids": split.pad_token_id, "attention_mask": 0, "labels": -100}
    for row, index in enumerate((3, 0, 7)):
        for key, value in fill.items():
            values = split.examples[index][key]
            assert batch[key][row].tolist() == values + [value] * (longest - len(values))
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_classification_labels_are_one_a_row(tokenizers, sets, make_config):
    config = make_config(task="sst2", data_dir=str(sets), train_examples=8)
    data = load_task(config, tokenizers["classification"], "classification")
    assert data.train.collate([0, 1, 2])["labels"].shape == (3,)
    assert data.num_labels == 2


def test_batches_cover_all_examples_in_order(tokenizers, make_config):
    split = load_task(make_config(train_examples=10), tokenizers["causal"], "causal").train
    rows = [row for batch in split.batches(4) for row in batch["input_ids"].tolist()]
    pad = split.pad_token_id
    assert [[i for i in row if i != pad] for row in rows] == [example["input_ids"] for example in split.examples]
    assert [len(b["labels"]) for b in split.batches(4, indices=[9, 1, 5, 0, 2])] == [4, 1]


def test_examples_behave_as_a_list(tokenizers, make_config):
    examples = load_task(make_config(train_examples=6), tokenizers["causal"], "causal").train.examples
    assert examples[-1] == examples[5]
    assert examples[1:3] == [examples[1], examples[2]]
    assert len(list(examples)) == 6
    with pytest.raises(IndexError):
        examples[6]


def test_the_fingerprint_follows_whatever_changes_tokens_or_labels(tokenizers, make_config):
    def fingerprint(kind="causal", **values):
        split = load_task(make_config(train_examples=20, **values), tokenizers[kind], kind).train
        found = split.fingerprint
        split.collate(range(4))
        assert split.fingerprint == found
        return found

    base = fingerprint()
    assert base == fingerprint(seed=9, rank=3, eval_examples=7)
    others = [fingerprint(max_length=64), fingerprint(label_noise=0.2), fingerprint("seq2seq")]
    assert len({base, *others}) == 4


@pytest.mark.parametrize("model", ["tiny", "tiny-t5"])
def test_padding_changes_no_loss(model, make_config):
    config = make_config(model=model, dtype="float64", train_examples=6)
    loaded = load_model(config)
    split = load_task(config, loaded.tokenizer, loaded.kind).train
    with torch.no_grad():
        together = forward_losses(loaded.model, split.collate(range(6)), loaded.kind)
        alone = [forward_losses(loaded.model, split.collate([i]), loaded.kind) for i in range(6)]
    torch.testing.assert_close(together.nll, torch.cat([part.nll for part in alone]), rtol=1e-9, atol=1e-12)
    assert together.count.tolist() == [int(part.count) for part in alone]
