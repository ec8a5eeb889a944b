"""Refusals as FHIR tells them: OperationOutcome (hl7.org/fhir/R4/operationoutcome.html). No text holds a patient's value."""

from collections.abc import Sequence
from typing import Any

from service.bundle.errors import Problem

Resource = dict[str, Any]
_ISSUE_TYPES = {  # HTTP status to http://hl7.org/fhir/issue-type
    400: "structure",
    401: "login",
    403: "forbidden",
    404: "not-found",
    405: "not-supported",
    412: "incomplete",
    413: "too-long",
    415: "not-supported",
    422: "invalid",
    429: "throttled",
    503: "transient",
    504: "timeout",
}


def operation_outcome(status: int, message: str, problems: Sequence[Problem] = ()) -> Resource:
    """The outcome of a refused request or record: an issue for each place that is wrong, else one for the whole."""
    texts = [str(problem) for problem in problems] or [message]
    code = _ISSUE_TYPES.get(status, "exception")
    issues = [{"severity": "error", "code": code, "details": {"text": message}, "diagnostics": text} for text in texts]
    return {"resourceType": "OperationOutcome", "issue": issues}


def failed_outcome(prediction: dict[str, Any]) -> Resource:
    """The outcome in the place of a record that could not be answered, among others that were."""
    error = prediction["error"]
    problems = [Problem(tuple(place["loc"]), place["type"], place["msg"]) for place in error["detail"]]
    outcome = operation_outcome(422 if error["code"] == "INVALID_INPUT" else 500, error["message"], problems)
    if prediction["id"] is not None:
        for issue in outcome["issue"]:
            issue["details"] = {"text": f"record {prediction['id']}: {error['message']}"}
    return outcome
