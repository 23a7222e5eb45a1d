"""Rebounds by rank and learning rate, and methods compared on paired seeds (a question of ours).

Which cells of a sweep rebound, by how much and how surely, one heat map a method; and below them whether a method
lowers the rebound, by exact tests on paired seeds. It needs ``landscape analyze episodes``.
"""

import sys
from collections.abc import Sequence

from landscape.errors import StoreError
from landscape.figures import main
from landscape.plots import Choice, CurveSet, RunData, episode_grid


def build(runs: Sequence[RunData]) -> CurveSet:
    tested = [run for run in runs if run.episodes is not None]
    if not tested:
        raise StoreError("figure episodes needs tested runs: landscape analyze episodes STORE")
    methods = list(dict.fromkeys(run.method for run in tested))
    choice = Choice.of("episodes", tested, methods=methods, required=methods).alpha_rule(1)
    return choice.dress(episode_grid(choice.runs))


if __name__ == "__main__":
    sys.exit(main("episodes"))
