"""From captured runs to results: the model is built as it was at a step, then measured; results join the run."""

from landscape.analysis.density import DENSITY_FILE, analyze_density
from landscape.analysis.episodes import EPISODES_FILE, EpisodeSettings, analyze_episodes
from landscape.analysis.gap import GAP_FILE, analyze_gap
from landscape.analysis.layers import LAYERS_FILE, analyze_layers
from landscape.analysis.restored import RestoredRun, open_run, restore
from landscape.analysis.sharpness import SHARPNESS_FILE, analyze_sharpness
from landscape.analysis.spaces import SPACES, captured_steps
from landscape.analysis.trace import TRACE_FILE, analyze_trace

__all__ = [
    "DENSITY_FILE",
    "EPISODES_FILE",
    "GAP_FILE",
    "LAYERS_FILE",
    "SHARPNESS_FILE",
    "SPACES",
    "TRACE_FILE",
    "EpisodeSettings",
    "RestoredRun",
    "analyze_density",
    "analyze_episodes",
    "analyze_gap",
    "analyze_layers",
    "analyze_sharpness",
    "analyze_trace",
    "captured_steps",
    "open_run",
    "restore",
]
