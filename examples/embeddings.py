"""How is a model of text served so that many callers share its calls? Embeddings, in the shape that OpenAI's clients know.

A request has one text or several. The handler puts the texts of all requests of a batch together, embeds them in one call, and gives each
request its own.

    $ headgate run examples/embeddings.py
    $ curl http://127.0.0.1:8000/v1/embeddings -d '{"input": ["How do I reset my password?", "I forgot my login"]}'

Needs: pip install '.[examples]'. The model, 16 MB, is in the package wordllama, and nothing is downloaded when it is loaded.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import wordllama
from pydantic import BaseModel, Field, ValidationError
from werkzeug.exceptions import BadRequest

from headgate import serve

MODEL = "wordllama-l2-supercat-256"

Text = Annotated[str, Field(min_length=1, max_length=20_000)]


class Asked(BaseModel):
    """What a client sends. Further fields of OpenAI's, such as `user`, are ignored."""

    input: Text | Annotated[list[Text], Field(min_length=1, max_length=256)]
    model: str = MODEL

    def texts(self) -> list[str]:
        """One text or several, as a list."""
        return [self.input] if isinstance(self.input, str) else self.input


class Embedder:
    """A backend: unit vectors of 256 numbers, whose scalar product says how alike two texts are."""

    def __init__(self) -> None:
        package = Path(wordllama.__file__).parent  # where it keeps the weights and the tokenizer that it ships
        self.model = wordllama.WordLlama.load(cache_dir=package, disable_download=True)
        self.model.embed(["warm up"])

    @serve.accept_batch
    def __call__(self, requests: list[serve.Request]) -> list[Any]:
        """One answer for each request, in their order; an exception is the answer of its request alone."""
        asked = [read(request) for request in requests]
        texts = [text for each in asked if isinstance(each, Asked) for text in each.texts()]
        vectors = iter(self.model.embed(texts, norm=True) if texts else ())
        return [answer(islice(vectors, len(each.texts()))) if isinstance(each, Asked) else each for each in asked]


def read(request: serve.Request) -> Asked | BadRequest:
    """What a request asks for, or the client's 400."""
    try:
        asked = Asked.model_validate_json(request.data)
    except ValidationError as error:
        return BadRequest(str(error))
    return asked if asked.model == MODEL else BadRequest(f"there is no model {asked.model!r} here, but {MODEL!r}")


def answer(vectors: Any) -> dict[str, Any]:
    """The vectors as OpenAI's clients read them; NumPy arrays become lists of numbers."""
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    return {"object": "list", "model": MODEL, "data": data}


if __name__ == "__main__":
    serve.init()
    serve.create_backend("embeddings:v1", Embedder, config={"num_replicas": 2, "max_batch_size": 64})
    serve.create_endpoint("embeddings", "/v1/embeddings", methods=["POST"], backend="embeddings:v1")
