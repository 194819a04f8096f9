"""Does the access log have one entry for each request, whatever became of it?"""

from __future__ import annotations

import http.client
import time
from collections import Counter
from pathlib import Path

import pytest
import requests

from headgate import serve
from headgate.logs.entry import Entry
from headgate.logs.reading import Folder
from tests.support import wait_until

pytestmark = pytest.mark.local_engine("it reads the files of one machine")


def echo(request: serve.Request) -> object:
    if "slow" in request.args:
        time.sleep(0.5)
    if "fails" in request.args:
        raise ValueError("no")
    if "stream" in request.args:
        return (part for part in ("one", "two"))
    return request.data


def test_every_request_is_in_it_once_with_what_became_of_it(tmp_path: Path) -> None:
    with serve.init("access", http_port=0, access_log=True, log_dir=tmp_path) as instance:
        instance.create_backend("echo:v1", echo)
        instance.create_endpoint("echo", "/echo", ("GET", "POST"), backend="echo:v1")
        url = instance.http_url
        with requests.Session() as session:
            ids = [session.post(f"{url}/echo", data=b"x" * size).headers["X-Request-Id"] for size in (3, 3, 100_000)]
            fails = session.get(f"{url}/echo?fails=1")
            assert session.get(f"{url}/echo?stream=1").text == "onetwo"
            session.head(f"{url}/nowhere?q=1&sig=secret")
            session.put(f"{url}/echo", headers={"X-Request-Id": "mine"})
            session.get(f"{url}/-/healthz")
        port = int(url.rpartition(":")[2])
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        client.request("GET", "/echo?slow=1")
        wait_until(lambda: any(queue.in_flight for queue in instance.stat().counters.queues))
        client.close()
        broken = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        broken.putrequest("GET", "/echo", skip_host=True)
        broken.endheaders()
        assert broken.getresponse().status == 400
        broken.close()

        folder = Folder(str(tmp_path))
        found: list[Entry] = []

        def all_there() -> bool:
            found.extend(entry for entry in folder.read() if entry.http is not None)
            return len(found) >= 10

        wait_until(all_there)
        folder.close()
    facts = Counter((entry.http.method, entry.http.target, entry.http.status) for entry in found if entry.http)
    assert facts == Counter(
        {
            ("POST", "/echo", 200): 3,
            ("GET", "/echo?fails=1", 500): 1,
            ("GET", "/echo?stream=1", 200): 1,
            ("HEAD", "/nowhere?q=1&sig=REDACTED", 404): 1,
            ("PUT", "/echo", 405): 1,
            ("GET", "/-/healthz", 200): 1,
            ("GET", "/echo?slow=1", 499): 1,  # its client has left
            ("", "", 400): 1,  # its head could not be read
        }
    )
    assert not [path for path in tmp_path.iterdir() if "secret" in path.read_text()]
    sent = Counter((entry.http.target, entry.http.sent_bytes) for entry in found if entry.http and entry.http.method in ("GET", "HEAD"))
    expected = {"/echo?stream=1": 6, "/echo?fails=1": len(fails.content), "/nowhere?q=1&sig=REDACTED": 0, "/echo?slow=1": 0}
    assert sent >= Counter(expected.items())
    assert sorted(entry.http.sent_bytes for entry in found if entry.http and entry.http.method == "POST") == [3, 3, 100_000]
    posts = [entry for entry in found if entry.http and entry.http.method == "POST"]
    assert sorted(entry.request_ids[0] for entry in posts) == sorted(ids)
    assert {(entry.endpoint, entry.backend, entry.role, entry.logger) for entry in posts} == {
        ("echo", "echo:v1", "ingress", "headgate.access")
    }
    assert all(entry.http and entry.http.client == "127.0.0.1" and 0 <= entry.http.duration_s < 10 for entry in posts)
    assert [entry.request_ids for entry in found if entry.http and entry.http.method == "PUT"] == [("mine",)]
