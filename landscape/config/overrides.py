"""``--set key=value``: assignments laid over the values of a config file, with dotted keys for nested ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from landscape.config.run import ALIASES, RunConfig, canonical_keys, read_yaml
from landscape.config.values import parse_scalar
from landscape.errors import UsageError, nearest

NESTED = ("adapter_args", "capture", "columns", "data_files", "method_args", "model_kwargs")
"""The keys that hold mappings, so that ``method_args.rho`` names one entry of them."""


def canonical_key(key: str) -> str:
    """The full spelling of a config key: ``lr`` → ``learning_rate``; ``method_args.rho`` stays.

    Raises:
        UsageError: an unknown key (the nearest one is named), or a dotted key whose root holds no mapping.
    """
    root, dot, rest = key.strip().partition(".")
    root = ALIASES.get(root, root)
    if root not in RunConfig.model_fields:
        raise UsageError(f"unknown config key {key!r}.{nearest(root, {*RunConfig.model_fields, *ALIASES})}")
    if dot and (root not in NESTED or not rest):
        raise UsageError(f"{key}: only {', '.join(NESTED)} have parts, written as method_args.rho")
    return root + dot + rest


def split_assignment(text: str, flag: str = "--set") -> tuple[str, str]:
    """``"lr=1e-4"`` → ``("learning_rate", "1e-4")``."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"{flag} {text!r}: write key=value, for example {flag} rank=64")
    return canonical_key(key), value.strip()


def parse_assignments(items: Iterable[str]) -> dict[str, Any]:
    """Canonical (possibly dotted) keys and their values from ``["rank=64", "method_args.rho=0.1"]``.

    Raises:
        UsageError: no ``=``, an unknown key, an unreadable value, or a key given twice.
    """
    result: dict[str, Any] = {}
    for item in items:
        key, text = split_assignment(item)
        if key in result:
            raise UsageError(f"--set {item!r}: {key} was already set to {result[key]!r}")
        result[key] = parse_scalar(text)
    return result


def assign(values: Mapping[str, Any], assignments: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``values`` (canonical keys) with assignments laid over it; ``values`` is left as it was."""
    result = dict(values)
    for key, value in assignments.items():
        root, dot, rest = key.partition(".")
        if not dot:
            result[root] = value
            continue
        parts = result.get(root)
        if root == "capture" and isinstance(parts, str):
            parts = {"policy": parts}
        if parts is not None and not isinstance(parts, Mapping):
            raise UsageError(f"{key}: {root} is {parts!r}, which has no parts")
        result[root] = {**(parts or {}), rest: value}
    return result


def lookup(values: Mapping[str, Any], key: str) -> Any:
    """The value at a (possibly dotted) key; None where a part is absent."""
    root, _, rest = key.partition(".")
    value = values.get(root)
    if rest:
        value = value.get(rest) if isinstance(value, Mapping) else None
    return value


def load_run(path: str | Path | None, assignments: Mapping[str, Any] | None = None) -> RunConfig:
    """The config of one run from a YAML file (or none) with assignments laid over it.

    Raises:
        UsageError: as `RunConfig.parse` and `read_yaml`, and for a file that describes a sweep.
    """
    values = read_yaml(path) if path is not None else {}
    if "sweep" in values:
        raise UsageError(f"{path} has a sweep: key and describes many runs; start it with `landscape sweep -c {path}`")
    return RunConfig.parse(assign(canonical_keys(values), assignments or {}))
