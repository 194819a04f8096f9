"""What do the models of work 12 compute? The same in every contender, from the same JSON, on one thread.

`classifier` is the demo's: logistic regression on 64 pixels, trained at start on half of scikit-learn's scans. `network` is a dense network
of 64-2048-2048-2048-10 units with fixed weights, as an ONNX file would hold it: some milliseconds for one scan, little more for several.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Probabilities = Callable[[NDArray[np.float32]], NDArray[Any]]


class Model:
    """Answers a batch of scans."""

    def __init__(self, work: str) -> None:
        self.probabilities = {"classifier": _classifier, "network": _network}[work]()

    def __call__(self, scans: list[list[float]]) -> list[dict[str, object]]:
        """Of each scan, 64 numbers from 0 to 16: the digit, and the probability of each digit."""
        answers = self.probabilities(np.array(scans, dtype=np.float32))
        return [{"digit": int(row.argmax()), "probabilities": row.round(4).tolist()} for row in answers]


def _classifier() -> Probabilities:
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    images, digits = load_digits(return_X_y=True)
    half = len(images) // 2
    model = LogisticRegression(C=0.01, max_iter=1000).fit(images[:half], digits[:half])

    def probabilities(scans: NDArray[np.float32]) -> NDArray[Any]:
        answers: NDArray[Any] = model.predict_proba(scans)
        return answers

    return probabilities


def _network(widths: tuple[int, ...] = (64, 2048, 2048, 2048, 10)) -> Probabilities:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    chance = np.random.default_rng(0)
    nodes, weights, last = [], [], "scans"
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        values = chance.normal(0, (2 / inputs) ** 0.5, (inputs, outputs)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"weights{layer}"))
        nodes.append(helper.make_node("MatMul", [last, f"weights{layer}"], [f"sums{layer}"]))
        final = outputs == widths[-1]
        nodes.append(helper.make_node("Softmax" if final else "Relu", [f"sums{layer}"], [f"units{layer}"]))
        last = f"units{layer}"
    scans = helper.make_tensor_value_info("scans", TensorProto.FLOAT, ["batch", widths[0]])
    answers = helper.make_tensor_value_info(last, TensorProto.FLOAT, ["batch", widths[-1]])
    graph = helper.make_graph(nodes, "network", [scans], [answers], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def probabilities(batch: NDArray[np.float32]) -> NDArray[Any]:
        result: NDArray[Any] = session.run(None, {"scans": batch})[0]
        return result

    return probabilities
