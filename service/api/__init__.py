"""The HTTP service: `I2MOE_BUNDLE=BUNDLE bentoml serve service.api:I2MoEService`.

Knows HTTP, BentoML and Prometheus; what a record, a bundle and an explanation are is `service.bundle`'s business.
Only `service` knows BentoML; the rest is a Starlette application that runs under any ASGI server.

    settings    I2MOE_* variables                 service     the BentoML class
    app         the routes                        middleware  request ids, one error shape, durations
    requests    body -> instances                 predict     instances -> response
    batcher     many requests -> one batch        runtime     loads the model, says whether it is ready
    models      the wire format                   openapi     /docs.json
    errors      one tree, one shape               metrics     /metrics          logs   the log lines
    page        GET / and service/static          model_card  GET /model-card, as JSON and as a page (model_card_page),
                                                              by source_attributes with card_figures
    audit       keeps what is answered            outcomes    what became of it, and its figures
    access      who may call what                 openapi_access  tells it in /docs.json
    tracing     spans of a request, if asked for  negotiation plain JSON or FHIR
    predictions instances -> predictions          loading     from a folder to a model, and again when there is another
    shadow      a second model, silently, by      comparing, in threads of background
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.api.service import I2MoEService

__all__ = ["I2MoEService"]


def __getattr__(name: str) -> Any:
    """The service when it is asked for: `service.clinical.routes` needs parts of this package before there is one."""
    if name == "I2MoEService":
        from service.api.service import I2MoEService

        return I2MoEService
    raise AttributeError(f"module {__name__} has no attribute {name}")
