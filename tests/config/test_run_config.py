"""The configuration of one run: accepted spellings, refused values, the round trip through YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from landscape.config import ALIASES, Capture, RunConfig, alpha_value, canonical_keys, read_yaml
from landscape.errors import UsageError


@pytest.mark.parametrize(
    ("values", "key", "expected"),
    [
        ({"lr": "2e-4"}, "learning_rate", 2e-4),
        ({"learning_rate": 5e-4}, "learning_rate", 5e-4),
        ({"batch_size": 4}, "per_device_train_batch_size", 4),
        ({"r": "64"}, "rank", 64),
        ({"rank": None}, "rank", None),
        ({"lora_alpha": 32}, "alpha", 32.0),
        ({"alpha": "2 * R"}, "alpha", "2r"),
        ({"alpha": "r/2"}, "alpha", "r/2"),
        ({"capture": "none"}, "capture", Capture(policy="none")),  # type: ignore[call-arg]
        ({"capture": {"every": 5}}, "capture", Capture(policy="every", every=5)),  # type: ignore[call-arg]
        ({"capture": {"policy": "events", "ring": 7}}, "capture", Capture(policy="events", ring=7)),  # type: ignore[call-arg]
        ({"target_modules": ["q_proj", "v_proj"]}, "target_modules", ["q_proj", "v_proj"]),
    ],
)
def test_spellings(values: dict[str, Any], key: str, expected: Any) -> None:
    assert getattr(RunConfig.parse(values), key) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 1}, r"unknown config key 'learning_rat'\. Did you mean 'learning_rate'\?"),
        ({"sweep": {}}, "unknown config key 'sweep'"),
        ({"lr": 1e-4, "learning_rate": 1e-3}, "learning_rate: given twice"),
        ({"rank": 0}, "rank: 0: .*greater than or equal to 1"),
        ({"rank": 8.5}, "rank: 8.5: .*integer"),
        ({"rank": "eight"}, "rank: 'eight': .*integer"),
        ({"learning_rate": 0}, "learning_rate: 0: .*greater than 0"),
        ({"learning_rate": "fast"}, "learning_rate: 'fast'"),
        ({"learning_rate": float("nan")}, "learning_rate: nan: .*finite"),
        ({"lora_dropout": 1.0}, "lora_dropout: 1.0: .*less than 1"),
        ({"label_noise": 1.5}, "label_noise: 1.5"),
        ({"lr_scheduler_type": "cosin"}, "lr_scheduler_type: 'cosin'"),
        ({"dtype": "int8"}, "dtype: 'int8': .*'bfloat16'"),
        ({"alpha": "3q"}, "alpha: '3q': is neither a number nor a rule such as r, 2r or r/2"),
        ({"alpha": 0}, "alpha: 0.*: must be greater than 0"),
        ({"task": "files"}, "task: 'files' needs data_files and columns"),
        ({"data_files": {"eval": "a"}}, "data_files: needs a 'train' entry"),
        ({"capture": "sometimes"}, "capture.policy: 'sometimes'"),
        ({"capture": {"every": 0}}, "capture.every: 0"),
        ({"capture": {"rings": 3}}, r"capture.rings: unknown key\. Did you mean 'ring'\?"),
        ({"max_steps": 0, "seed": -1}, "max_steps: 0: .*; seed: -1"),
    ],
)
def test_refusals(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as refusal:
        RunConfig.parse(values)
    assert "\n" not in str(refusal.value)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "model": st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()),
            "learning_rate": st.floats(1e-9, 10.0),
            "rank": st.none() | st.integers(1, 4096),
            "alpha": st.none() | st.sampled_from(["r", "2r", "0.5r", "r/3"]) | st.floats(1e-3, 1e4),
            "seed": st.integers(0, 2**31),
            "method_args": st.dictionaries(st.sampled_from(["rho", "beta"]), st.floats(1e-9, 1e9) | st.none()),
            "target_modules": st.none() | st.lists(st.sampled_from(["q_proj", "v_proj"]), min_size=1),
            "capture": st.sampled_from([{"policy": "auto"}, {"every": 3}, {"policy": "log", "moments": True}]),
        },
    )
)
def test_yaml_round_trip(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    # Number-like names such as "1e3" are numbers on the command line; a config file's are quoted.
    if isinstance(values.get("model"), str) and _looks_like_a_number(values["model"]):
        values.pop("model")
    config = RunConfig.parse({"alpha": 16.0, **values})
    path = tmp_path_factory.mktemp("yaml") / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert RunConfig.parse(read_yaml(path)) == config


def _looks_like_a_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_every_key_is_in_the_yaml() -> None:
    config = RunConfig.parse({"alpha": 16.0})
    keys = [line.split(":")[0] for line in config.to_yaml().splitlines() if not line.startswith((" ", "-"))]
    assert keys == list(RunConfig.model_fields)


def test_aliases_lead_to_keys_and_are_none_themselves() -> None:
    assert set(ALIASES.values()) <= set(RunConfig.model_fields)
    assert not set(ALIASES) & set(RunConfig.model_fields)


def test_replace_validates() -> None:
    config = RunConfig.parse({"rank": 8, "alpha": 16.0})
    assert config.replace(rank=32).rank == 32
    assert config.rank == 8
    with pytest.raises(UsageError, match="rank: 0"):
        config.replace(rank=0)


def test_configs_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig.parse({}).rank = 9  # type: ignore[misc]


def test_canonical_keys_leave_their_argument_alone() -> None:
    values = {"lr": "1e-4"}
    assert canonical_keys(values) == {"learning_rate": 1e-4}
    assert values == {"lr": "1e-4"}


@pytest.mark.parametrize(
    ("alpha", "rank", "value"), [(16, 8, 16), ("r", 8, 8), ("2r", 8, 16), ("r/2", 8, 4), ("1.5r", 4, 6), ("3r/2", 4, 6)]
)
def test_alpha_rules(alpha: float | str, rank: int, value: float) -> None:
    assert alpha_value(alpha, rank) == value


def test_a_bad_alpha_rule() -> None:
    with pytest.raises(UsageError, match="alpha: 'x' is neither a number nor a rule"):
        alpha_value("x", 8)


def test_yaml_numbers(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("learning_rate: 2e-4\nmethod_args: {rho: 5e-2}\nsweep: {grid: {rank: [8, 1e2]}}\n")
    expected = {"learning_rate": 2e-4, "method_args": {"rho": 0.05}, "sweep": {"grid": {"rank": [8, 100.0]}}}
    assert read_yaml(path) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*run.yaml: No such file"),
        ("a: [1", "run.yaml is not valid YAML: "),
        ("- a\n- b\n", "must hold a mapping of keys to values, not list"),
        ("", "not NoneType"),
        ("!!python/object/apply:os.system [ls]", "is not valid YAML: could not determine a constructor"),
        (b"\xff\xfe", "is not valid YAML"),
    ],
)
def test_bad_files(tmp_path: Path, content: str | bytes | None, message: str) -> None:
    path = tmp_path / "run.yaml"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=message) as refusal:
        read_yaml(path)
    assert "\n" not in str(refusal.value)
