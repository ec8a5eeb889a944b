"""Files of API keys."""

import hashlib

import pytest
from hypothesis import given

from service.access.keys import SCOPES
from tests.fuzz.mutations import Content, toml_texts
from tests.fuzz.profile import check, fuzz
from tests.fuzz.worker import Worker

_HASH = hashlib.sha256(b"i2moe_secret").hexdigest()
KEYS = {
    "keys": [
        {"name": "ward-7", "sha256": _HASH, "scopes": list(SCOPES), "per_second": 2.5, "burst": 3},
        {"name": "ward-8", "sha256": _HASH[::-1], "scopes": ["predict"], "per_second": 1},
    ]
}


def test_any_file_of_keys_is_followed_or_refused(worker: Worker, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keys of whatever file are told apart and held to their rates, or a line without a hash says why not."""
    path = tmp_path_factory.mktemp("keys") / "keys.toml"

    @fuzz()
    @given(text=toml_texts(KEYS))
    def holds(text: Content) -> None:
        path.write_bytes(text)
        answer = worker.read("keys", path)
        check(answer)
        assert _HASH not in answer.told
        assert _HASH[::-1] not in answer.told

    holds()
