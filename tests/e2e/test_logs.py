"""Does every line that user code writes say which request it was for, in a real instance?"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from headgate import serve
from headgate.logs.entry import Entry, from_json
from tests.support import wait_until

pytestmark = pytest.mark.local_engine("on a cluster Ray keeps what is written")

SCRIPT = """
import asyncio, logging, os, sys, threading
from concurrent.futures import ThreadPoolExecutor
import requests
from headgate import serve

class Threads:
    def __init__(self):
        self.together = threading.Barrier(4, timeout=30)
    def __call__(self, request):
        id = serve.context.request_id
        print("a", end="")
        self.together.wait()
        print("b", id)
        logging.getLogger("mine").warning("w %s", id)

class Tasks:
    def __init__(self):
        self.came, self.all_here = 0, asyncio.Event()
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    async def __call__(self, request):
        id = serve.context.request_id
        self.came += 1
        print("a", end="")
        if self.came == 4:
            self.all_here.set()
        await self.all_here.wait()
        print("b", id)
        logging.info("w %s", id)

@serve.accept_batch
def batch(request):
    print("ids", *serve.context.request_id)
    return [None] * len(request)

if __name__ == "__main__":
    with serve.init(http_port=0, log_format="json") as instance:
        batches = {"max_batch_size": 4, "batch_wait_timeout": 5.0}
        for tag, code, config in (("threads", Threads, {"concurrency": 4}), ("tasks", Tasks, {}), ("batch", batch, batches)):
            serve.create_backend(tag, code, config=config)
            serve.create_endpoint(f"to {tag}", f"/{tag}", backend=tag)
            with ThreadPoolExecutor(4) as pool:
                for answer in pool.map(requests.get, [f"{instance.http_url}/{tag}"] * 4):
                    answer.raise_for_status()
"""


def test_lines_say_their_request_in_threads_in_tasks_and_in_batches(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(script)], env=environ, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    entries: list[Entry] = []
    for line in (done.stdout + done.stderr).splitlines():
        entry = from_json(line)
        assert entry is not None, line
        entries.append(entry)
    for tag in ("threads", "tasks"):
        of_tag = [entry for entry in entries if entry.backend == tag]
        assert all(entry.endpoint == f"to {tag}" and entry.role == "replica" for entry in of_tag)
        ids = {id for entry in of_tag for id in entry.request_ids}
        assert len(ids) == 4
        said = Counter((entry.request_ids[0], entry.text) for entry in of_tag)
        assert said == Counter((id, text) for id in ids for text in (f"ab {id}", f"w {id}"))
    (batch,) = [entry for entry in entries if entry.backend == "batch"]
    assert len(batch.request_ids) == 4
    assert batch.text == f"ids {' '.join(batch.request_ids)}"
    levels = {(entry.level, entry.logger, entry.stream) for entry in entries if entry.text.startswith("w ")}
    assert levels == {("WARNING", "mine", ""), ("", "", "stderr")}, "what the user has configured goes through stderr as it is"


def unfinished(request: Any) -> str:
    sys.stdout.write("sync")
    return "answer"


async def unfinished_async(request: Any) -> str:
    sys.stdout.write("async")
    await asyncio.sleep(0)
    return "answer"


def unfinished_stream(request: Any) -> Iterator[str]:
    yield "some"
    sys.stdout.write("stream")


@serve.accept_batch
def unfinished_batch(requests: list[Any]) -> list[str]:
    sys.stdout.write("batch")
    return ["answer"] * len(requests)


def unfinished_failing(request: Any) -> str:
    sys.stdout.write("failing")
    raise ValueError("it fails")


@serve.accept_batch
def too_few(requests: list[Any]) -> list[str]:
    return []


def test_the_failure_of_a_batch_is_logged_as_that_of_its_members(tmp_path: Path) -> None:
    with serve.init("failing", http_port=0, log_dir=tmp_path) as instance:
        instance.create_backend("b", too_few)
        instance.create_endpoint("e", "/e", backend="b")
        answer = requests.get(f"{instance.http_url}/e", timeout=10)
        assert answer.status_code == 500

        def said() -> list[Entry]:
            lines = [line for path in tmp_path.glob("replica-*.log") for line in path.read_bytes().splitlines()]
            return [entry for line in lines if (entry := from_json(line)) is not None and entry.level == "ERROR"]

        (entry,) = wait_until(said)
        assert (entry.endpoint, entry.request_ids) == ("e", (answer.headers["X-Request-Id"],))


def test_a_line_without_an_end_comes_out_when_its_call_ends_whatever_the_call_is(tmp_path: Path) -> None:
    handlers = (unfinished, unfinished_async, unfinished_stream, unfinished_batch, unfinished_failing)
    with serve.init("unfinished", http_port=0, log_dir=tmp_path) as instance:
        for handler in handlers:
            instance.create_backend(handler.__name__, handler)
            instance.create_endpoint(handler.__name__, f"/{handler.__name__}", backend=handler.__name__)
            answer = requests.get(f"{instance.http_url}/{handler.__name__}", timeout=10)
            text = handler.__name__.removeprefix("unfinished_").replace("unfinished", "sync")

            def said(text: str = text) -> list[Entry]:
                lines = [line for path in tmp_path.glob("replica-*.log") for line in path.read_bytes().splitlines()]
                return [entry for line in lines if (entry := from_json(line)) is not None and entry.text == text]

            (entry,) = wait_until(said)
            assert entry.request_ids == (answer.headers["X-Request-Id"],)
            assert entry.endpoint == handler.__name__
