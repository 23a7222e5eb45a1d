import json

import pytest

from landscape.errors import StoreError
from landscape.store.atomic import AppendFile, read_json, replacing, write_bytes, write_json


def test_replacing_leaves_the_old_content_when_the_writer_fails(tmp_path):
    path = tmp_path / "result.npz"
    write_bytes(path, b"old")

    def fail(temporary):
        assert temporary.parent == path.parent
        assert temporary.suffix == ".npz"
        temporary.write_bytes(b"new")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        fail(temporary)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("room", [0, 1, 5, 12])
def test_replacing_leaves_the_old_content_when_the_disk_is_full(tmp_path, disk, room):
    path = tmp_path / "status.json"
    write_json(path, {"state": "queued"})
    disk.room = room
    with pytest.raises(StoreError, match=r"cannot write .*status\.json: No space left on device \(\d+ bytes free\)"):
        write_json(path, {"state": "running"})
    assert read_json(path) == {"state": "queued"}
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_strict(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not valid JSON"), (b"{", "not valid JSON"), (b"[1]", "holds a list"), (b"\xff\xfe", "not valid JSON")],
)
def test_damaged_json_names_the_file(tmp_path, content, message):
    (tmp_path / "status.json").write_bytes(content)
    with pytest.raises(StoreError, match=rf"status\.json is damaged: .*{message}"):
        read_json(tmp_path / "status.json")


def test_missing_json_names_the_file(tmp_path):
    with pytest.raises(StoreError, match=r"cannot read .*absent\.json: No such file"):
        read_json(tmp_path / "absent.json")


@pytest.mark.parametrize("room", [0, 1, 9])
def test_a_piece_that_does_not_fit_is_taken_back(tmp_path, disk, room):
    with AppendFile(tmp_path / "log") as file:
        assert file.append(b"first\n") == 0
        disk.room = room
        with pytest.raises(StoreError, match=rf"{room} of 10 bytes written, \d+ bytes free"):
            file.append(b"0123456789")
        disk.room = None
        assert file.append(b"second\n") == 6
    assert (tmp_path / "log").read_bytes() == b"first\nsecond\n"


def test_a_piece_interrupted_by_ctrl_c_is_taken_back(tmp_path, monkeypatch, disk):
    file = AppendFile(tmp_path / "log")
    file.append(b"first\n")
    write = disk.write

    def interrupted(descriptor, data):
        if len(data) <= 3:
            raise KeyboardInterrupt
        return write(descriptor, data[:-3])

    monkeypatch.setattr("landscape.store.atomic.os.write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        file.append(b"second\n")
    assert (tmp_path / "log").read_bytes() == b"first\n"
    file.close()


def test_an_existing_file_is_cut_to_its_valid_bytes_and_continued(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"whole\nto")
    with AppendFile(path, valid_bytes=6) as file:
        file.append(b"next\n")
    assert path.read_bytes() == b"whole\nnext\n"


def test_a_closed_file_says_so(tmp_path):
    file = AppendFile(tmp_path / "log")
    file.close()
    file.close()
    with pytest.raises(StoreError, match="is closed"):
        file.append(b"x")


def test_a_file_in_a_missing_folder_is_a_store_error(tmp_path):
    with pytest.raises(StoreError, match=r"cannot write .*No such file"):
        AppendFile(tmp_path / "absent" / "log")


def test_json_is_readable_by_people(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    assert (tmp_path / "x.json").read_text() == json.dumps({"a": 1}, indent=2) + "\n"
