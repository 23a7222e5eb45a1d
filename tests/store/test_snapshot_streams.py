import json
import pickle
import threading
import time
import zlib

import numpy as np
import pytest
import torch

from landscape.errors import StoreError, UsageError
from landscape.store import SnapshotLayout, SnapshotReader
from landscape.store.records import RecordWriter, StreamFiles
from landscape.store.snapshots import write_layouts

LAYOUT = SnapshotLayout.from_tensors({"A": torch.zeros(3), "B": torch.zeros(1, 2, dtype=torch.bfloat16)})
STEPS = (0, 1, 5)


def values(step: int) -> dict[str, torch.Tensor]:
    return {"A": torch.arange(3.0) + step / 7, "B": torch.full((1, 2), step + 0.5, dtype=torch.bfloat16)}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def folder(tmp_path):
    write_layouts(tmp_path, {"params": LAYOUT})
    write(tmp_path, STEPS)
    return tmp_path


def write(folder, steps):
    buffer = torch.zeros(LAYOUT.record_bytes, dtype=torch.uint8)
    writer = RecordWriter(StreamFiles.of(folder, "params", LAYOUT.record_bytes))
    for step in steps:
        LAYOUT.copy_into(values(step), buffer)
        writer.append(step, buffer.numpy().data)
    writer.close()


def reader(folder) -> SnapshotReader:
    return SnapshotReader(folder, "params", folder)


def test_snapshots_come_back_bit_for_bit(folder):
    snapshots = reader(folder)
    assert snapshots.steps.dtype == np.int64
    assert snapshots.steps.tolist() == list(STEPS)
    assert len(snapshots) == 3
    assert all(equal(snapshots.tensors(step), values(step)) for step in STEPS)
    assert snapshots.damaged_steps() == []
    assert snapshots.base_tensors() == {}


def test_the_files_are_readable_without_this_package(folder):
    layout = json.loads((folder / "snapshots.json").read_text())["streams"]["params"]
    data = (folder / "snapshots-params.bin").read_bytes()
    for line in (folder / "snapshots-params.idx").read_text().splitlines():
        entry = json.loads(line)
        record = data[entry["offset"] : entry["offset"] + entry["bytes"]]
        assert zlib.crc32(record) == entry["crc32"]
        a, b = layout["tensors"]
        np.testing.assert_array_equal(np.frombuffer(record, np.float32, 3, a["offset"]), values(entry["step"])["A"])
        # bfloat16 is the upper half of float32
        bits = np.frombuffer(record, np.uint16, 2, b["offset"]).astype(np.uint32) << 16
        np.testing.assert_array_equal(bits.view(np.float32), [entry["step"] + 0.5] * 2)
    assert len(data) == 3 * layout["record_bytes"]


def test_tensors_are_the_callers_own(folder):
    snapshots = reader(folder)
    snapshots.tensors(1)["A"].zero_()
    assert equal(snapshots.tensors(1), values(1))


def test_steps_may_be_written_in_any_order(folder):
    write(folder, (3, 2))
    assert reader(folder).steps.tolist() == [0, 1, 2, 3, 5]
    assert equal(reader(folder).tensors(2), values(2))


@pytest.mark.parametrize(
    ("step", "hint"), [(2, "nearest is 1"), (3, "nearest is 1"), (4, "nearest is 5"), (99, "nearest is 5")]
)
def test_an_absent_step_names_the_nearest(folder, step, hint):
    with pytest.raises(StoreError, match=rf"no snapshot of step {step}; the {hint}"):
        reader(folder).tensors(step)


def test_an_empty_stream_says_so(tmp_path):
    write_layouts(tmp_path, {"params": LAYOUT})
    assert reader(tmp_path).steps.tolist() == []
    with pytest.raises(StoreError, match="there are none yet"):
        reader(tmp_path).tensors(0)


def test_an_unknown_stream_names_the_nearest(folder):
    with pytest.raises(StoreError, match=r"no snapshot stream 'parms'; there are: params\. Did you mean 'params'"):
        SnapshotReader(folder, "parms", folder)


@pytest.mark.parametrize("name", ["snapshots-params.bin", "snapshots-params.idx"])
def test_a_stream_cut_at_any_byte_is_a_prefix_and_can_be_continued(folder, name):
    """What a process killed at any moment leaves: the record is written first, its index line second."""
    data, index = (folder / "snapshots-params.bin").read_bytes(), (folder / "snapshots-params.idx").read_bytes()
    ends = [position + 1 for position, byte in enumerate(index) if byte == 0x0A]
    whole = data if name.endswith("bin") else index
    for size in range(len(whole) + 1):
        (folder / "snapshots-params.bin").write_bytes(data)
        (folder / "snapshots-params.idx").write_bytes(index)
        (folder / name).write_bytes(whole[:size])
        kept = size // LAYOUT.record_bytes if name.endswith("bin") else sum(end <= size for end in ends)
        snapshots = reader(folder)
        assert snapshots.steps.tolist() == list(STEPS[:kept])
        assert all(equal(snapshots.tensors(step), values(step)) for step in STEPS[:kept])
        write(folder, (9,))
        assert reader(folder).steps.tolist() == [*STEPS[:kept], 9]
        assert equal(reader(folder).tensors(9), values(9))
        assert (folder / "snapshots-params.bin").stat().st_size == (kept + 1) * LAYOUT.record_bytes


@pytest.mark.parametrize("mask", [0x01, 0x80])
def test_a_changed_byte_of_a_record_is_detected(folder, mask):
    path = folder / "snapshots-params.bin"
    data = path.read_bytes()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= mask
        path.write_bytes(changed)
        snapshots = reader(folder)
        damaged = STEPS[position // LAYOUT.record_bytes]
        with pytest.raises(StoreError, match=rf"snapshots-params\.bin: the snapshot of step {damaged} is damaged"):
            snapshots.tensors(damaged)
        assert snapshots.damaged_steps() == [damaged]


@pytest.mark.parametrize("mask", [0x01, 0x80])
def test_a_changed_byte_of_the_index_is_detected(folder, mask):
    path = folder / "snapshots-params.idx"
    index = path.read_bytes()
    for position in range(len(index) - 1):
        changed = bytearray(index)
        changed[position] ^= mask
        path.write_bytes(changed)
        with pytest.raises(StoreError, match=r"snapshots-params\.idx, line \d: damaged"):
            reader(folder)


def test_records_lost_to_a_power_failure_are_detected(folder):
    """The index reached the disk, the data did not: the file has its length and zeros."""
    path = folder / "snapshots-params.bin"
    path.write_bytes(path.read_bytes()[: -LAYOUT.record_bytes] + bytes(LAYOUT.record_bytes))
    with pytest.raises(StoreError, match="step 5 is damaged"):
        reader(folder).tensors(5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"step": 1, "offset": 0, "bytes": LAYOUT.record_bytes, "crc32": 0}, "step 1 is there twice"),
        ({"step": 6, "offset": 0, "bytes": 8, "crc32": 0}, "line 4: 8 bytes at 0, expected 32 bytes"),
        ({"step": 6, "offset": -32, "bytes": LAYOUT.record_bytes, "crc32": 0}, "line 4: 32 bytes at -32"),
        ({"step": 6}, "line 4: not an index line"),
    ],
)
def test_an_index_that_contradicts_itself_is_refused(folder, line, message):
    from landscape.store.lines import encode_line

    with (folder / "snapshots-params.idx").open("ab") as file:
        file.write(encode_line(line))
    with pytest.raises(StoreError, match=message):
        reader(folder)


def test_a_damaged_index_stays_damaged_for_a_reader_that_is_kept(folder):
    snapshots = reader(folder)
    with (folder / "snapshots-params.idx").open("ab") as file:
        file.write(b"{}\n")
    for _ in range(2):
        with pytest.raises(StoreError, match="line 4: damaged"):
            len(snapshots)


def test_reading_while_another_thread_writes(tmp_path):
    write_layouts(tmp_path, {"params": LAYOUT})
    snapshots = reader(tmp_path)
    count, failures = 300, []

    def work():
        try:
            write(tmp_path, range(count))
        except BaseException as error:  # handed to the test's own thread
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    seen, deadline = [], time.monotonic() + 30
    while len(seen) < count and time.monotonic() < deadline:
        steps = snapshots.steps.tolist()
        assert steps == list(range(len(steps)))
        assert len(steps) >= len(seen)
        assert all(equal(snapshots.tensors(step), values(step)) for step in steps[len(seen) :])
        seen = steps
    thread.join()
    assert not failures
    assert seen == list(range(count))


def test_a_reader_travels_to_another_process(folder):
    snapshots = pickle.loads(pickle.dumps(reader(folder)))
    assert equal(snapshots.tensors(5), values(5))


def test_links_out_of_the_store_are_not_followed(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.bin"
    path = folder / "snapshots-params.bin"
    outside.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(outside)
    with pytest.raises(StoreError, match="leads out of the store"):
        reader(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "names no streams"),
        ('{"streams": {"params": {}}}', "malformed"),
        ('{"streams": {"../params": {}}}', "is not a plain name"),
        ("{", "not valid JSON"),
    ],
)
def test_a_damaged_layout_file_is_named(folder, content, message):
    (folder / "snapshots.json").write_text(content)
    with pytest.raises(StoreError, match=rf"snapshots\.json is damaged: .*{message}"):
        reader(folder)


@pytest.mark.parametrize("stream", ["", "../params", "a/b", "a\\b", "Params", ".hidden", "x" * 65])
def test_stream_names_that_would_be_paths_are_refused(run, stream):
    with run.begin_attempt() as attempt, pytest.raises(UsageError, match="is not a plain name such as params"):
        attempt.snapshot_writer(stream, LAYOUT)
