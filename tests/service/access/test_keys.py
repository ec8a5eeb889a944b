"""API keys: made, read, found, followed while the file changes, and held to their rate."""

import hashlib
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.access import keys as module
from service.access.__main__ import main
from service.access.keys import Allowance, Keys, KeysError, bearer_token, new_key, read_keys
from service.bundle.documents import read_file


def write(path: Path, *entries: str) -> Path:
    path.write_text("\n".join(entries))
    return path


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is looked at with every request instead of once a second."""
    monkeypatch.setattr(module, "_LOOK_EVERY_S", 0.0)


def test_a_new_key_opens_what_its_lines_say(tmp_path: Path) -> None:
    """The file holds no key, and the key is found by nobody else's name."""
    (token, lines), (other, other_lines) = new_key("ward-7", ["predict", "explain"]), new_key("prometheus", ["metrics"])
    assert token not in lines
    keys = Keys(write(tmp_path / "keys.toml", lines, other_lines))
    found = keys.find(token)
    assert found is not None
    assert (found.name, found.scopes) == ("ward-7", {"predict", "explain"})
    assert (keys.find(other) or found).name == "prometheus"
    assert keys.find(token[:-1]) is None
    assert keys.find("") is None
    assert keys.find("\ud800") is None


@pytest.mark.parametrize("per_second", [1e-6, 0.05, 5, 123456.789, 1e6])
def test_a_new_key_has_the_rate_that_was_asked_for(tmp_path: Path, per_second: float) -> None:
    """To the last digit."""
    (entry,) = read_keys(write(tmp_path / "keys.toml", new_key("a", ["predict"], per_second)[1]))
    assert entry.per_second == per_second


def test_a_hash_is_compared_to_its_end(tmp_path: Path) -> None:
    """One that differs in its last digit is another key's."""
    token, lines = new_key("ward-7", ["predict"])
    digest = hashlib.sha256(token.encode()).hexdigest()
    for position in (0, 8, 32, 63):
        other = digest[:position] + ("1" if digest[position] == "0" else "0") + digest[position + 1 :]
        assert Keys(write(tmp_path / "keys.toml", lines.replace(digest, other))).find(token) is None


def test_keys_are_long_and_never_the_same() -> None:
    """256 bits each."""
    made = {new_key("a", ["predict"])[0] for _ in range(50)}
    assert len(made) == 50
    assert all(len(token) >= 43 for token in made)


@pytest.mark.usefixtures("at_once")
def test_a_changed_file_is_followed(tmp_path: Path) -> None:
    """Rotation without a restart: the successor is let in beside the old key, then instead of it."""
    (old, old_lines), (new, new_lines) = new_key("ward-7", ["predict"]), new_key("ward-7-b", ["predict"])
    path = write(tmp_path / "keys.toml", old_lines)
    keys = Keys(path)
    write(path, old_lines, new_lines)
    assert keys.find(old)
    assert keys.find(new)
    replacement = write(tmp_path / "next.toml", new_lines)
    replacement.replace(path)
    assert keys.find(old) is None
    assert keys.find(new)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("damage", ["", "[[keys]\n", '[[keys]]\nname = "a"', None])
def test_a_change_that_cannot_be_read_changes_nothing(tmp_path: Path, damage: str | None, caplog: Any) -> None:
    """A half-written file, or none, locks nobody out and lets nobody in; the log says so once, and nothing of the file."""
    token, lines = new_key("ward-7", ["predict"])
    path = write(tmp_path / "keys.toml", lines)
    keys = Keys(path)
    if damage is None:
        path.unlink()
    else:
        path.write_text(damage)
    for _ in range(3):
        assert keys.find(token)
        assert keys.find("another") is None
    (told,) = caplog.records
    assert told.getMessage().startswith(f"{path}: ")
    assert told.getMessage().endswith("; the keys from before stay")
    write(path, lines)
    assert keys.find(token)
    path.write_text("")
    assert keys.find(token)
    assert len(caplog.records) == 2


@pytest.mark.usefixtures("at_once")
def test_a_file_that_could_not_be_opened_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A removed key must not stay because the process had no file to spare when the file changed."""
    (old, old_lines), (new, new_lines) = new_key("old", ["predict"]), new_key("new", ["predict"])
    path = write(tmp_path / "keys.toml", old_lines)
    keys = Keys(path)
    write(path, new_lines)

    def fails(path: Path, limit: int) -> bytes:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as full:
        full.setattr(module, "read_file", fails)
        assert keys.find(old)
    assert keys.find(old) is None
    assert keys.find(new)


@pytest.mark.usefixtures("at_once")
def test_a_change_while_the_file_is_read_for_the_first_time_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read is then older than the file."""
    (old, old_lines), (new, new_lines) = new_key("old", ["predict"]), new_key("new", ["predict"])
    path = write(tmp_path / "keys.toml", old_lines)

    def read_then_changed(path: Path, limit: int) -> bytes:
        read = read_file(path, limit)
        write(path, new_lines, "# changed")
        return read

    with monkeypatch.context() as changing:
        changing.setattr(module, "read_file", read_then_changed)
        keys = Keys(path)
    assert keys.find(old) is None
    assert keys.find(new)


HASH = "0" * 64


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "keys: Field required"),
        ("keys = []", "at least 1"),
        ("[[keys]", "cannot be read as TOML"),
        (f'[[keys]]\nname = "a"\nsha256 = "{HASH}"\nscopes = []', "keys.0.scopes"),
        (f'[[keys]]\nname = "a"\nsha256 = "{HASH}"\nscopes = ["root"]', "keys.0.scopes.0"),
        (f'[[keys]]\nname = "a b"\nsha256 = "{HASH}"\nscopes = ["predict"]', "keys.0.name"),
        ('[[keys]]\nname = "a"\nsha256 = "secret-word"\nscopes = ["predict"]', "keys.0.sha256"),
        (f'[[keys]]\nname = "a"\nsha256 = "{HASH}"\nscopes = ["predict"]\ncolour = 1', "keys.0.colour"),
        (f'[[keys]]\nname = "a"\nsha256 = "{HASH}"\nscopes = ["predict"]\nper_second = 0', "keys.0.per_second"),
        (f'[[keys]]\nname = "a"\nsha256 = "{HASH}"\nscopes = ["predict"]\nper_second = 1e-320', "keys.0.per_second"),
        (f'[[keys]]\nname = "a"\nsha256 = "{HASH}"\nscopes = ["predict"]\nper_second = inf', "keys.0.per_second"),
        (f'[[keys]]\nname = "a"\nsha256 = "{HASH}"\nscopes = ["predict"]\nburst = 1{"0" * 400}', "keys.0.burst"),
        (f'[[keys]]\nname = "a"\nsha256 = "{HASH}"\nscopes = ["predict"]\n' * 2, "every name once"),
        ("keys = " + "[" * 100_000, "cannot be read as TOML .RecursionError"),
        ("keys = " + "9" * 5000, "cannot be read as TOML .ValueError"),
    ],
)
def test_a_bad_file_is_told_by_its_place(tmp_path: Path, text: str, why: str) -> None:
    """Never by its contents."""
    with pytest.raises(KeysError, match=why) as caught:
        read_keys(write(tmp_path / "keys.toml", text))
    assert "secret-word" not in str(caught.value)


def test_no_file_is_told(tmp_path: Path) -> None:
    """As what it is."""
    with pytest.raises(KeysError, match="FileNotFoundError"):
        Keys(tmp_path / "none.toml")


def test_a_key_is_held_to_its_rate() -> None:
    """A burst passes, then two a second, and never more than a burst after a pause."""
    now = [0.0]
    allowance = Allowance(2.0, 3, clock=lambda: now[0])
    assert [allowance.take() for _ in range(4)] == [0, 0, 0, 1]
    now[0] = 0.5
    assert [allowance.take(), allowance.take()] == [0, 1]
    now[0] = 1000.0
    assert [allowance.take() for _ in range(4)] == [0, 0, 0, 1]


@given(st.lists(st.floats(0, 10), min_size=1, max_size=60), st.floats(0.1, 50), st.integers(1, 20))
def test_no_pattern_of_requests_beats_the_rate(pauses: list[float], per_second: float, burst: int) -> None:
    """Over any time at most the burst and what came back since."""
    now = [0.0]
    allowance = Allowance(per_second, burst, clock=lambda: now[0])
    passed = 0
    for pause in pauses:
        now[0] += pause
        passed += allowance.take() == 0
    assert passed <= burst + now[0] * per_second + 1e-6


def test_each_key_has_its_own_rate(tmp_path: Path) -> None:
    """One that is used up leaves the others as they are, and one without a rate is never used up."""
    (_, slow), (_, free) = new_key("slow", ["predict"], 0.001), new_key("free", ["predict"])
    keys = Keys(write(tmp_path / "keys.toml", slow, "burst = 1", free))
    first, second = read_keys(tmp_path / "keys.toml")
    assert keys.wait_s(first) == 0
    assert keys.wait_s(first) > 900
    assert {keys.wait_s(second) for _ in range(100)} == {0}


@pytest.mark.usefixtures("at_once")
def test_a_rate_is_followed_too(tmp_path: Path) -> None:
    """A key whose rate was changed has the new one at once, and of one that is gone nothing is remembered."""
    (token, slow), (_, gone) = new_key("slow", ["predict"], 0.001), new_key("gone", ["predict"], 0.001)
    path = write(tmp_path / "keys.toml", slow, "burst = 1", gone)
    keys = Keys(path)
    for entry in read_keys(path):
        keys.wait_s(entry)
    write(path, slow, "burst = 3")
    entry = keys.find(token)
    assert entry is not None
    assert [keys.wait_s(entry) > 0 for _ in range(4)] == [False, False, False, True]
    assert set(keys._allowances) == {entry.sha256}


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Basic abc", None),
        ("Bearer", None),
        ("Bearer a b", None),
        ("", None),
        ("Bearer \u00e9", None),
    ],
)
def test_a_token_is_read_from_its_header(header: str, token: str | None) -> None:
    """As RFC 6750 writes it."""
    assert bearer_token(header) == token


def test_the_command_prints_lines_for_the_file_and_the_key_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines go where a file is made of them, the key to the terminal."""
    assert main(["new", "ward-7", "--scopes", "predict", "metrics", "--per-second", "5"]) == 0
    told = capsys.readouterr()
    (entry,) = tomllib.loads(told.out)["keys"]
    assert (entry["name"], entry["scopes"], entry["per_second"]) == ("ward-7", ["metrics", "predict"], 5)
    assert "i2moe_" in told.err
    assert "i2moe_" not in told.out


@pytest.mark.parametrize("arguments", [["new", "ward 7"], ["new", "a", "--per-second", "-1"]])
def test_a_key_that_cannot_be_is_refused(arguments: list[str], capsys: Any) -> None:
    """In one line."""
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("error: ")
