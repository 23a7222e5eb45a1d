"""Labels along a path find room or are left out."""

from __future__ import annotations

import itertools

import numpy as np

from landscape.plots.slice_labels import place_labels


def test_labels_touch_neither_each_other_nor_the_edge_nor_lines() -> None:
    generator = np.random.default_rng(0)
    anchors = generator.uniform(5, 295, (120, 2))
    line = np.array([[0.0, 150.0], [300.0, 150.0]])
    sizes = [(20.0, 9.0)] * 120
    needed = [index < 4 for index in range(120)]
    placed = place_labels(anchors, sizes, needed, [line], (300, 300))
    assert {label.index for label in placed} >= {0, 1, 2, 3}
    assert 20 < len(placed) < 120
    for one, other in itertools.combinations(placed, 2):
        assert abs(one.x - other.x) >= 20 or abs(one.y - other.y) >= 9
    for label in placed:
        assert 10 <= label.x <= 290
        assert 4.5 <= label.y <= 295.5
        assert needed[label.index] or abs(label.y - 150) > 4.5
        assert np.hypot(*(anchors[label.index] - (label.x, label.y))) < 40
