"""JSON and TOML from outside: read within bounds, or refused without a word of theirs."""

import os
from pathlib import Path

import pytest

from service.bundle.documents import DocumentError, parse_json, parse_toml, read_file


@pytest.mark.parametrize(
    "text",
    ["", "{", "NaN", "[Infinity]", "1e999", "9" * 5000, "[" * 100_000, '{"a":' * 100_000, b"\xff".decode("latin1")],
    ids=["empty", "cut", "nan", "infinity", "too large", "digits", "lists", "objects", "binary"],
)
def test_what_is_no_json_is_refused(text: str) -> None:
    """NaN and infinity are no JSON; neither is what a parser gives up on. The content is not repeated."""
    with pytest.raises(DocumentError, match=r"^cannot be read as JSON \(\w+\)$"):
        parse_json(text.encode("latin1"))


def test_json_is_read() -> None:
    """Numbers of all sizes that a float holds, and half characters, which JSON may spell."""
    assert parse_json(b'{"a": [1, -2.5e3, "\\ud800"]}') == {"a": [1, -2500.0, "\ud800"]}


@pytest.mark.parametrize(
    "text",
    ["x", "a = " + "9" * 5000, "a = " + "[" * 100_000, "a = \udcff", ".".join("a" * 101) + " = 1", '"a b" . ' * 101 + "c = 1"],
    ids=["cut", "digits", "nested", "binary", "dotted", "quoted"],
)
def test_what_is_no_toml_is_refused(text: str) -> None:
    """Numbers and nesting beyond the parser's limits, and keys of so many parts that it would take minutes."""
    with pytest.raises(DocumentError, match=r"^is not valid TOML"):
        parse_toml(text.encode("utf-8", "surrogateescape"))


@pytest.mark.parametrize("text", ["a" * 1_000_000, "a" + " " * 1_000_000, "'" * 100_000], ids=["word", "blanks", "quotes"])
def test_long_lines_are_no_long_keys(text: str) -> None:
    """Looking for long keys does not itself take longer and longer: each of these would take hours."""
    with pytest.raises(DocumentError, match="is not valid TOML"):
        parse_toml(text.encode())


def test_toml_is_read() -> None:
    """Keys of some parts, and text with dots in it."""
    assert parse_toml(b'a."b c".d = "e.' + b"f." * 200 + b'"') == {"a": {"b c": {"d": "e." + "f." * 200}}}


def test_a_file_is_bounded(tmp_path: Path) -> None:
    """A larger file is not read to its end."""
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    assert read_file(path, 1000) == bytes(1000)
    with pytest.raises(DocumentError, match="expected 999 bytes at most, found more"):
        read_file(path, 999)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe without a writer and an endless device are refused, by a link to them too."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        with pytest.raises(DocumentError, match="is no regular file"):
            read_file(tmp_path / name, 10)
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path, 10)
