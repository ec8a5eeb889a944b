"""Documents and files, wrong in every way that a hand or a disk may make them, as hypothesis draws them.

A document is changed as a tree and written as JSON or TOML by writers that also write what no tree can hold: keys twice, NaN,
numbers of thousands of digits, nesting without end.
"""

import gzip
import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]
Place = tuple[str | int, ...]


class Raw(str):
    """Written as it stands."""

    __slots__ = ()


Tokens = tuple[Raw, ...]


class Content(bytes):
    """A file's content, shown by its start."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{self[:300]!r} and so on: {len(self)} bytes"


class Twice(dict[str, Any]):
    """An object in which `key` comes twice, the second time with `value`."""

    key: str
    value: Any


_NAMES = ("", ".", "..", "../outside", "/etc/hostname", "a/b", "MODEL.ONNX", "id", "\x00", "\u202e\n\r", "é" * 200, "x" * 100_000)
_NUMBERS = (0, -1, 1, 2, 0.5, -0.5, 1e300, -1e-300, 5e-324, 2**31, 2**63, 10**12, -(2**64), 10**30)
_TREES = (None, True, False, [], {}, [[]], {"": None}, [None] * 100, ["x"] * 100_000, {str(i): i for i in range(1000)})
_TIMES = ("1970-01-01", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-01-01T25:00:00Z")
_JSON_TOKENS = tuple(
    map(
        Raw,
        (
            "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 400, "9" * 5000, '"\\ud800"', '"\\udc00\\ud800"', "",
            "[" * 200 + "]" * 200, "[" * 100_000, '{"a":' * 100_000, "-0", "01", "tru", "'x'", "1e-999", "0x10",
        ),
    )
)  # fmt: skip
_TOML_TOKENS = tuple(
    map(
        Raw,
        (
            "nan", "inf", "-inf", "1e999", "9" * 400, "9" * 5000, '"\\ud800"', "1979-05-27", "1979-13-45", "07:32:00", "0x_1",
            "[" * 200 + "]" * 200, "[" * 100_000, "{a=" * 100_000, ".".join("a" * 3000), '"""', "''''", "", "1_0", "0b2",
            "{" + ".".join("a" * 3000) + " = 1}", "1979-05-27T00:32:00.999999999999-07:00",
        ),
    )
)  # fmt: skip


def places(tree: Any, place: Place = ()) -> list[Place]:
    """Where the values of a tree are; the root itself comes first."""
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    return [place, *(deeper for key, value in items for deeper in places(value, (*place, key)))]


def _at(tree: Any, place: Place) -> Any:
    for key in place:
        tree = tree[key]
    return tree


def _place(draw: Draw, tree: Any) -> Place:
    """Somewhere in a tree; a short section is met as often as a long one."""
    place: Place = ()
    for _ in range(draw(st.sampled_from((0, 1, 2, 2, 3, 3, 4, 5, 6, 7)))):
        inner = _at(tree, place)
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner))) if isinstance(inner, list) else []
        if not keys:
            break
        place = (*place, draw(st.sampled_from(keys)))
    return place


def _replace(tree: Any, place: Place, value: Any) -> Any:
    if not place:
        return value
    _at(tree, place[:-1])[place[-1]] = value
    return tree


def _other(draw: Draw, tree: Any) -> Any:
    """A copy of another part of the tree."""
    return deepcopy(_at(tree, draw(st.sampled_from(places(tree)))))


def _replaced(draw: Draw, tree: Any, place: Place, tokens: Tokens) -> Any:
    return _replace(tree, place, deepcopy(draw(st.sampled_from((*_NUMBERS, *_NAMES, *_TREES, *_TIMES, *tokens)))))


def _swapped(draw: Draw, tree: Any, place: Place, _tokens: Tokens) -> Any:
    return _replace(tree, place, _other(draw, tree))


def _deleted(_draw: Draw, tree: Any, place: Place, _tokens: Tokens) -> Any:
    del _at(tree, place[:-1])[place[-1]]
    return tree


def _renamed(draw: Draw, tree: Any, place: Place, _tokens: Tokens) -> Any:
    parent = _at(tree, place[:-1])
    parent[draw(st.sampled_from((*_NAMES, str(place[-1]).upper(), *map(str, parent))))] = parent.pop(place[-1])
    return tree


def _twice(draw: Draw, tree: Any, place: Place, _tokens: Tokens) -> Any:
    twin = Twice(_at(tree, place[:-1]))
    twin.key, twin.value = str(place[-1]), _other(draw, tree)
    return _replace(tree, place[:-1], twin)


def _repeated(draw: Draw, tree: Any, place: Place, _tokens: Tokens) -> Any:
    _at(tree, place[:-1]).extend([_at(tree, place)] * draw(st.sampled_from((1, 100, 10_000))))
    return tree


def _added(draw: Draw, tree: Any, place: Place, _tokens: Tokens) -> Any:
    _at(tree, place)[draw(st.sampled_from(_NAMES))] = _other(draw, tree)
    return tree


def _scaled(draw: Draw, tree: Any, place: Place, _tokens: Tokens) -> Any:
    factor, step = draw(st.sampled_from((-1, 0, 1, 10, 1e9, 10**9))), draw(st.sampled_from((0, 1)))
    return _replace(tree, place, _at(tree, place) * factor + step)


_ANYWHERE, _IN_OBJECTS, _IN_LISTS = (_replaced, _swapped), (_deleted, _renamed, _twice), (_deleted, _repeated)


def _change(draw: Draw, tree: Any, tokens: Tokens) -> Any:
    place = _place(draw, tree)
    value, parent = _at(tree, place), _at(tree, place[:-1]) if place else None
    inside = _IN_OBJECTS if isinstance(parent, dict) else _IN_LISTS if isinstance(parent, list) else ()
    own = (_added,) if isinstance(value, dict) else (_scaled,) if type(value) in {int, float} else ()
    change = draw(st.sampled_from((*_ANYWHERE, *inside, *own)))
    return change(draw, tree, place, tokens)


@st.composite
def trees(draw: Draw, tree: Any, tokens: Tokens = ()) -> Any:
    """A document with up to three changes; without `tokens` it holds nothing but what Python's JSON can write."""
    tree = deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        tree = _change(draw, tree, tokens)
    return tree


def write_json(tree: Any) -> str:
    """A changed document as JSON, or almost."""
    if isinstance(tree, Raw):
        return str(tree)
    if isinstance(tree, Mapping):
        pairs = [*tree.items(), *([(tree.key, tree.value)] if isinstance(tree, Twice) else ())]
        return "{" + ",".join(f"{json.dumps(key)}:{write_json(value)}" for key, value in pairs) + "}"
    if isinstance(tree, list):
        return "[" + ",".join(map(write_json, tree)) + "]"
    return json.dumps(tree)


def write_toml(tree: Any) -> str:
    """A changed document as TOML, or almost."""
    if not isinstance(tree, Mapping):
        return _inline(tree)
    pairs = [*tree.items(), *([(tree.key, tree.value)] if isinstance(tree, Twice) else ())]
    return "".join(f"{json.dumps(key)} = {_inline(value)}\n" for key, value in pairs)


def _inline(tree: Any) -> str:
    if isinstance(tree, Raw):
        return str(tree)
    if isinstance(tree, Mapping):
        pairs = [*tree.items(), *([(tree.key, tree.value)] if isinstance(tree, Twice) else ())]
        return "{" + ", ".join(f"{json.dumps(key)} = {_inline(value)}" for key, value in pairs) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(_inline, tree)) + "]"
    return json.dumps(tree)


def _flipped(part: bytes, bit: int) -> bytes:
    return bytes([part[0] ^ bit]) + part[1:] if part else part


@st.composite
def damaged(draw: Draw, content: bytes) -> Content:
    """A file that a disk, a network or a hand has damaged: cut, flipped, filled with zeros, with bytes put in or gone."""
    changed = content
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(changed)))
        end = start + draw(st.sampled_from((0, 1, 1, 1, 8, 100, 5000, len(changed))))
        part = changed[start:end]
        instead = st.sampled_from((b"", bytes(len(part)), part + part, *(_flipped(part, 1 << bit) for bit in range(8))))
        changed = changed[:start] + draw(st.one_of(instead, st.binary(max_size=16))) + changed[end:]
    return Content(changed)


def json_texts(tree: Any) -> st.SearchStrategy[bytes]:
    """Bytes that are almost a JSON document."""
    written = trees(tree, _JSON_TOKENS).map(lambda changed: Content(write_json(changed).encode()))
    return st.one_of(written, written, written, damaged(write_json(tree).encode()))


def toml_texts(tree: Any) -> st.SearchStrategy[bytes]:
    """Bytes that are almost a TOML document."""
    written = trees(tree, _TOML_TOKENS).map(lambda changed: Content(write_toml(changed).encode("utf-8", "surrogatepass")))
    return st.one_of(written, written, written, damaged(write_toml(tree).encode()))


def gzipped(content: bytes) -> bytes:
    """Always the same for the same content."""
    return gzip.compress(content, mtime=0)
