"""How is a PyTorch network served on CPUs? A convolutional one for handwritten digits, trained at start in a few seconds.

Each replica runs PyTorch with as many threads as it books CPUs, one unless told otherwise, so that replicas don't take each other's.
A replica whose network answers with nonsense fails its health check: it never serves, or is replaced.

    $ headgate run examples/pytorch.py
    $ curl http://127.0.0.1:8000/digits -d '{"pixels": [0,0,5,13,9,1,0,0, 0,0,13,15,10,15,5,0, 0,3,15,2,0,11,8,0, 0,4,12,0,0,8,8,0,
        0,5,8,0,0,9,8,0, 0,4,11,0,1,12,7,0, 0,2,14,5,10,12,0,0, 0,0,6,13,10,0,0,0]}'
    $ curl http://127.0.0.1:8000/digits -H 'X-SERVE-CALL-METHOD: about'

Needs: pip install '.[demo]' and torch 2.6 or newer, of which https://pytorch.org/get-started/locally has a build for CPUs alone; the
usual one takes gigabytes. The scans come with scikit-learn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from werkzeug.exceptions import BadRequest

from headgate import serve


def network() -> nn.Module:
    """The network, untrained: from scans, each 1 by 8 by 8, to a score for each digit."""
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(512, 10))


def train(images: np.ndarray, labels: np.ndarray, epochs: int = 25) -> nn.Module:
    """The network, trained."""
    torch.manual_seed(0)
    model, inputs, wanted = network(), as_input(images), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[chosen]), wanted[chosen]).backward()
            optimizer.step()
    return model


def as_input(pixels: Any) -> torch.Tensor:
    """Scans of 64 numbers from 0 to 16 each, as the network takes them."""
    return torch.as_tensor(np.asarray(pixels, dtype=np.float32) / 16).reshape(-1, 1, 8, 8)


class Digits:
    """A backend: the network, ready to answer."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self.model = network()
        self.model.load_state_dict(weights)
        self.model.eval()

    @serve.accept_batch
    @torch.inference_mode()
    def __call__(self, requests: list[serve.Request]) -> list[Any]:
        """One answer for each request, in their order; an exception is the answer of its request alone."""
        scans = [read(request) for request in requests]
        good = [scan for scan in scans if isinstance(scan, np.ndarray)]
        best = iter(zip(*(found.tolist() for found in self.model(as_input(good)).softmax(1).max(1)), strict=True) if good else ())
        return [dict(zip(("probability", "digit"), next(best), strict=True)) if isinstance(scan, np.ndarray) else scan for scan in scans]

    @torch.inference_mode()
    def check_health(self) -> None:
        """Called before the first request, which makes it the warm-up too, and every second between two calls."""
        scores = self.model(as_input(np.zeros((1, 64))))
        if not torch.isfinite(scores).all():
            raise RuntimeError(f"the network's scores of an empty scan are {scores.tolist()}")

    def about(self) -> dict[str, Any]:
        """What runs in this replica."""
        parameters = sum(values.numel() for values in self.model.parameters())
        return {"torch": torch.__version__, "threads": torch.get_num_threads(), "parameters": parameters}


def read(request: serve.Request) -> np.ndarray | BadRequest:
    """The pixels in a request, or the client's 400."""
    try:
        pixels = np.array(request.get_json(force=True, silent=True)["pixels"], dtype=np.float32)
    except (KeyError, TypeError, ValueError, OverflowError):
        pixels = np.empty(0, dtype=np.float32)
    if pixels.shape != (64,) or not ((pixels >= 0) & (pixels <= 16)).all():
        return BadRequest('the body must be {"pixels": [64 numbers from 0 to 16]}')
    return pixels


if __name__ == "__main__":
    images, labels = load_digits(return_X_y=True)
    half = len(images) // 2
    torch.set_num_threads(1)  # so small a network learns faster by one thread than by many
    weights = train(images[:half], labels[:half]).state_dict()
    serve.init()
    # Weights of gigabytes are better a file that the constructor loads: what is given here is kept with the backend.
    serve.create_backend("digits:v1", Digits, weights, config={"num_replicas": 2, "max_batch_size": 64, "http_methods": ["about"]})
    serve.create_endpoint("digits", "/digits", methods=["GET", "POST"], backend="digits:v1")
