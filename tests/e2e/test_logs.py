"""Does every line that user code writes say which request it was for, in a real instance?"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from headgate.logs.entry import Entry, from_json

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
