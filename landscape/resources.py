"""Where the dashboard, the shipped YAML files and the figure scripts lie: in the checkout, or in an installed wheel."""

from __future__ import annotations

from pathlib import Path

from landscape.errors import UsageError, unknown

FOLDERS = ("app", "experiments", "figures")


def folder(name: str) -> Path:
    """The folder ``app``, ``experiments`` or ``figures``.

    Raises:
        UsageError: another name, or a broken installation that has no copy.
    """
    if name not in FOLDERS:
        raise unknown("folder", name, FOLDERS)
    package = Path(__file__).resolve().parent
    # The wheel maps the folders into the package; in a checkout (or an editable install) they lie beside it.
    for place in (package / "_bundled" / name, package.parent / name):
        if place.is_dir():
            return place
    raise UsageError(f"the folder {name} was not found beside or inside {package}: install lora-landscape again")


def experiment(name: str) -> Path:
    """The YAML file of a shipped experiment: ``demo`` → ``.../experiments/demo.yaml``.

    Raises:
        UsageError: no experiment has that name (the nearest one is named).
    """
    place = folder("experiments")
    names = sorted(path.stem for path in place.glob("*.yaml"))
    if name not in names:
        raise unknown("experiment", name, names)
    return place / f"{name}.yaml"
