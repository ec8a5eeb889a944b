"""What a client reads when a body cannot be read: what was expected, and what was found."""

import pytest

from service.api.errors import InvalidJsonError
from service.api.requests import parse
from tests.tiny_bundle import tiny_schema


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "expected a JSON object, found an empty body"),
        (b"  \n", "expected a JSON object, found an empty body"),
        (b"[1]", "expected a JSON object, found a list"),
        (b'{"labs": {"crea": NaN}}', "expected finite numbers, or null for a missing value, found NaN or infinity"),
        (b'{"labs": {"crea": -Infinity}}', "found NaN or infinity, which JSON does not have"),
        (b'{"labs": {', "the body is not JSON"),
    ],
)
def test_an_unreadable_body_is_told_by_its_fault(body: bytes, told: str) -> None:
    """Each fault has its own words."""
    with pytest.raises(InvalidJsonError) as error:
        parse(body, tiny_schema(), max_instances=4)
    assert told in str(error.value)
