import binascii
import json
import math

import pytest

from landscape.errors import StoreError
from landscape.store import lines
from landscape.store.lines import encode_line, is_intact, read_lines, scan_lines

RECORDS = [
    {"step": 0, "split": "eval", "loss": 2.5},
    {"step": 1, "loss_clean": math.nan, "grad_norm": math.inf, "tokens": 512},
    {"step": 2, "loss_clean": -math.inf, "loss_base": None, "note": 'äöü,"crc":1}\n'},
]


def refuse_constant(name):
    raise AssertionError(f"{name} is not JSON")


@pytest.mark.parametrize("record", RECORDS)
def test_a_line_is_strict_canonical_json_with_the_checksum_of_the_rest(record):
    line = encode_line(record)
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    value = json.loads(line, parse_constant=refuse_constant)
    crc = value.pop("crc")
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    assert crc == binascii.crc32(canonical)
    assert set(value) == set(record)
    assert is_intact(line[:-1])


def test_the_documented_example_is_what_is_written():
    line = encode_line({"step": 7, "loss_clean": 2.5}).decode().strip()
    assert line in lines.__doc__


def test_non_finite_numbers_are_written_as_their_names():
    value = json.loads(encode_line({"a": math.nan, "b": math.inf, "c": -math.inf, "d": None, "e": 1.5}))
    assert (value["a"], value["b"], value["c"], value["d"], value["e"]) == ("NaN", "Infinity", "-Infinity", None, 1.5)


def test_a_file_cut_at_any_byte_reads_as_its_whole_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    encoded = [encode_line(record) for record in RECORDS]
    data = b"".join(encoded)
    whole = [json.loads(line) for line in encoded]
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        complete = data[:size].count(b"\n")
        read = read_lines(path)
        assert read.records == [
            {key: value for key, value in line.items() if key != "crc"} for line in whole[:complete]
        ]
        assert read.end == sum(map(len, encoded[:complete]))


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80, 0xFF])
def test_a_changed_byte_is_never_read_as_data(tmp_path, mask):
    path = tmp_path / "metrics.jsonl"
    data = b"".join(encode_line(record) for record in RECORDS)
    path.write_bytes(data)
    intact = read_lines(path).records
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= mask
        path.write_bytes(changed)
        if position == len(data) - 1:  # without its newline, the last line is one that is still being written
            assert read_lines(path).records == intact[:-1]
            continue
        line = data[: position + 1].count(b"\n") + (data[position] != 0x0A)
        with pytest.raises(StoreError, match=rf"metrics\.jsonl, line {line}: damaged"):
            read_lines(path)


def test_zeros_at_the_end_are_a_torn_tail(tmp_path):
    """What a power failure leaves where the length reached the disk and the data did not."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(encode_line(RECORDS[0]) + bytes(100))
    assert [record["step"] for record in read_lines(path).records] == [0]


def test_reading_goes_on_where_it_ended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(encode_line(RECORDS[0]) + encode_line(RECORDS[1])[:10])
    first = read_lines(path)
    path.write_bytes(encode_line(RECORDS[0]) + encode_line(RECORDS[1]) + b"broken\n")
    with pytest.raises(StoreError, match="line 3"):
        read_lines(path, first.end, first_number=2)
    path.write_bytes(encode_line(RECORDS[0]) + encode_line(RECORDS[1]))
    assert [record["step"] for record in read_lines(path, first.end, 2).records] == [1]


def test_scanning_goes_past_damage(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(encode_line(RECORDS[0]) + b"broken\n" + encode_line(RECORDS[1]) + b"torn")
    found = [(number, record and record["step"]) for number, _, record in scan_lines(path)]
    assert found == [(1, 0), (2, None), (3, 1)]


def test_a_missing_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "absent").records == []


def test_a_line_with_a_checksum_that_is_no_json_is_damage(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{nonsense,"crc":%d}\n' % binascii.crc32(b"{nonsense}"))
    with pytest.raises(StoreError, match="not a JSON object"):
        read_lines(path)


def test_an_unreadable_file_is_a_store_error(tmp_path):
    with pytest.raises(StoreError, match="cannot read"):
        read_lines(tmp_path)
