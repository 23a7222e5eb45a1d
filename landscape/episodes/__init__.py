"""Double-descent episodes of loss curves: detection with a p-value, and the benchmark that holds it to account."""

from landscape.episodes.control import Control
from landscape.episodes.detector import detect_episodes
from landscape.episodes.results import Episode

__all__ = ["Control", "Episode", "detect_episodes"]
