"""What every measurement of a model shares: the state it is measured in, the data it accepts, and its errors."""

from landscape.measurement.batches import Batch, Counted, count_batches, slice_batch
from landscape.measurement.context import differentiating, measuring
from landscape.measurement.errors import NonFiniteLossError
from landscape.measurement.memory import free_bytes

__all__ = [
    "Batch",
    "Counted",
    "NonFiniteLossError",
    "count_batches",
    "differentiating",
    "free_bytes",
    "measuring",
    "slice_batch",
]
