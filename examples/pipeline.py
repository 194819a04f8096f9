"""How do models call each other? A search by meaning in Python's own documentation: a question, its embedding, the passages nearest to it.

Each stage is a backend with replicas and batches of its own, reached by handles. Stages have no route: only the front is on HTTP. The front
is asynchronous, so that one replica of it waits for many questions at once, which then share batches in both stages.

    $ headgate run examples/pipeline.py
    $ curl 'http://127.0.0.1:8000/ask?q=how+do+I+leave+a+loop+early'
    $ headgate call embed 'how do I leave a loop early'

Needs: pip install '.[demo]'. The text comes with Python, and the model of it is made at start.
"""

from __future__ import annotations

from pydoc_data.topics import topics
from typing import Any, NamedTuple

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

from headgate import serve


class Passage(NamedTuple):
    """A paragraph of the documentation."""

    topic: str
    text: str


class Embedder:
    """The first stage: unit vectors of texts."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @serve.accept_batch
    def __call__(self, texts: list[str]) -> np.ndarray:
        """A row for each text."""
        return np.asarray(self.model.transform(texts), dtype=np.float32)


class Index:
    """The second stage: the passages whose vectors are nearest."""

    def __init__(self, passages: list[Passage], vectors: np.ndarray) -> None:
        self.passages = passages
        self.vectors = vectors

    @serve.accept_batch
    def __call__(self, vectors: list[np.ndarray]) -> list[list[dict[str, Any]]]:
        """The ten nearest to each vector, the best first: one product of matrices for the whole batch."""
        scores = np.array(vectors) @ self.vectors.T
        return [[self.describe(at, row[at]) for at in order[:10]] for order, row in zip(np.argsort(-scores), scores, strict=True)]

    def describe(self, at: int, score: float) -> dict[str, Any]:
        """A passage as the client gets it."""
        return {**self.passages[at]._asdict(), "score": float(score)}


class Ask:
    """The front: what HTTP clients reach."""

    def __init__(self) -> None:
        self.embed = serve.get_handle("embed")
        self.search = serve.get_handle("search")

    async def __call__(self, request: serve.Request) -> dict[str, Any]:
        """`?q=question`; a request without it is the client's 400."""
        question = request.args["q"]
        vector = await self.embed.remote(question)
        return {"question": question, "passages": await self.search.remote(vector)}


def read_documentation() -> list[Passage]:
    """Its paragraphs, each once, of at least a sentence."""
    found = {" ".join(paragraph.split()): topic for topic, text in sorted(topics.items()) for paragraph in text.split("\n\n")}
    return [Passage(topic, text) for text, topic in found.items() if len(text) >= 80]


if __name__ == "__main__":
    passages = read_documentation()
    model = make_pipeline(TfidfVectorizer(stop_words="english", sublinear_tf=True), TruncatedSVD(200, random_state=0), Normalizer())
    vectors = model.fit_transform([passage.text for passage in passages]).astype(np.float32)
    serve.init()
    serve.create_backend("embed:v1", Embedder, model, config={"num_replicas": 2, "max_batch_size": 32})
    serve.create_endpoint("embed", backend="embed:v1")
    serve.create_backend("search:v1", Index, passages, vectors, config={"max_batch_size": 64})
    serve.create_endpoint("search", backend="search:v1")
    serve.create_backend("ask:v1", Ask)
    serve.create_endpoint("ask", "/ask", backend="ask:v1")
