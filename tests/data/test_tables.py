"""Reading data files, and what is said about broken ones."""

from __future__ import annotations

import pytest

from landscape.data.tables import read_table
from landscape.errors import UsageError
from tests.data.conftest import write_parquet

ROWS = {"input": ["a, b", 'he said "c"\nd', "naïve \u2028 e"], "target": ["x", "y", "z"]}


def test_the_three_formats_agree(tmp_path):
    write_parquet(tmp_path / "t.parquet", ROWS)
    (tmp_path / "t.jsonl").write_text(
        '{"input": "a, b", "target": "x"}\n{"input": "he said \\"c\\"\\nd", "target": "y"}\n'
        '{"target": "z", "input": "naïve \u2028 e"}\n\n',
        encoding="utf-8",
    )
    (tmp_path / "t.csv").write_text(
        '\ufeffinput,target\r\n"a, b",x\r\n"he said ""c""\nd",y\r\n"naïve \u2028 e",z\r\n', encoding="utf-8", newline=""
    )
    for name in ("t.parquet", "t.jsonl", "t.csv"):
        table = read_table(tmp_path / name)
        assert table.columns == ROWS, name
        assert len(table) == 3


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a\n1\n")
    first = read_table(path)
    path.write_text("a\n1\n2\n")
    second = read_table(path)
    assert (len(first), len(second)) == (1, 2)
    assert first.digest != second.digest


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b'{"a": 1}\n{"a": 2', r"t\.jsonl line 2 is not valid JSON"),
        ("t.jsonl", b'{"a": 1}\n\n{"a": 2}', r"t\.jsonl line 2 is not valid JSON"),
        ("t.jsonl", b'{"a": 1}\n[1]\n', r"t\.jsonl line 2 holds list, not an object"),
        ("t.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"t\.jsonl line 2 is not UTF-8"),
        ("t.jsonl", b"\n\n", r"t\.jsonl holds no rows"),
        ("t.csv", b"", r"t\.csv holds no rows"),
        ("t.csv", b"a,b\n", r"t\.csv holds no rows"),
        ("t.csv", b"a,b\n1,2\n3\n", r"t\.csv line 3 has 1 fields, the header 2"),
        ("t.csv", b'a,b\n1,"2\n', r"t\.csv line 2 is not valid CSV"),
        ("t.parquet", b"PAR1 nonsense", r"t\.parquet is not a readable Parquet file"),
        ("t.txt", b"a", r"unknown suffix '\.txt'; allowed: \.parquet, \.jsonl, \.csv"),
    ],
)
def test_broken_files_are_named_with_their_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_table(tmp_path / name)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read .*none\.csv: No such file"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError, match=r"folder\.csv is not a file"):
        read_table(tmp_path / "folder.csv")


def test_a_parquet_file_without_rows_is_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no rows"):
        read_table(write_parquet(tmp_path / "t.parquet", {"a": []}))
