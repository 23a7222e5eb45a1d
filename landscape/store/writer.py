"""Writing snapshots in the background: training copies into a host buffer and goes on."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from landscape.errors import StoreError
from landscape.store.layout import SnapshotLayout
from landscape.store.records import SYNC_SECONDS, RecordWriter, StreamFiles

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

_LIVENESS_SECONDS = 1.0
"""How often a wait looks whether the thread it waits for is still there."""


class SnapshotWriter:
    """Appends snapshots to one stream of an attempt, in a background thread.

    `put` copies the tensors into one of a few reusable flat host buffers (pinned for CUDA tensors, where the copy runs
    behind the computation) and returns. It waits for the disk only while all ``queue_size`` buffers are in use. An
    error in the thread is raised at the next `put`, `flush` or `close`; what was written before it stays readable.

    A writer that is dropped or still open when the interpreter exits is closed then.

    Args:
        folder: the attempt.
        stream: its name.
        layout: of the records; continued streams must have the same.
        queue_size: buffers, each as large as a record; allocated as they are first needed.
    """

    def __init__(self, folder: Path, stream: str, layout: SnapshotLayout, queue_size: int = 4) -> None:
        if queue_size < 1:
            raise StoreError(f"queue_size: {queue_size} is not at least 1")
        self.stream = stream
        self.layout = layout
        records = RecordWriter(StreamFiles.of(folder, stream, layout.record_bytes))
        self._steps = set(records.steps)
        self._unallocated = queue_size
        self._closed = False
        self._reported = False
        self._worker = _Worker(records, stream)
        # The thread knows the worker and not this object, so that dropping this object can end the thread.
        self._finalizer = weakref.finalize(self, self._worker.stop)

    def put(self, step: int, tensors: Sequence[Tensor] | Mapping[str, Tensor]) -> None:
        """Take a snapshot: the values are copied before this returns (CUDA: in stream order) and may then change.

        Args:
            step: optimizer steps done; each step once, in any order.
            tensors: in the order of ``layout.names``, or by name.

        Raises:
            StoreError: the step was written before, a tensor does not fit the layout, the writer is closed, or an
                earlier snapshot could not be written.
        """
        self._check(step)
        ordered = self.layout.select(tensors)
        devices = {tensor.device for tensor in ordered}
        buffer = self._take_buffer(pinned=any(device.type == "cuda" for device in devices))
        try:
            buffer.fill(ordered, devices)
        except BaseException:
            self._worker.free.put(buffer)
            raise
        self._hand_over(step, buffer)

    def put_buffer(self, step: int, record: Tensor) -> None:
        """Write a ready record, (record_bytes,) uint8 on the host; it is copied and may be reused at once.

        Raises:
            StoreError: as `put`.
        """
        self._check(step)
        if record.numel() != self.layout.record_bytes or record.element_size() != 1 or record.device.type != "cpu":
            raise StoreError(
                f"snapshot: the buffer is {tuple(record.shape)} {record.dtype} on {record.device}, "
                f"expected ({self.layout.record_bytes},) uint8 on cpu"
            )
        buffer = self._take_buffer(pinned=False)
        buffer.flat.copy_(record)
        self._hand_over(step, buffer)

    def flush(self) -> None:
        """Wait until everything put so far is written and synced to disk.

        Raises:
            StoreError: something could not be written.
        """
        self._raise_failure()
        if not self._closed:
            done = threading.Event()
            self._worker.jobs.put(done)
            while not done.wait(_LIVENESS_SECONDS) and self._worker.alive:
                pass
        self._raise_failure()

    def close(self) -> None:
        """Write what is queued, sync, and end the thread; harmless when repeated.

        Raises:
            StoreError: something could not be written and no call has said so yet.
        """
        self._closed = True
        self._worker.stop()
        self._finalizer.detach()
        if not self._reported:
            self._raise_failure()

    @property
    def bytes_written(self) -> int:
        """Bytes of this stream's records on disk, those of a resumed prefix included."""
        return self._worker.bytes_written

    def _check(self, step: int) -> None:
        self._raise_failure()
        if self._closed:
            raise StoreError(f"snapshots of stream {self.stream!r}: the writer is closed")
        if step < 0:
            raise StoreError(f"snapshots of stream {self.stream!r}: step {step} is negative")
        if step in self._steps:
            raise StoreError(f"snapshots of stream {self.stream!r}: step {step} was written before")

    def _take_buffer(self, pinned: bool) -> _HostBuffer:
        free = self._worker.free
        try:
            return free.get_nowait()
        except queue.Empty:
            pass
        if self._unallocated:
            buffer = _HostBuffer(self.layout, pinned)
            self._unallocated -= 1
            return buffer
        while True:
            try:
                buffer = free.get(timeout=_LIVENESS_SECONDS)
            except queue.Empty:
                if self._worker.alive:
                    continue
            else:
                if self._worker.failure is None:
                    return buffer
                free.put(buffer)
            self._raise_failure()
            raise StoreError(f"snapshots of stream {self.stream!r}: the writing thread has ended")

    def _hand_over(self, step: int, buffer: _HostBuffer) -> None:
        self._steps.add(step)
        self._worker.jobs.put(_Job(step, buffer))

    def _raise_failure(self) -> None:
        if self._worker.failure is not None:
            self._reported = True
            raise StoreError(str(self._worker.failure)) from self._worker.failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _HostBuffer:
    """One record in host memory, with its views made once."""

    def __init__(self, layout: SnapshotLayout, pinned: bool) -> None:
        import torch

        # Zeros: the padding between tensors is part of the record and of its checksum.
        self.flat = torch.zeros(layout.record_bytes, dtype=torch.uint8, pin_memory=pinned)
        self.record = self.flat.numpy().data
        self._views = layout.stored_views(self.flat)
        self._pinned = pinned
        self._copies: list[torch.cuda.Event] = []

    def fill(self, tensors: list[Tensor], devices: set[torch.device]) -> None:
        import torch

        with torch.no_grad():
            torch._foreach_copy_(self._views, tensors, non_blocking=self._pinned)
        # Copies into pinned memory are still running: later kernels of the same stream wait for them by themselves,
        # the writing thread has to.
        for device in devices:
            if self._pinned and device.type == "cuda":
                event = torch.cuda.Event()
                event.record(torch.cuda.current_stream(device))
                self._copies.append(event)

    def wait(self) -> None:
        """Until the values have arrived."""
        for event in self._copies:
            event.synchronize()
        self._copies = []


class _Job(NamedTuple):
    step: int
    buffer: _HostBuffer


class _Worker:
    """The thread, its files, its jobs (an event asks for a sync, None for the end) and the buffers that are free."""

    def __init__(self, records: RecordWriter, stream: str) -> None:
        self._records = records
        self._stream = stream
        self._written = 0
        self.bytes_written = records.size
        self.failure: StoreError | None = None
        self.jobs: queue.SimpleQueue[_Job | threading.Event | None] = queue.SimpleQueue()
        self.free: queue.SimpleQueue[_HostBuffer] = queue.SimpleQueue()
        # A daemon, so that a run that dies never hangs on it; `stop` is what ends it in order.
        self._thread = threading.Thread(target=self._run, name=f"snapshots-{stream}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Finish the queue and end; may be repeated, for instance after a Ctrl-C during the wait."""
        if self.alive:
            self.jobs.put(None)
            # The garbage collector may drop a writer from within its own thread, which then ends by itself.
            if threading.current_thread() is not self._thread:
                self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                job = self.jobs.get(timeout=SYNC_SECONDS if self._records.unsynced else None)
            except queue.Empty:
                self._guard(self._records.sync_when_due)
                continue
            if isinstance(job, _Job):
                self._guard(self._write, job)
                self.free.put(job.buffer)
                continue
            if self._records.unsynced:
                self._guard(self._records.sync)
            if job is None:
                break
            job.set()
        self._records.close()

    def _write(self, job: _Job) -> None:
        try:
            job.buffer.wait()
            self._records.append(job.step, job.buffer.record)
        except Exception as error:
            raise StoreError(
                f"the snapshot of step {job.step} (stream {self._stream!r}) is lost, "
                f"{self._written} before it are written: {error}"
            ) from error
        self._written += 1
        self.bytes_written += len(job.buffer.record)
        self._records.sync_when_due()

    def _guard(self, action: Callable[..., None], *arguments: object) -> None:
        """After the first failure nothing more is written; jobs and buffers keep circulating, so that nobody waits."""
        if self.failure is None:
            try:
                action(*arguments)
            except StoreError as error:
                self.failure = error
            except Exception as error:
                self.failure = StoreError(f"snapshots of stream {self._stream!r}: {error!r}")
                self.failure.__cause__ = error
