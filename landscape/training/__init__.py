"""Training: the shared trainer, and the callbacks that also work in anyone's Trainer."""

from landscape.training.callbacks import SnapshotCallback
from landscape.training.resolve import check, check_shapes, estimate_record_bytes, identify, resolve
from landscape.training.run import TrainResult, prepare_base_loss, train
from landscape.training.trainer import LandscapeTrainer
from landscape.training.watch import EpisodeWatchCallback

__all__ = [
    "EpisodeWatchCallback",
    "LandscapeTrainer",
    "SnapshotCallback",
    "TrainResult",
    "check",
    "check_shapes",
    "estimate_record_bytes",
    "identify",
    "prepare_base_loss",
    "resolve",
    "train",
]
