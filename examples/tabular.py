"""How are rows of a table checked and answered, each by itself? A forecast of how diabetes goes on, for many patients at once.

A request brings all its rows together, so the model gets them in one call without a batch handler. What is wrong with a row is said
in its place, and counted; the others are answered.

    $ headgate run examples/tabular.py
    $ curl http://127.0.0.1:8000/progression -d '[
        {"age": 59, "sex": 2, "bmi": 32.1, "bp": 101, "tc": 157, "ldl": 93.2, "hdl": 38, "tch": 4, "ltg": 4.8598, "glu": 87},
        {"age": 590, "sex": 2, "bmi": 32.1, "bp": 101, "tc": 157, "ldl": 93.2, "hdl": 38, "tch": 4, "ltg": 4.8598, "glu": 87}]'
    $ curl http://127.0.0.1:8000/progression -H 'X-SERVE-CALL-METHOD: schema'
    $ curl http://127.0.0.1:8000/-/metrics | grep rows_refused

Needs: pip install '.[examples]'. The data, of 442 patients, come with scikit-learn.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError
from sklearn.datasets import load_diabetes
from sklearn.ensemble import GradientBoostingRegressor
from werkzeug.exceptions import BadRequest

from headgate import serve

MOST_ROWS = 1000
ROWS_REFUSED = serve.metrics.Counter("rows_refused", "Rows that were not as the schema says.")

Level = Annotated[float, Field(gt=0)]


class Patient(BaseModel, extra="forbid"):
    """A row: what was measured when treatment began."""

    age: float = Field(ge=0, le=120, description="years")
    sex: Literal[1, 2]
    bmi: float = Field(ge=10, le=80, description="body mass index")
    bp: float = Field(ge=30, le=250, description="mean blood pressure")
    tc: Level
    ldl: Level
    hdl: Level
    tch: Level
    ltg: Level
    glu: Level


class Progression:
    """A backend: tells how far the disease will be after a year, as a score from about 25 to 350."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, request: serve.Request) -> list[dict[str, Any]]:
        """For each row `{"progression": score}` or `{"error": why}`, in their order."""
        given = request.get_json(force=True)  # whatever content type curl says; what isn't JSON is the client's 400
        if not isinstance(given, list) or not 0 < len(given) <= MOST_ROWS:
            raise BadRequest(f"the body must be a list of 1 to {MOST_ROWS} rows")
        rows = [read(row) for row in given]
        good = [list(row.model_dump().values()) for row in rows if isinstance(row, Patient)]
        ROWS_REFUSED.inc(len(rows) - len(good))
        scores = iter(self.model.predict(np.array(good)) if good else ())
        return [{"progression": next(scores).round(1)} if isinstance(row, Patient) else {"error": row} for row in rows]

    def schema(self) -> dict[str, Any]:
        """What a row must be, as a JSON schema."""
        return Patient.model_json_schema()


def read(row: Any) -> Patient | str:
    """The row, checked; or all that is wrong with it."""
    try:
        return Patient.model_validate(row)
    except ValidationError as error:
        return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'row'}: {each['msg']}" for each in error.errors())


if __name__ == "__main__":
    measured, progression = load_diabetes(return_X_y=True, scaled=False)
    fitted = GradientBoostingRegressor(n_estimators=100, max_depth=2, learning_rate=0.05, random_state=0)
    fitted.fit(measured[:342], progression[:342])
    serve.init()
    serve.create_backend("progression:v1", Progression, fitted, config={"http_methods": ["schema"]})
    serve.create_endpoint("progression", "/progression", methods=["GET", "POST"], backend="progression:v1")
