"""What a run says of itself: its digest, its format, and files that are not those it wrote."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from ecgfast.errors import ResumeError
from ecgfast.runs.digests import (
    LaterFormatError,
    entries,
    is_sealed,
    problem,
    read_facts,
    read_small,
    sealed,
)


def test_sealed_facts_are_json_with_the_digest_of_what_stands_before_it() -> None:
    body = b'{\n "a": 1,\n "format": 3\n}'
    digest = hashlib.sha256(body).hexdigest()
    assert sealed({"a": 1}) == body[:-2] + f',\n "digest": "{digest}"\n}}'.encode()


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, False),
        ({"format": 2}, False),
        ({"format": 3}, True),
        ({"format": 4}, False),
        ({"digest": ""}, True),
        ({"run_files": {}}, True),
    ],
)
def test_facts_of_format_2_alone_have_no_digest(facts: dict[str, object], expected: bool) -> None:
    assert is_sealed(facts) is expected


def test_facts_come_back_or_say_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(sealed({"a": 1}))
    facts = read_facts(path)
    assert (facts["a"], facts["format"]) == (1, 3)
    for digest in ("0" * 64, "f" * 64):
        path.write_bytes(json.dumps({**facts, "digest": digest}, indent=1).encode())
        with pytest.raises(ResumeError, match="its digest is wrong"):
            read_facts(path)
    path.write_text('{"a": 1, "format": 2}')
    assert read_facts(path) == {"a": 1, "format": 2}
    path.write_text('{"a": 1, "format": 4}')
    with pytest.raises(LaterFormatError, match="has format 4, this ecgfast reads 3"):
        read_facts(path)
    path.write_text("[]")
    with pytest.raises(ResumeError, match="it is no JSON of ours"):
        read_facts(path)


def entry(data: bytes, **changes: object) -> dict[str, object]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), **changes}


def test_entries_are_of_files_that_exist(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"hello")
    (tmp_path / "folder").mkdir()
    assert entries(tmp_path, ["a", "absent", "folder"]) == {"a": entry(b"hello")}


@pytest.mark.parametrize(
    ("of", "grows", "expected"),
    [
        (entry(b"hello"), False, None),
        (entry(b"hello"), True, None),
        (entry(b"hell"), True, None),
        (entry(b"hell"), False, "a has 5 bytes, expected 4"),
        (entry(b"hello", bytes=6), True, "a has 5 bytes, expected 6"),
        (entry(b"hello", bytes=6), False, "a has 5 bytes, expected 6"),
        (entry(b"hello", sha256="0" * 64), False, "its digest is wrong"),
        (entry(b"hello", sha256="f" * 64), False, "its digest is wrong"),
        (entry(b"help"), True, "its digest is wrong"),
        (entry(b"hello", bytes=True), False, "size and digest of a are missing"),
        ({"bytes": 5}, False, "size and digest of a are missing"),
        (None, False, "size and digest of a are missing"),
    ],
)
def test_a_file_is_what_was_written_or_the_difference_is_said(
    tmp_path: Path, of: object, grows: bool, expected: str | None
) -> None:
    (tmp_path / "a").write_bytes(b"hello")
    found = problem(tmp_path, "a", of, grows=grows)
    assert found is None if expected is None else found is not None and expected in found


def test_every_byte_is_in_the_digest(tmp_path: Path) -> None:
    for size in (1, (1 << 20) + 1):
        data = bytes(size)
        (tmp_path / "a").write_bytes(data)
        assert problem(tmp_path, "a", entry(data)) is None
        assert problem(tmp_path, "a", entry(data[:-1] + b"x")) is not None


@pytest.mark.parametrize("name", ["../a", "x/a"])
def test_a_path_is_no_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "run" / "x").mkdir(parents=True)
    path = tmp_path / "run" / name
    path.write_bytes(b"hello")
    assert problem(tmp_path / "run", name, entry(b"hello")) == f"{name!r} is no name of a file"


def test_only_regular_files_of_at_most_64_mb_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ResumeError, match="pipe is no regular file"):
        read_small(tmp_path / "pipe")
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, 67_108_864)
    assert len(read_small(path)) == 67_108_864
    os.truncate(path, 67_108_865)
    with pytest.raises(ResumeError, match="larger than any file of its kind"):
        read_small(path)
