"""FastAPI as it is mostly written: a pydantic body, one session.run per request in a thread of the pool."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.serving.peers.common import score, session, stacked


class Record(BaseModel):
    """One instance."""

    lab: list[float]
    note: list[float]
    code: list[float]


class Body(BaseModel):
    """A request."""

    instances: list[Record]


app = FastAPI()
graph = session()


@app.post("/predict")
def predict(body: Body) -> dict[str, Any]:
    return {"predictions": score(graph, stacked([record.model_dump() for record in body.instances]))}


@app.get("/readyz")
def ready() -> dict[str, Any]:
    return {}
