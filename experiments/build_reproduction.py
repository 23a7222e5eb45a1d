"""Writes docs/reproduction.md and experiments/reproduction.csv from the packed results in experiments/results, whose
runs are judged anew.

    python experiments/build_reproduction.py

Run it after `landscape reproduce NAME --scale SCALE -o experiments/results`; a test holds that both are up to date.
"""

from __future__ import annotations

from pathlib import Path

from landscape.reproduction import read_results
from landscape.reproduction.page import page
from landscape.reproduction.results import TABLE, verdicts, write_result, write_table
from landscape.store.atomic import write_bytes

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"


def main() -> None:
    results = read_results(RESULTS)
    for result in results:
        write_result(result, RESULTS)
    write_bytes(ROOT / "docs" / "reproduction.md", page(results, RESULTS, "../experiments/results").encode())
    rows = [row for result in results for row in verdicts(result)]
    # An empty table would hide what the dashboard says where there is none.
    if rows:
        write_table(rows, ROOT / "experiments" / TABLE)
    else:
        (ROOT / "experiments" / TABLE).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
