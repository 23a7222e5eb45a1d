"""The store: everything about every run, in open formats, readable while it is being written.

::

    STORE/store.json                    schema version
    STORE/orders/, STORE/base_loss/     shared by runs
    STORE/runs/<run_id>/
      config.yaml, identity.json        what was asked for; the digests behind the id
      status.json                       replaced atomically
      attempts/<n>/                     one writer each; readers trust the current attempt only
        metrics.jsonl                   one checksummed line an optimizer step or evaluation    (lines.py)
        snapshots-<stream>.bin, .idx    fixed-size records, then their index lines              (records.py)
        snapshots.json                  where each tensor lies in a record                      (layout.py)
        base.safetensors                base tensors that the method rewrote
        checkpoint/                     newest resumable state, made by training
        attempt.json                    written last: the attempt has begun, and from where     (attempts.py)
      leases/<n>.json                   who may write attempt n                                 (leases.py)
      metrics.parquet                   the metrics of a finished run                           (metrics.py)
      analysis/                         made by the analyzers
"""

from landscape.store.attempts import Attempt
from landscape.store.capture import CapturePlan, plan_capture
from landscape.store.export import export_adapter
from landscape.store.layout import SnapshotLayout
from landscape.store.leases import Lease, LeaseHeldError, LeaseLostError, LeaseWatch
from landscape.store.runs import Run, RunStatus
from landscape.store.snapshots import SnapshotReader
from landscape.store.store import Store
from landscape.store.writer import SnapshotWriter

__all__ = [
    "Attempt",
    "CapturePlan",
    "Lease",
    "LeaseHeldError",
    "LeaseLostError",
    "LeaseWatch",
    "Run",
    "RunStatus",
    "SnapshotLayout",
    "SnapshotReader",
    "SnapshotWriter",
    "Store",
    "export_adapter",
    "plan_capture",
]
