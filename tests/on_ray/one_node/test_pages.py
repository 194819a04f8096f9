"""Does what pages show of a cluster happen on one?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import pytest

import headgate
from headgate import serve
from tests import ray_cluster
from tests.docs.pages import PYTHON, blocks
from tests.docs.test_pages import ON_RAY, type_along

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize("page", ON_RAY, ids=lambda page: page.stem)
@pytest.mark.timeout(300)
def test_what_a_page_shows_of_a_cluster_that_it_starts_is_what_happens(page: Path) -> None:
    """Apart from other clusters of this machine, whose processes `ray stop` would end, too."""
    with tempfile.TemporaryDirectory(prefix="hg-ray-", dir="/tmp") as folder:  # short, for the sockets in it
        type_along(
            page,
            spaces=("--pid", "--fork", "--mount-proc"),
            RAY_TMPDIR=folder,
            RAY_USAGE_STATS_ENABLED="0",
        )


@pytest.mark.usefixtures("cluster_of_one")
def test_the_programs_of_the_page_on_clusters_start_an_instance_that_stays_and_end_it(tmp_path: Path) -> None:
    import ray

    starts, ends = (block.text for block in blocks(DOCS / "how-to/ray-cluster.md") if block.language in PYTHON)
    # On this machine alone, at a port that is free, and with no more processes than are needed to see it.
    for said, here in (('"0.0.0.0"', '"127.0.0.1", http_port=0'), ('"num_replicas": 8', '"num_replicas": 1')):
        assert said in starts
        starts = starts.replace(said, here)
    environ = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONPATH": str(Path(headgate.__file__).parents[1])}

    def said_by(text: str) -> str:
        program = tmp_path / "app.py"
        program.write_text(text)
        return subprocess.check_output([sys.executable, program], env=environ, text=True, timeout=120)

    try:
        (url,) = re.findall(r"^http://\S+$", said_by(starts), re.MULTILINE)
        with urllib.request.urlopen(f"{url}/hello?name=Ada", timeout=10) as answer:
            assert answer.read() == b'{"hello":"Ada"}'
    finally:
        said_by(ends)
    assert serve.list_instances(engine="ray") == []
    assert ray_cluster.actors() == []
