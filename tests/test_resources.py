"""The shipped folders are found in the checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

import pytest

from landscape import resources
from landscape.config.run import read_yaml
from landscape.config.sweep import SweepConfig
from landscape.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
DEMO = "sweep: {grid: {rank: [8]}}\n"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toolkit as if it lay in another folder."""
    path = tmp_path / "site-packages" / "landscape"
    path.mkdir(parents=True)
    monkeypatch.setattr(resources, "__file__", str(path / "resources.py"))
    return path


def test_the_checkout() -> None:
    assert resources.folder("experiments") == ROOT / "experiments"
    assert resources.experiment("demo") == ROOT / "experiments" / "demo.yaml"


def test_a_wheel(package: Path) -> None:
    bundled = package / "_bundled" / "experiments"
    bundled.mkdir(parents=True)
    (bundled / "demo.yaml").write_text(DEMO)
    assert resources.experiment("demo") == bundled / "demo.yaml"


def test_a_broken_installation(package: Path) -> None:
    with pytest.raises(UsageError, match=r"the folder figures was not found beside or inside .*landscape: install"):
        resources.folder("figures")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: resources.folder("figure"), r"folder: 'figure' is not known; .*Did you mean 'figures'\?"),
        (lambda: resources.experiment("dmo"), r"experiment: 'dmo' is not known; .*Did you mean 'demo'\?"),
    ],
)
def test_unknown_names(call: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()  # type: ignore[operator]


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_sweep_is_valid(path: Path) -> None:
    assert SweepConfig.parse(read_yaml(path)).expand()
