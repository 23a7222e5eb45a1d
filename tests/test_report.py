"""The report: one file, offline, everything escaped, every number from the store."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from landscape.analysis.flatness import flatness_table
from landscape.config import RunConfig
from landscape.errors import StoreError, UsageError
from landscape.figures import FIGURES, embedded, load_runs
from landscape.plots import RunData, summarize
from landscape.plots.summary import Estimate
from landscape.report import render_page, write_report
from landscape.report.flatness import flatness_by_run
from landscape.report.page import IN_CHAPTERS, duration
from landscape.report.tables import glance_table, plus_minus, run_table
from landscape.store import Store
from tests.synthetic_runs import run, sweep, write
from tests.synthetic_slices import keep, path, slice_file

HOSTILE = "</script><script>alert('x')</script><img src=x onerror=alert(1)>{{ 7*7 }}"


class Page(HTMLParser):
    """What a browser makes of the page: elements with their attributes, text by element, scripts apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.words.append(data)

    def count(self, tag: str, **attributes: str) -> int:
        return sum(name == tag and attributes.items() <= found.items() for name, found in self.elements)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def figures(self) -> list[dict]:
        kinds = [attributes.get("class") for tag, attributes in self.elements if tag == "script"]
        return [json.loads(text) for kind, text in zip(kinds, self.scripts, strict=True) if kind == "data"]


@pytest.fixture(scope="module")
def runs() -> list[RunData]:
    made = sweep(methods=("full", "lora", "mgpo", "ggpo"), ranks=(8, 64), rates=(1e-4, 5e-4), seeds=2, sharp=True)
    failed = replace(run(method="mgpo", seed=7), state="failed", error="Traceback\nRuntimeError: out of memory")
    return [*made, failed]


@pytest.fixture(scope="module")
def text(runs: list[RunData]) -> str:
    return render_page(runs, title="A title", name="mystore")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_nothing_is_loaded_from_anywhere(page: Page, text: str) -> None:
    for tag, attributes in page.elements:
        for key in ("src", "href", "action", "data"):
            value = attributes.get(key) or ""
            assert value == "" or value.startswith("#"), (tag, value)
    own = text[: text.index("plotly.js v")] + text[text.rindex("figures.forEach") :]
    assert "http" not in own.replace("http-equiv", "")
    [policy] = [a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_plotly_is_there_once_and_the_rest_is_small(text: str) -> None:
    assert len(re.findall(r"\* plotly\.js v\d", text)) == 1
    assert len(text.encode()) < 8e6


def test_every_figure_is_data_a_browser_can_draw(page: Page) -> None:
    assert page.count("figure") == len(page.figures) >= 10
    for figure in page.figures:
        assert figure["data"]
        assert {trace["type"] for trace in figure["data"]} == {"scatter"}
        # What the page's script can decode for its logarithmic axis.
        assert all(isinstance(t["y"], list) or t["y"]["dtype"] == "f4" for t in figure["data"])
        assert "template" not in figure["layout"] or len(json.dumps(figure["layout"]["template"])) < 100


def test_the_chapters(page: Page) -> None:
    for words in (
        "A title",
        "tiny on arithmetic",
        "How far this reaches",
        "up to 240 optimizer steps of 16 examples",
        "neither confirms nor refutes",
        "LoRA-MGPO, Figure 2",
        "Final eval loss by learning rate",
        "Training loss relative to the base model",
        "What perturbation adds",
        "Generalization gap",
        "Sharpness along training, lr = 5e-4",
        "largest algebraic eigenvalue",
        "Reading the numbers",
        "33 runs".removesuffix(" runs"),
        "1 diverged",
        "RuntimeError: out of memory",
    ):
        assert words in page.text, words


def test_colors_of_both_themes(text: str) -> None:
    tables = re.findall(r'<script type="application/json" class="colors">(.*?)</script>', text)
    assert all(json.loads(item)["#ffffff"] == "#14171c" for item in tables)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_hostile_strings_stay_text(tmp_path: Path) -> None:
    bad = RunConfig.parse({"alpha": 16, "rank": 8}).model_copy(
        update={"method": HOSTILE, "model": HOSTILE, "task": HOSTILE}
    )
    data = [
        replace(run(seed=seed, diverges_at=100), config={**bad.model_dump(mode="json"), "seed": seed}, error=HOSTILE)
        for seed in range(2)
    ]
    data = [replace(item, problems=(HOSTILE,), environment={HOSTILE: {HOSTILE: HOSTILE}}) for item in data]
    text = render_page(data, title=HOSTILE, name=HOSTILE, where=HOSTILE, unreadable=[HOSTILE])
    page, harmless = Page(text), Page(render_page([run(seed=seed) for seed in range(2)], title="", name=""))
    assert page.count("img") == 0
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    assert page.count("script") - 2 * len(page.figures) == harmless.count("script") - 2 * len(harmless.figures) == 2
    assert "{{ 7*7 }}" in page.text
    for figure in page.figures:
        for trace in figure["data"]:
            assert "<" not in trace.get("name", "")
            assert "<script" not in trace.get("hovertemplate", "")
        assert not any("<script" in note["text"] for note in figure["layout"].get("annotations", []))


def test_embedded_json_cannot_end_its_element() -> None:
    value = {"a": "</script><!-- \u2028 & 'quoted' \"x\""}
    text = embedded(json.dumps(value, ensure_ascii=False))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value


def test_the_run_tables_numbers_are_the_summaries(runs: list[RunData]) -> None:
    rows = {row["id"]: row for row in run_table(runs)}
    assert len(rows) == len(runs)
    for data in runs[:6]:
        summary = summarize(data)
        assert rows[data.run_id]["held_out"] == (plus_minus(summary.held_out), summary.held_out.value)
        assert rows[data.run_id]["peak"][1] == summary.peaks[0].highest


def test_settings_are_compared_at_one_rate_and_at_their_best(runs: list[RunData]) -> None:
    table = glance_table(runs)
    assert table["rate"] == "5e-4"
    [row] = [row for row in table["rows"] if (row["method"], row["rank"]) == ("LoRA", "64")]
    assert (row["common"]["diverged"], row["common"]["runs"]) == (1, 2)
    assert row["best"]["rate"] == "1e-4"  # the other rate lost a seed
    for row in table["rows"]:
        for side in (row["common"], row["best"]):
            assert side is None or side["at"] is None or 0 <= side["low"] <= side["at"] <= side["high"] <= 100


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.51349, 0.0123, "0.513 ± 0.012"),
        (12.3, 0.9, "12.30 ± 0.90"),
        (123.4, 56.0, "123 ± 56"),
        (-0.0131, 0.0121, "−0.013 ± 0.012"),
        (-0.0001, 0.012, "0.000 ± 0.012"),
        (0.5, float("nan"), "0.5"),
        (0.5, 0.0, "0.5"),
        (0.5, 1e-9, "0.5 ± 1.0e-09"),
        (float("nan"), 0.1, "–"),
    ],
)
def test_numbers_with_their_errors(value: float, error: float, text: str) -> None:
    assert plus_minus(Estimate(value, error)) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (8.25, "8.2 s"), (720, "12 min"), (12300, "3 h 25 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_from_a_real_store_to_a_file(tmp_path: Path) -> None:
    store = write(sweep(methods=("lora", "mgpo"), ranks=(8,), seeds=2, sharp=True), tmp_path / "store")
    path = write_report(store, tmp_path / "deep" / "report.html", title="From a store")
    assert path == tmp_path / "deep" / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert "From a store" in page.text
    assert "N = 2 seeds" in page.text
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]
    write_report(tmp_path / "store", path, where="method==lora")
    assert "LoRA-MGPO, Figure 1" in Page(path.read_text(encoding="utf-8")).text
    alone = Page(path.read_text(encoding="utf-8")).text
    assert "LoRA-MGPO, Table 4" in alone[alone.index("that this store does not support") :]


def test_an_empty_store_has_a_report(tmp_path: Path) -> None:
    page = Page(write_report(Store.create(tmp_path / "store"), tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "The store has no runs yet." in page.text
    assert page.count("figure") == 0
    assert f"{len(FIGURES) - len(IN_CHAPTERS)} figures that this store does not support" in page.text


def test_slices_are_shown_with_a_surface_behind_a_button(tmp_path: Path) -> None:
    runs = [run(), run(method="mgpo"), run(method="ggpo", task="sst2")]
    store = write(runs, tmp_path / "store")
    lora, mgpo, other = (item.run_id for item in runs)
    wide = slice_file(lora, mgpo, points=51, paths=[path(lora), path(mgpo, turn=0.3)])
    keep(
        store,
        wide,
        slice_file(lora, dims=1, draws=3),
        slice_file(other, step=30, draws=2),
        slice_file(other, step=60, draws=2),
    )
    text = write_report(store, tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    for words in (
        "LoRA and LoRA-MGPO on one common plane",
        "Loss around 2 snapshots of LoRA-GGPO",
        "mean over 3 random directions".capitalize(),
        "colors under the path are not its loss",
        "depends on the gauge: rescaling a layer's factors",
        "A path is a projection",
    ):
        assert words in page.text, words
    assert page.count("button", **{"data-action": "view"}) == 1 + 2
    solid = [
        json.loads(script) for (tag, found), script in _scripts(page) if str(found.get("class")).startswith("data-")
    ]
    assert [view["data"][0]["type"] for view in solid] == ["surface"] * 3
    assert all({trace["type"] for trace in figure["data"]} <= {"contour", "scatter"} for figure in page.figures)
    # A surface of 51 x 51 points is some 200 kB, in both forms and with its hover texts.
    without = write_report(store, tmp_path / "without.html", where="method==ggpo and rank==8")
    assert len(text) - without.stat().st_size < 1e6


def _scripts(page: Page) -> list[tuple[tuple[str, dict[str, str | None]], str]]:
    """Script elements with what is in them."""
    return list(zip([item for item in page.elements if item[0] == "script"], page.scripts, strict=True))


def test_a_chapter_shows_so_many_slices_and_counts_the_rest(tmp_path: Path) -> None:
    store = write([run()], tmp_path / "store")
    [only] = store.runs()
    keep(store, *(slice_file(only.id, dims=1, points=5, seed=seed) for seed in range(11)))
    page = Page(write_report(store, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.text.count("Loss around LoRA") == 8
    assert "3 more of these pictures are left out here" in page.text


def test_flatness_sharpness_and_gap_of_the_same_snapshots_are_one_table(tmp_path: Path) -> None:
    runs = [run(sharp=True), run(method="mgpo", sharp=True), run(seed=1)]
    store = write(runs, tmp_path / "store")
    lora, mgpo, unmeasured = (item.run_id for item in runs)
    keep(store, *(slice_file(name, step=step, draws=2) for name in (lora, mgpo) for step in (20, 40)))
    keep(store, slice_file(unmeasured, step=7, draws=2))  # neither evaluated nor analyzed there
    page = Page(write_report(store, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "2D slices of radius 1 on 8 examples, ± standard error over directions" in page.text
    assert page.count("table", **{"class": "runs flatness"}) == 1
    table = flatness_table(store.runs())
    shown = table[table["step"].isin([20, 40]) & table["width"].notna()]
    assert len(shown) == 4
    for row in shown.to_dict("records"):
        numbers = [plus_minus(Estimate(row["width"], row["width_error"])), plus_minus(Estimate(row["lambda_max"]))]
        assert re.search(rf"{row['run']} .*? {row['step']} .*? {' .*? '.join(map(re.escape, numbers))} ", page.text)
    assert "width ~ lambda_max: too few" in page.text
    lone = Page(write_report(store, tmp_path / "lone.html", where="seed==1").read_text(encoding="utf-8"))
    assert "Flatness, sharpness and gap" not in lone.text


def test_a_damaged_analysis_leaves_its_run_out_of_the_table_alone(tmp_path: Path) -> None:
    runs = [run(sharp=True), run(method="mgpo", sharp=True)]
    store = write(runs, tmp_path / "store")
    keep(store, *(slice_file(item.run_id, step=20, draws=2) for item in runs))
    whole, damaged = store.runs()
    (damaged.analysis_dir / "sharpness.parquet").write_bytes(b"no table")
    rows, problems = flatness_by_run(store, load_runs(store).runs)
    assert rows["run"].unique().tolist() == [whole.id]
    assert [str(damaged.analysis_dir) in line for line in problems] == [True]


def test_a_damaged_slice_of_several_runs_is_named(tmp_path: Path) -> None:
    runs = [run(), run(method="mgpo")]
    store = write(runs, tmp_path / "store")
    keep(store, slice_file(*(item.run_id for item in runs)))
    [file] = (store.path / "analysis").iterdir()
    file.write_bytes(b"PK")
    page = Page(write_report(store, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert f"{file.name} is damaged" in page.text
    assert "No slices have been measured on these runs yet" in page.text


def test_runs_without_measurements_have_a_report(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    store.add(RunConfig.parse({"alpha": 16}), "lora-r8-lr1e-4-s0-0123456789", {"data": "d", "model": "m"})
    failed = store.add(
        RunConfig.parse({"alpha": 16, "seed": 1}), "lora-r8-lr1e-4-s1-0123456789", {"data": "d", "model": "m"}
    )
    failed.set_status(state="failed", error="OSError: no such model")
    page = Page(write_report(store, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "1 queued" in page.text
    assert "OSError: no such model" in page.text
    assert page.count("figure") == 0


def test_damaged_runs_are_named(tmp_path: Path) -> None:
    store = write([run(), run(seed=1)], tmp_path / "store")
    (store.runs()[0].path / "status.json").write_text("{")
    page = Page(write_report(store, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "1 run could not be read and is left out everywhere" in page.text
    assert "status.json is damaged" in page.text


def test_errors(tmp_path: Path) -> None:
    store = write([run()], tmp_path / "store")
    with pytest.raises(UsageError, match="none of the 1 runs"):
        write_report(store, tmp_path / "report.html", where="rank==3")
    with pytest.raises(StoreError, match="does not exist"):
        write_report(tmp_path / "no", tmp_path / "report.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write to"):
        write_report(store, tmp_path / "file" / "report.html")
    assert not (tmp_path / "report.html").exists()
