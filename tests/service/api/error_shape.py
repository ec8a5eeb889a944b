"""The one shape of every error, checked in one place."""

from typing import Any

import httpx


def assert_error(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check that `response` is an error of this status and code, in the documented shape; answers its body."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body: dict[str, Any] = response.json()
    assert list(body) == ["error", "code", "detail", "request_id"]
    assert isinstance(body["error"], str)
    assert body["error"]
    assert "\n" not in body["error"]
    assert body["code"] == code
    assert body["request_id"] == response.headers["x-request-id"]
    for place in body["detail"]:
        assert list(place) == ["loc", "type", "msg"]
        assert all(isinstance(step, str | int) for step in place["loc"])
        assert isinstance(place["type"], str)
        assert isinstance(place["msg"], str)
    assert ("retry-after" in response.headers) == (status in {429, 503})
    return body
