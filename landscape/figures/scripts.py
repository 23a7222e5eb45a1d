"""The scripts of the folder ``figures``, and what they say of themselves."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from landscape.errors import UsageError
from landscape.resources import folder

if TYPE_CHECKING:
    from landscape.plots import CurveSet, Drawing, RunData


@dataclass(frozen=True)
class FigureScript:
    """One file of the folder ``figures``.

    Its docstring says what it is: ``Title (source).`` on the first line, and ``about`` below.
    """

    name: str
    path: Path
    title: str
    source: str
    about: str

    @classmethod
    def read(cls, path: Path) -> FigureScript:
        """The script's description, without running it."""
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or path.stem
        first, _, about = text.partition("\n")
        title, _, source = first.rstrip(".").rstrip(")").rpartition(" (")
        return cls(path.stem, path, title or source, source if title else "", " ".join(about.split()))

    def build(self, runs: Sequence[RunData]) -> list[Drawing]:
        """The figure from the runs: one picture, or several where slices do not fit on one.

        Raises:
            StoreError: the runs do not hold what the figure shows; names what it needs.
        """
        made = _builder(self.path)(runs)
        return made if isinstance(made, list) else [made]


FIGURES: dict[str, FigureScript] = {
    path.stem: FigureScript.read(path) for path in sorted(folder("figures").glob("*.py")) if path.stem[0] != "_"
}


@cache
def _builder(path: Path) -> Callable[[Sequence[RunData]], CurveSet | list[Drawing]]:
    spec = importlib.util.spec_from_file_location(f"landscape_figure_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build
