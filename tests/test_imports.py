"""Who may import whom, read from the source; and what the command line does not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "landscape"

# Each part of the package and the others that it may import, at the top of a file or inside a function. `errors` is
# everybody's. A new part needs a row.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "config": set(),
    "loss": set(),
    "resources": set(),
    "doctor": set(),
    "measurement": {"loss"},
    "curvature": {"loss", "measurement"},
    "slices": {"loss", "measurement"},
    "episodes": set(),
    "importers": {"config", "store"},
    "store": {"config"},
    "hub": set(),
    "architecture": {"config", "hub", "loss", "models"},
    "models": {"config", "hub", "loss"},
    "data": {"config", "hub", "loss"},
    "methods": {"config", "loss"},
    "training": {"architecture", "config", "data", "episodes", "loss", "methods", "models", "store"},
    "generalization": {"loss"},
    "analysis": {
        *("config", "curvature", "data", "episodes", "generalization", "loss"),
        *("measurement", "methods", "models", "slices", "store"),
    },
    "evaluation": {"analysis", "config", "data", "hub", "loss", "models", "store"},
    "sweeps": {"analysis", "config", "store", "training"},
    # Slices are drawn from what the store keeps of them, comparisons across a sweep from the runs' rows; runs are named
    # as their ids are.
    "plots": {"config", "episodes", "store"},
    "figures": {"config", "episodes", "plots", "resources", "store"},
    # The table of flatness is a reading of what analyses left in the store.
    "report": {"analysis", "config", "figures", "plots", "store"},
    "reproduction": {
        *("analysis", "config", "data", "episodes", "evaluation", "figures", "generalization", "hub"),
        *("plots", "resources", "store", "sweeps", "training"),
    },
    "demo": {"analysis", "config", "report", "resources", "store", "sweeps"},
    "__main__": {"cli"},
    # The package itself hands out public names on first use; type checkers see where they come from.
    "__init__": {"config", "curvature", "episodes", "methods", "slices", "store", "training"},
}
# The command line calls everything.
ALLOWED["cli"] = set(ALLOWED) - {"__init__", "__main__"}
# Scripts beside the package, and what of it they may use.
SCRIPTS = {
    "figures": {"figures", "plots", "reproduction", "store", "resources", "errors"},
    "app": {
        *("analysis", "config", "episodes", "errors", "figures", "importers"),
        *("plots", "report", "reproduction", "resources", "store", "sweeps"),
    },
}


def imported_modules(path: Path) -> Iterator[str]:
    """Dotted names of everything that a file imports; relative imports are resolved."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            # `from landscape import store` names a part too.
            yield from ([f"{module}.{alias.name}" for alias in node.names] if module == "landscape" else [module])


def parts(path: Path) -> set[str]:
    """The parts of the package that a file imports."""
    names = {name.split(".")[1] for name in imported_modules(path) if name.startswith("landscape.")}
    return names - {"__version__"}


def sources() -> dict[str, list[Path]]:
    result = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        result[path.relative_to(PACKAGE).with_suffix("").parts[0]].append(path)
    return result


def test_every_part_has_a_row() -> None:
    assert set(sources()) <= set(ALLOWED)


@pytest.mark.parametrize("part", sorted(sources()))
def test_layers(part: str) -> None:
    for path in sources()[part]:
        foreign = parts(path) - {part, "errors"} - ALLOWED[part]
        assert not foreign, f"{path.relative_to(ROOT)} imports landscape.{', landscape.'.join(sorted(foreign))}"


@pytest.mark.parametrize("folder", sorted(SCRIPTS))
def test_scripts(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        foreign = parts(path) - SCRIPTS[folder]
        assert not foreign, f"{path.relative_to(ROOT)} imports landscape.{', landscape.'.join(sorted(foreign))}"


def test_the_rules_have_no_circles() -> None:
    left = dict(ALLOWED)
    while left:
        free = [part for part, allowed in left.items() if not allowed & left.keys()]
        assert free, f"in a circle: {sorted(left)}"
        for part in free:
            del left[part]


def test_the_reader_sees_every_kind_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "landscape" / "store" / "runs.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import landscape.plots.style\nfrom landscape import cli\nfrom .. import loss\nfrom ..config.run import x\n"
        "from . import atomic\ndef f():\n    from landscape.data import y\n"
    )
    assert parts(path) == {"plots", "cli", "loss", "config", "store", "data"}


HEAVY = ("torch", "transformers", "streamlit", "scipy.stats")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["sweep", "--help"], ["analyze", "--help"], ["app", "--help"], ["--version"]]
)
def test_help_is_light(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from landscape.cli import main\n"
        f"sys.argv = ['landscape', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "landscape" in done.stdout


def test_reading_analyses_is_light() -> None:
    """The dashboard shows what was measured without loading what measures."""
    code = (
        "import sys\n"
        "from landscape.analysis.flatness import flatness_table\n"
        "from landscape.analysis.questions import QUESTIONS\n"
        "flatness_table([])\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
