"""How is a model served, and its next version tried on a tenth of the requests? Two classifiers of handwritten digits.

The handler takes a batch: under load one call of the model answers many requests, and a request that is wrong fails alone.

    $ headgate run examples/digits.py
    $ curl http://127.0.0.1:8000/digits -d '{"pixels": [0,0,5,13,9,1,0,0, 0,0,13,15,10,15,5,0, 0,3,15,2,0,11,8,0, 0,4,12,0,0,8,8,0,
        0,5,8,0,0,9,8,0, 0,4,11,0,1,12,7,0, 0,2,14,5,10,12,0,0, 0,0,6,13,10,0,0,0]}'
    $ headgate traffic digits digits:v1=50% digits:v2=50%

Needs: pip install '.[demo]'. The scans come with scikit-learn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.neighbors import KNeighborsClassifier
from werkzeug.exceptions import BadRequest

from headgate import serve

CONFIG = {"num_replicas": 2, "max_batch_size": 32}


class Digits:
    """A backend: one version of the classifier."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.model.predict_proba(np.zeros((1, 64)))  # what is slow the first time is over before the first request

    @serve.accept_batch
    def __call__(self, requests: list[serve.Request]) -> list[Any]:
        """One answer for each request, in their order; an exception is the answer of its request alone."""
        scans = [read(request) for request in requests]
        good = [scan for scan in scans if isinstance(scan, np.ndarray)]
        answers = iter(self.model.predict_proba(np.array(good)) if good else ())
        return [describe(next(answers)) if isinstance(scan, np.ndarray) else scan for scan in scans]


def read(request: serve.Request) -> np.ndarray | BadRequest:
    """The pixels in a request, or the client's 400."""
    try:
        pixels = np.array(request.get_json(force=True, silent=True)["pixels"], dtype=np.float32)
    except (KeyError, TypeError, ValueError, OverflowError):
        pixels = np.empty(0, dtype=np.float32)
    if pixels.shape != (64,) or not ((pixels >= 0) & (pixels <= 16)).all():
        return BadRequest('the body must be {"pixels": [64 numbers from 0 to 16]}')
    return pixels


def describe(probabilities: np.ndarray) -> dict[str, Any]:
    """The answer about one scan."""
    return {"digit": probabilities.argmax(), "probability": probabilities.max().round(3), "version": serve.context.backend}


if __name__ == "__main__":
    images, labels = load_digits(return_X_y=True)
    half = len(images) // 2
    serve.init()
    for tag, model in {"digits:v1": KNeighborsClassifier(5), "digits:v2": ExtraTreesClassifier(100, random_state=0)}.items():
        serve.create_backend(tag, Digits, model.fit(images[:half], labels[:half]), config=CONFIG)
    serve.create_endpoint("digits", "/digits", methods=["POST"])
    serve.set_traffic("digits", {"digits:v1": 0.9, "digits:v2": 0.1})
