"""Does each example do what its first lines say: run as they say, asked as they ask, with answers that are right?"""

from __future__ import annotations

import concurrent.futures
import http.client
import importlib.util
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits

from tests.examples.served import FOLDER, ROOT, Answer, Served, commands, serving
from tests.support import leave_out, wait_until

pytestmark = pytest.mark.local_engine("the examples start instances of this machine")

AT_ONCE = 8
# Training by several threads takes a hundred times as long where others use the CPUs, too.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "said"


def ask_all(served: Served, path: str, bodies: list[Any]) -> list[Answer]:
    """Post them, several at once; the answers in their order."""
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda body: served.ask(path, body), bodies))


def held_out_scans(count: int) -> tuple[list[Any], np.ndarray]:
    """Scans that no example is trained on, as requests, and what digits they are."""
    images, labels = load_digits(return_X_y=True)
    return [{"pixels": image.tolist()} for image in images[-count:]], labels[-count:]


def test_every_example_is_tested_and_told_in_the_readme_of_the_folder():
    names = {path.stem for path in FOLDER.glob("*.py")}
    assert names == {"digits", "tabular", "embeddings", "pytorch", "pipeline", "generator"}
    readme = (FOLDER / "README.md").read_text()
    assert f"$ {commands('digits')[0]}\n" in readme  # so it isn't run for the readme once more
    for name in names:
        assert f"]({name}.py)" in readme
        assert any(command.startswith("curl ") for command in commands(name))


def test_digits_are_recognised_by_two_versions_and_a_wrong_request_fails_alone(log: Path):
    with serving(FOLDER / "digits.py", "/digits", log, **ONE_THREAD) as served:
        scans, labels = held_out_scans(400)
        answers = ask_all(served, "/digits", [*scans, {"pixels": [17] * 64}, {"pixels": "no"}, [], *scans])
        assert [answer.status for answer in answers[400:403]] == [400] * 3
        assert "64 numbers from 0 to 16" in answers[400].body["detail"]
        good = answers[:400] + answers[403:]
        by_version = Counter(answer.body["version"] for answer in good)
        assert by_version["digits:v1"] > by_version["digits:v2"] > 0
        for version in by_version:
            right = [a.body["digit"] == d for a, d in zip(good, [*labels, *labels], strict=True) if a.body["version"] == version]
            assert sum(right) / len(right) > 0.85
        assert served.metric("headgate_batch_size_count") < served.metric("headgate_batch_size_sum")  # some shared one
        answer, _ = served.try_commands()
        assert json.loads(answer)["digit"] == 0
        by_version = Counter(answer.body["version"] for answer in ask_all(served, "/digits", scans))
        assert min(by_version["digits:v1"], by_version["digits:v2"]) > 100  # as the second command has set it


def test_rows_of_a_table_are_forecast_better_than_by_their_mean_and_wrong_ones_are_told_why(log: Path):
    with serving(FOLDER / "tabular.py", "/progression", log, **ONE_THREAD) as served:
        data = load_diabetes(scaled=False)
        names = list(served.ask("/progression", None, X_SERVE_CALL_METHOD="schema").body["properties"])
        rows = [dict(zip(names, map(float, row), strict=True)) for row in data.data[342:]]
        told = served.ask("/progression", [*rows, {**rows[0], "age": "old", "bp": -1}, {}, 5]).body
        forecast = np.array([each["progression"] for each in told[:100]])
        wanted = data.target[342:]
        assert 1 - np.mean((forecast - wanted) ** 2) / np.var(wanted) > 0.35
        assert "age: Input should be a valid number" in told[100]["error"]
        assert "bp: Input should be greater than or equal to 30" in told[100]["error"]
        assert told[101]["error"].count("Field required") == len(names) == 10
        assert told[102]["error"].startswith("row: ")
        assert served.metric("rows_refused_total") == 3
        assert served.ask("/progression", {}).status == 400
        first, schema, _ = served.try_commands()
        assert [list(each) for each in json.loads(first)] == [["progression"], ["error"]]
        assert json.loads(schema)["properties"]["age"]["maximum"] == 120


def test_embeddings_of_texts_alike_are_nearer_than_of_others(log: Path):
    with serving(FOLDER / "embeddings.py", "/v1/embeddings", log) as served:
        alike = [
            ("How do I reset my password?", "I forgot my login and cannot sign in"),
            ("Where is my parcel?", "My package has not arrived yet"),
            ("The cat sits on the mat", "A kitten rests on a rug"),
            ("Stocks fell sharply on Monday", "The market went down at the start of the week"),
        ]
        texts = [text for pair in alike for text in pair]
        whole = served.ask("/v1/embeddings", {"input": texts, "user": "somebody"}).body["data"]
        assert [each["index"] for each in whole] == list(range(8))
        vectors = np.array([each["embedding"] for each in whole])
        assert vectors.shape == (8, 256)
        scores = vectors @ vectors.T - 2 * np.eye(8)
        assert scores.argmax(1).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]  # each is nearest to its own
        singly = ask_all(served, "/v1/embeddings", [{"input": text} for text in texts * 4])
        assert np.allclose([answer.body["data"][0]["embedding"] for answer in singly], np.tile(vectors, (4, 1)), atol=1e-5)
        wrong: Any
        for wrong in ({"input": []}, {"input": ""}, {}, {"input": "text", "model": "another"}):
            assert served.ask("/v1/embeddings", wrong).status == 400
        (told,) = served.try_commands()
        assert len(json.loads(told)["data"]) == 2


@pytest.fixture
def torch() -> Any:
    if importlib.util.find_spec("torch") is None:
        why = "PyTorch isn't installed: `.venv/bin/python -m pip install torch==2.13.0+cpu`, or as pytorch.org says for CPUs"
        leave_out(why, proved_where="CI_HAS_PYTORCH")  # not every index has it, so CI says whether it could be had
    return importlib.import_module("torch")


def test_the_page_on_pytorch_serves_the_weights_in_a_file(torch: Any, log: Path):
    (program,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/how-to/pytorch.md").read_text(), re.MULTILINE | re.DOTALL)
    app = log.with_name("app.py")
    app.write_text(program)
    network = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)).eval()
    torch.save(network.state_dict(), log.with_name("weights.pt"))
    inputs = np.linspace(0, 1, 64).tolist()
    with serving(app, "/classify", log) as served, torch.inference_mode():
        assert np.allclose(served.ask("/classify", {"inputs": inputs}).body, network(torch.tensor(inputs)).softmax(0), atol=1e-5)


@pytest.mark.usefixtures("torch")
def test_a_network_of_pytorch_recognises_digits_with_one_thread_in_each_replica(log: Path):
    with serving(FOLDER / "pytorch.py", "/digits", log) as served:
        scans, labels = held_out_scans(400)
        answers = ask_all(served, "/digits", [*scans, {"pixels": [1]}])
        assert answers.pop().status == 400
        assert np.mean([answer.body["digit"] == digit for answer, digit in zip(answers, labels, strict=True)]) > 0.9
        answer, about = map(json.loads, served.try_commands())
        assert (answer["digit"], about["threads"]) == (0, 1)
        assert about["parameters"] == 9930


def test_a_pipeline_finds_the_passages_that_answer_a_question(log: Path):
    questions = {
        "how do I leave a loop early": "break",
        "what does yield do": "yield",
        "import a module from a package": "import",
        "how are two numbers compared for equality": "comparisons",
        "format a float with two decimals": "formatstrings",
    }
    with serving(FOLDER / "pipeline.py", "/ask", log, **ONE_THREAD) as served:
        paths = [f"/ask?q={question.replace(' ', '+')}" for question in questions] * 4
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            answers = list(pool.map(served.ask, paths))
        for answer in answers:
            found = answer.body["passages"]
            assert questions[answer.body["question"]] in [passage["topic"] for passage in found[:3]]
            assert [passage["score"] for passage in found] == sorted((passage["score"] for passage in found), reverse=True)
        assert served.ask("/ask").status == 400
        assert served.ask("/embed").status == 404  # a stage has no route
        answer, vector = map(json.loads, served.try_commands())
        assert answer["passages"][0]["topic"] == "break"
        assert len(vector) == 200


def test_a_generator_streams_what_it_makes_and_stops_when_the_client_leaves(log: Path):
    with serving(FOLDER / "generator.py", "/generate", log) as served:
        connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=30)
        try:
            texts = []
            for seed in ("1", "1", "2"):
                connection.request("GET", f"/generate?prompt=The+function&tokens=200&seed={seed}")
                response = connection.getresponse()
                assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
                *events, end, rest = response.read().decode().split("\n\n")
                assert (end, rest) == ("event: end\ndata: {}", "")
                texts.append([json.loads(event.removeprefix("data: "))["token"] for event in events])
            assert [len(text) for text in texts] == [200] * 3
            assert texts[0] == texts[1] != texts[2]  # a seed says which
            made = served.metric("generated_tokens_total")
            assert made == 600

            connection.request("GET", "/generate?tokens=1000000")
            response = connection.getresponse()
            assert response.readline()  # a part of the first event: nearly all of the others aren't made yet
        finally:
            connection.close()
            response.close()
        wait_until(lambda: served.metric("abandoned_streams_total") == 1, 30, "the replica knows that nobody reads")
        assert 0 < served.metric("generated_tokens_total") - made < 100_000
        assert served.ask("/generate?tokens=0").status == 400
        stream, _ = served.try_commands()
        assert stream.count("data: {") == 41
