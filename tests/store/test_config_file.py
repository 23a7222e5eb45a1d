import pytest
import yaml

from landscape.config import RunConfig
from landscape.errors import StoreError
from landscape.store.config_file import has_checksum, read_config_values, write_config

CONFIGS = [
    {},
    {"model_kwargs": {"a": [1, {"b": None}], "c": "x: y\nz"}, "learning_rate": 2e-4, "target_modules": ["q", "v"]},
    {"task": "files", "data_files": {"train": "# é: [x"}, "columns": {"text": "-"}, "report_to": ["tensorboard"]},
    {"method_args": {"rho": 1e-7}, "capture": {"every": 3}, "model": "multi\n\nline: text", "alpha": "2r"},
]


@pytest.mark.parametrize("values", CONFIGS)
def test_what_is_read_is_what_was_written(tmp_path, values):
    config, path = RunConfig.parse({"max_steps": 20, **values}), tmp_path / "config.yaml"
    write_config(path, config)
    assert has_checksum(path)
    found = read_config_values(path)
    assert RunConfig.parse(found) == config
    assert list(found) == list(config.model_dump()), "every key, in order"
    assert RunConfig.parse(yaml.safe_load(path.read_text())) == config, "plain YAML"
    found["model_kwargs"]["changed"] = 1
    assert read_config_values(path)["model_kwargs"] == config.model_kwargs, "what is handed out is the caller's own"


def test_a_changed_or_shortened_config_is_noticed(tmp_path):
    path = tmp_path / "config.yaml"
    write_config(path, RunConfig.parse({"max_steps": 20}))
    text = path.read_text()
    path.write_text(text.replace("rank: 8", "rank: 9"))
    with pytest.raises(
        StoreError, match=r"config\.yaml is damaged: its checksum does not match .*remove its last line"
    ):
        read_config_values(path)
    lines = text.splitlines(keepends=True)
    path.write_text("".join(lines[:-1]).replace("rank: 8", "rank: 9"))
    assert read_config_values(path)["rank"] == 9, "edited by somebody who removed the last line"
    path.write_text("".join(lines[:20]))
    with pytest.raises(StoreError, match="it ends before its last key, report_to"):
        read_config_values(path)
