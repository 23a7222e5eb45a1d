"""The config of a run that came from somebody's log: what the log or its owner said, and null for everything else."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Optional, Self

from pydantic import Field, create_model

from landscape.config.run import RunConfig, canonical_keys, parse_model

WORDS = ("method", "model", "task")
"""Keys that read ``unknown`` where nobody said them; the others are null."""


class _Imported(RunConfig):
    imported: Literal[True] = True
    name: str | None = Field(None, description="tells apart runs whose seed is unknown")

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """From plain values; a key that is absent or null is unknown.

        Raises:
            UsageError: as `RunConfig.parse`.
        """
        own = {key: values[key] for key in ("imported", "name") if key in values}
        config = canonical_keys({key: value for key, value in values.items() if key not in own})
        return parse_model(cls, {**own, **config})


def _optional() -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, field in RunConfig.model_fields.items():
        known = Annotated[Optional[field.annotation], Field(description=field.description), *field.metadata]  # type: ignore[valid-type]  # noqa: UP045
        fields[key] = (known, "unknown" if key in WORDS else None)
    return fields


ImportedConfig: type[_Imported] = create_model("ImportedConfig", __base__=_Imported, **_optional())
"""A `RunConfig` in which every key may be null; made by `landscape import` alone, and no run can be trained from it."""
