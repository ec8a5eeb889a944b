"""docs/http.md says what the service does."""

from pathlib import Path

import pytest

from tests.service.http_reference import TARGET, make_reference


@pytest.mark.slow
def test_the_reference_is_what_the_service_answers(tmp_path: Path) -> None:
    """Every route of /docs.json has an example, which a real service answers as printed."""
    assert TARGET.read_text() == make_reference(tmp_path)
