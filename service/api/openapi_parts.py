"""What the parts of /docs.json are made of."""

from collections.abc import Sequence
from typing import Any

from service.api.errors import ApiError

Document = dict[str, Any]
REF = "#/components/schemas/{model}"


def ref(name: str) -> Document:
    """A schema of the document by name."""
    return {"$ref": REF.format(model=name)}


def json_content(schema: Document) -> Document:
    """A body of JSON."""
    return {"application/json": {"schema": schema}}


def response(description: str, content: Document) -> Document:
    """One response."""
    return {"description": description, "content": content}


def operation(summary: str, content: Document, *errors: type[ApiError]) -> Document:
    """What takes no body and succeeds with `content`."""
    return {"summary": summary, "responses": {"200": response(summary, content), **error_responses(errors)}}


def error_responses(kinds: Sequence[type[ApiError]]) -> Document:
    """The responses of these errors; those that share a status are described together."""
    responses: Document = {}
    for kind in kinds:
        told = responses.setdefault(str(kind.status), response("", json_content(ref("ErrorResponse"))))
        told["description"] += f"`{kind.code}`: {kind.__doc__} "
        if kind.retry_after_s is not None:
            told["headers"] = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}}
    return responses
