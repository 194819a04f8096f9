"""How does text reach a client while it is made, and how does the work stop when the client leaves? A small language model that streams.

It learns from Python's documentation which word follows which two, and writes on from a prompt. Each word is sent as a server-sent event
when it is there. Where nobody listens any more the generator is closed, and what it does in `finally` is done.

    $ headgate run examples/generator.py
    $ curl --no-buffer 'http://127.0.0.1:8000/generate?prompt=The+function&tokens=40&seed=1'
    $ curl http://127.0.0.1:8000/-/metrics | grep -E 'generated|abandoned'

In a browser: new EventSource("/generate?prompt=The").onmessage = event => console.log(JSON.parse(event.data).token).
Needs nothing else: the text comes with Python.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from pydoc_data.topics import topics

from werkzeug.exceptions import BadRequest

from headgate import serve

GENERATED = serve.metrics.Counter("generated_tokens", "Tokens that were made.")
ABANDONED = serve.metrics.Counter("abandoned_streams", "Streams whose client left before the end.")


class Model:
    """Which words follow which: after up to two words, each as often as in the text."""

    def __init__(self, text: str) -> None:
        words = text.split()
        self.following: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for at, word in enumerate(words):
            for length in range(min(at, 2) + 1):
                self.following[tuple(words[at - length : at])].append(word)

    def write(self, prompt: str, chance: random.Random) -> Iterator[str]:
        """Word after word, for as long as somebody asks."""
        context = tuple(prompt.split()[-2:])
        while True:
            while context not in self.following:
                context = context[1:]  # such words never met: forget the first
            word = chance.choice(self.following[context])
            yield word
            context = (*context, word)[-2:]


class Writer:
    """A backend: learns when it starts."""

    def __init__(self) -> None:
        self.model = Model("\n".join(text for _, text in sorted(topics.items())))

    async def __call__(self, request: serve.Request) -> serve.Response:
        """`?prompt=text&tokens=50&seed=number`: a stream of events. Asynchronous, so that a replica has many streams at once."""
        tokens = request.args.get("tokens", 50, type=int)
        if not 1 <= tokens <= 1_000_000:
            raise BadRequest(f"tokens must be 1 to 1000000, got {tokens}")
        chance = random.Random(request.args.get("seed"))
        return serve.Response(self.events(request.args.get("prompt", ""), tokens, chance), media_type="text/event-stream")

    def events(self, prompt: str, tokens: int, chance: random.Random) -> Iterator[str]:
        """The stream. Headgate asks for the next event only where the client takes it, and lets other requests run between two."""
        made = 0
        try:
            for word in self.model.write(prompt, chance):
                yield f"data: {json.dumps({'token': word})}\n\n"
                made += 1
                if made == tokens:
                    break
            yield "event: end\ndata: {}\n\n"
        finally:  # also when the client has left
            GENERATED.inc(made)
            ABANDONED.inc(made < tokens)


if __name__ == "__main__":
    serve.init()
    serve.create_backend("writer:v1", Writer)
    serve.create_endpoint("writer", "/generate", backend="writer:v1")
