"""What a request asked for, as metrics, traces and the log of requests name it: few words, and none of a patient's."""

RELOAD_ROUTE = "/admin/reload"
EVALUATE_ROUTE = "/fhir/RiskAssessment/$evaluate"
ROUTES = frozenset(
    {"/predict", "/outcomes", "/model", "/model-card", "/explanations", "/metrics", "/docs.json", "/livez", "/readyz", "/healthz"}
    | {"/", EVALUATE_ROUTE, RELOAD_ROUTE}
)
STATIC_ROUTE = "/static"  # every file of the page
PREDICTIONS_ROUTE = "/predictions"  # whatever the request
PROTOCOL_ROUTE, INFER_ROUTE = "/v2", "/v2/infer"  # the Open Inference Protocol, whose paths hold names and versions
CDS_ROUTES = ("/cds-services", "/cds-services/{id}", "/cds-services/{id}/feedback")
OTHER_ROUTE = "other"
SCORING_ROUTES = frozenset({"/predict", INFER_ROUTE, EVALUATE_ROUTE, CDS_ROUTES[1]})  # by POST


def route_label(path: str) -> str:
    """The path if it is one of ours; every other path shares one label, or a port scan would fill the memory."""
    if path in ROUTES:
        return path
    if path == "/v2" or path.startswith("/v2/"):
        return INFER_ROUTE if path.endswith("/infer") else PROTOCOL_ROUTE
    for route in (STATIC_ROUTE, PREDICTIONS_ROUTE):
        if path.startswith(f"{route}/"):
            return route
    return _cds_label(path) if path.startswith(CDS_ROUTES[0]) else OTHER_ROUTE


def _cds_label(path: str) -> str:
    """Paths of CDS Hooks by their form, since they hold names."""
    _, first, *rest = path.split("/")
    if f"/{first}" != CDS_ROUTES[0]:
        return OTHER_ROUTE
    return CDS_ROUTES[len(rest)] if len(rest) < 2 or rest[1:] == ["feedback"] else OTHER_ROUTE
