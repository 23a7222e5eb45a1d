"""Configurations of runs and sweeps."""

from landscape.config.identity import SCHEMA_VERSION, method_name, run_id
from landscape.config.run import ALIASES, Capture, RunConfig, alpha_value, canonical_keys, parse_model, read_yaml
from landscape.config.values import parse_scalar, parse_values

__all__ = [
    "ALIASES",
    "SCHEMA_VERSION",
    "Capture",
    "RunConfig",
    "alpha_value",
    "canonical_keys",
    "method_name",
    "parse_model",
    "parse_scalar",
    "parse_values",
    "read_yaml",
    "run_id",
]
