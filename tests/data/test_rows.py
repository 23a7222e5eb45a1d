"""From configs to rows: columns, labels, held-out parts, noise, digests, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import socket
from typing import Any

import datasets
import pytest

from landscape.data import TASKS, check_task, data_digest, num_labels
from landscape.data import rows as rows_module
from landscape.data.arithmetic import generate
from landscape.data.rows import load_rows
from landscape.errors import UsageError
from tests.data.conftest import SETS, stand_in, write_parquet


def write_jsonl(path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# --- the named sets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SETS if name in TASKS])
def test_named_sets_load_from_a_folder_of_sets(name, sets, make_config):
    config = make_config(task=name, data_dir=str(sets), train_examples=50, eval_examples=20, probe_examples=8)
    check_task(config)
    rows = load_rows(config)
    assert (len(rows.train), len(rows.eval), len(rows.probe)) == (50, 20, 8)
    assert len(rows.label_words) == SETS[name][1] == (num_labels(config) or 0)
    assert set(zip(*rows.probe.fields.values(), rows.probe.targets, strict=True)) <= set(
        zip(*rows.train.fields.values(), rows.train.targets, strict=True)
    )


@pytest.mark.parametrize(("task", "folder"), [("metamathqa", "math_instruct"), ("wizardlm", "alpaca_demo")])
def test_stand_ins_with_other_columns_are_mapped_and_a_tenth_is_held_out(task, folder, sets, make_config):
    config = make_config(task=task, data_dir=str(sets / folder), eval_examples=None)
    rows = load_rows(config)
    total = len(rows.train) + len(rows.eval)
    assert len(rows.eval) == total // 10
    questions = rows.train.fields["input"] + rows.eval.fields["input"]
    assert len(questions) == total
    assert set(rows.train.fields) == {"input"}
    assert all(isinstance(target, str) for target in rows.train.targets)


def test_the_context_of_an_instruction_joins_its_prompt(tmp_path, make_config):
    rows = {"instruction": ["Add.", "Say hi."], "input": ["1 and 2", ""], "output": ["3", "hi"]}
    write_parquet(tmp_path / "train.parquet", rows)
    write_parquet(tmp_path / "test.parquet", rows)
    loaded = load_rows(make_config(task="gsm8k", data_dir=str(tmp_path)))
    assert loaded.train.fields["input"] == ["Add.\n1 and 2", "Say hi."]


def test_hidden_labels_make_way_for_the_next_split(tmp_path, make_config):
    for split, labels in (("train", [0, 1] * 10), ("validation", [-1] * 20), ("test", [1, 0] * 10)):
        write_parquet(tmp_path / f"{split}.parquet", {"sentence": [f"{split} {i}" for i in range(20)], "label": labels})
    config = make_config(task="cola", data_dir=str(tmp_path))
    assert all(text.startswith("test") for text in load_rows(config).eval.fields["text"])
    (tmp_path / "test.parquet").unlink()
    held_out = load_rows(config)
    assert all(text.startswith("train") for text in held_out.eval.fields["text"])
    assert (len(held_out.train), len(held_out.eval)) == (18, 2)


def test_wikiqa_reads_as_generation_over_the_true_answers(sets, make_config):
    columns = {"input": "question", "target": "answer"}
    rows = load_rows(make_config(task="wikiqa", data_dir=str(sets), columns=columns, eval_examples=None))
    labelled = load_rows(make_config(task="wikiqa", data_dir=str(sets), eval_examples=None))
    assert len(rows.eval) == sum(label == 1 for label in labelled.eval.targets)
    assert rows.label_words == ()
    assert rows.task.prompt == "Q: {input}\nA:"


# --- subsets and noise ------------------------------------------------------------------------------------------------


def test_splits_depend_on_neither_seed_nor_order_seed(sets, make_config):
    base = make_config(task="sst2", data_dir=str(sets), train_examples=30)
    assert load_rows(base) == load_rows(base.replace(seed=5, data_seed=7, learning_rate=0.5))


def test_the_probe_is_the_same_for_every_number_of_training_examples(sets, make_config):
    probes = [
        load_rows(make_config(task="sst2", data_dir=str(sets), probe_examples=16, train_examples=n)).probe
        for n in (None, 40, 200)
    ]
    assert probes[0] == probes[1] == probes[2]
    assert len(load_rows(make_config(task="sst2", data_dir=str(sets), probe_examples=16, train_examples=9)).probe) == 9


@pytest.mark.parametrize("task", ["sst2", "mnli", "gsm8k", "arithmetic"])
def test_label_noise_changes_that_share_of_training_targets_and_nothing_else(task, sets, make_config):
    folder = {} if task == "arithmetic" else {"data_dir": str(sets)}
    clean, noisy, other_run = (
        load_rows(make_config(task=task, **folder, train_examples=200, label_noise=share, seed=seed))
        for share, seed in ((0.0, 0), (0.25, 0), (0.25, 1))
    )
    changed = [a != b for a, b in zip(clean.train.targets, noisy.train.targets, strict=True)]
    assert sum(changed) == 50
    assert noisy == other_run
    assert (noisy.train.fields, noisy.eval) == (clean.train.fields, clean.eval)
    by_input = dict(zip(zip(*noisy.train.fields.values(), strict=True), noisy.train.targets, strict=True))
    probed = zip(zip(*noisy.probe.fields.values(), strict=True), noisy.probe.targets, strict=True)
    assert sum(by_input[key] == target for key, target in probed) >= 0.95 * len(noisy.probe)


def test_arithmetic_noise_gives_wrong_answers_in_the_right_form(make_config):
    rows = load_rows(make_config(label_noise=1.0, train_examples=100))
    for problem, target in zip(generate("finetuning", "train", 100), rows.train.targets, strict=True):
        assert isinstance(target, str)
        assert re.sub(r"\d+\. ####.*", "", target) == re.sub(r"\d+\. ####.*", "", problem.answer)
        assert int(target.split("#### ")[1]) != problem.result


def test_noise_needs_targets_that_differ(tmp_path, make_config):
    path = write_jsonl(tmp_path / "t.jsonl", [{"q": f"{i}", "a": "same"} for i in range(30)])
    config = make_config(
        task="files", data_files={"train": path}, columns={"input": "q", "target": "a"}, label_noise=0.5
    )
    with pytest.raises(UsageError, match=r"label_noise: 0\.5 needs training targets that differ"):
        check_task(config)


# --- own files --------------------------------------------------------------------------------------------------------


def test_own_files_with_text_targets(tmp_path, make_config):
    train = write_jsonl(tmp_path / "train.jsonl", [{"q": f"q{i}", "a": f"a{i}"} for i in range(5)])
    write_parquet(tmp_path / "eval.parquet", {"q": ["e"], "a": ["f"]})
    files = {"train": train, "eval": str(tmp_path / "eval.parquet")}
    rows = load_rows(make_config(task="files", data_files=files, columns={"input": "q", "target": "a"}))
    assert rows.train.fields == {"input": [f"q{i}" for i in range(5)]}
    assert (rows.train.targets, rows.eval.targets) == ([f"a{i}" for i in range(5)], ["f"])
    assert (rows.task.prompt, rows.label_words) == ("{input}", ())


@pytest.mark.parametrize(
    ("values", "words", "labels"),
    [
        ([0, 2, 1, 0], ("0", "1", "2"), [0, 2, 1, 0]),
        ([0.0, 1.0, 1.0, 0.0], ("0", "1"), [0, 1, 1, 0]),
        (["1", "0", "1", "1"], ("0", "1"), [1, 0, 1, 1]),
        (["spam", "ham", "ham", "spam"], ("ham", "spam"), [1, 0, 0, 1]),
        ([False, True, True, True], ("0", "1"), [0, 1, 1, 1]),
    ],
)
def test_own_files_with_labels(tmp_path, make_config, values, words, labels):
    path = write_jsonl(tmp_path / "t.jsonl", [{"t": f"t{i}", "y": value} for i, value in enumerate(values)])
    files = {"train": path, "eval": path}
    config = make_config(task="files", data_files=files, columns={"text": "t", "label": "y"})
    rows = load_rows(config)
    assert rows.label_words == words
    assert rows.train.targets == labels
    assert num_labels(config) == len(words)


BAD_FILES = [
    ({"input": "q", "target": "answr"}, "target 'answr' is not a column of .*t.jsonl; it has: q, answer, y.*'answer'"),
    ({"text": "q", "label": "z"}, "label 'z' is not a column"),
    ({"input": "q"}, r"columns: got input; needed are \{input, target\}, or \{text, label\}"),
    ({"input": "q", "targt": "answer"}, "columns: 'targt' is not known; allowed: .*Did you mean 'target'"),
    ({"input": "y", "target": "answer"}, r"input 'y' must hold text; .*t\.jsonl line 1 has int '0'"),
    ({"text": "q", "label": "y"}, r"label 'y': .*t\.jsonl line 3 has -3; allowed: 0 to 1"),
    ({"input": "q", "target": "sparse"}, "target 'sparse' is not a column"),
]


@pytest.mark.parametrize(("columns", "message"), BAD_FILES)
def test_wrong_columns_and_values_are_named(tmp_path, make_config, columns, message):
    path = write_jsonl(tmp_path / "t.jsonl", [{"q": "a", "answer": "b", "y": y} for y in (0, 1, -3)])
    config = make_config(task="files", data_files={"train": path}, columns=columns)
    with pytest.raises(UsageError, match=message):
        check_task(config)


def test_a_line_without_the_column_is_named(tmp_path, make_config):
    path = write_jsonl(tmp_path / "t.jsonl", [{"q": "a", "a": "b"}, {"q": "a"}])
    with pytest.raises(UsageError, match=r"target 'a' must hold text; .*t\.jsonl line 2 has no value"):
        check_task(make_config(task="files", data_files={"train": path}, columns={"input": "q", "target": "a"}))


def test_labels_of_eval_must_be_among_those_of_train(tmp_path, make_config):
    files = {
        "train": write_jsonl(tmp_path / "t.jsonl", [{"t": "a", "y": "ham"}, {"t": "b", "y": "spam"}]),
        "eval": write_jsonl(tmp_path / "e.jsonl", [{"t": "a", "y": "eggs"}]),
    }
    with pytest.raises(UsageError, match=r"e\.jsonl line 1 has 'eggs'; allowed: 0 to 1 \(ham, spam\)"):
        check_task(make_config(task="files", data_files=files, columns={"text": "t", "label": "y"}))


def test_one_class_is_no_classification(tmp_path, make_config):
    path = write_jsonl(tmp_path / "t.jsonl", [{"t": "a", "y": "ham"}] * 3)
    with pytest.raises(UsageError, match="has only one class, 'ham'"):
        check_task(make_config(task="files", data_files={"train": path}, columns={"text": "t", "label": "y"}))


def test_one_row_cannot_be_held_out(tmp_path, make_config):
    path = write_jsonl(tmp_path / "t.jsonl", [{"q": "a", "a": "b"}])
    with pytest.raises(UsageError, match="has 1 usable rows; at least 2 are needed"):
        check_task(make_config(task="files", data_files={"train": path}, columns={"input": "q", "target": "a"}))


# --- refusals that need no file ---------------------------------------------------------------------------------------

REFUSED = [
    ({"task": "sst-2"}, "task: 'sst-2' is not known; allowed: .*Did you mean 'sst2'"),
    ({"task": "arithmetic", "data_dir": "x"}, "data_dir: task 'arithmetic' is generated"),
    ({"task": "arithmetic", "columns": {"text": "x"}}, "columns: task 'arithmetic' is generated"),
    ({"task": "sst2", "data_files": {"train": "x"}}, "data_files: only for task: files"),
    ({"task": "sst2", "data_dir": "/no/such/folder"}, "data_dir: /no/such/folder is not a folder"),
    (
        {"task": "files", "data_files": {"train": "x", "evl": "y"}, "columns": {"text": "a"}},
        "'evl' is not known.*'eval'",
    ),
    ({"task": "files", "data_files": {"train": "x.tsv"}, "columns": {"text": "a"}}, r"unknown suffix '\.tsv'"),
    (
        {"task": "files", "data_files": {"train": "x"}, "columns": {"text": "a"}, "data_dir": "d"},
        "data_dir: task 'files' reads",
    ),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_wrong_configs_are_refused_before_anything_is_loaded(make_config, values, message):
    with pytest.raises(UsageError, match=message):
        check_task(make_config(**values))


def test_a_folder_without_the_set_says_what_was_looked_for(tmp_path, make_config):
    (tmp_path / "sst2_old").mkdir()
    with pytest.raises(UsageError, match=r"neither .*train\.parquet nor .*sst2/train\.parquet exists.*sst2_old"):
        check_task(make_config(task="sst2", data_dir=str(tmp_path)))


def test_text_targets_are_refused_for_a_classification_model(make_config):
    with pytest.raises(UsageError, match="'arithmetic' has text targets; model 'tiny' is a classification model"):
        check_task(make_config(), "classification")
    check_task(make_config(task="sst2"), "classification")


def test_a_hub_set_out_of_reach_says_how_to_do_without(monkeypatch, make_config):
    def no_name(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", "/nonexistent")
    with pytest.raises(UsageError, match=r"hub set 'nyu-mll/glue'.*does not resolve.*data_dir: FOLDER"):
        load_rows(make_config(task="sst2"))


def test_hub_sets_are_read_as_the_files_are(monkeypatch, make_config):
    """What load_dataset gives back, without the hub: official names of splits and columns, hidden test labels."""
    asked = []

    def load_dataset(path, name):
        asked.append((path, name))
        splits = ("train", "validation", "test")
        return datasets.DatasetDict({s: datasets.Dataset.from_dict(stand_in("cola", s, 30)) for s in splits})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows_module._hub_tables.cache_clear()
    rows = load_rows(make_config(task="cola", eval_examples=None))
    rows_module._hub_tables.cache_clear()
    assert asked == [("nyu-mll/glue", "cola")]
    assert rows.train.fields["text"] == [f"The sentence no. {i} of train." for i in range(30)]
    assert rows.eval.fields["text"][0] == "The sentence no. 0 of validation."
    assert rows.label_words == ("unacceptable", "acceptable")


# --- digests ----------------------------------------------------------------------------------------------------------


def test_the_digest_follows_content_and_columns_not_the_place(tmp_path, make_config):
    for split in ("train", "validation"):
        write_parquet(tmp_path / "a" / f"{split}.parquet", stand_in("sst2", split, 20))
    write_parquet(tmp_path / "a" / "test.parquet", stand_in("sst2", "test", 20))
    shutil.copytree(tmp_path / "a", tmp_path / "b" / "sst2")
    first, second = (make_config(task="sst2", data_dir=str(tmp_path / name)) for name in "ab")
    digest = data_digest(first)
    assert digest == data_digest(second)
    assert digest == data_digest(first.replace(seed=4, rank=2))
    # A split that is not used does not matter, one that is does, and so do the columns.
    write_parquet(tmp_path / "b" / "sst2" / "test.parquet", stand_in("sst2", "test", 30))
    assert data_digest(second) == digest
    write_parquet(tmp_path / "b" / "sst2" / "validation.parquet", stand_in("sst2", "validation", 30))
    assert data_digest(second) != digest
    columns = stand_in("sst2", "train", 20) | {"text": [f"{i}" for i in range(20)]}
    write_parquet(tmp_path / "a" / "train.parquet", columns)
    assert data_digest(first) != data_digest(first.replace(columns={"text": "text"}))


def test_digests_of_generated_and_hub_data_need_no_file(make_config):
    assert data_digest(make_config()) == data_digest(make_config(seed=3))
    assert data_digest(make_config(task="sst2")) == "hub:nyu-mll/glue/sst2@main"
    assert data_digest(make_config(task="metamathqa")) == "hub:meta-math/MetaMathQA@main"
