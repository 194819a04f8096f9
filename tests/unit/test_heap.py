"""Freed memory is kept for the next request, unless the user has chosen otherwise."""

import platform
import subprocess
import sys

import pytest

from headgate.router import heap

# Three bodies of 10 MB, as of three requests, again and again: how often did the kernel have to give a page?
PROGRAM = """
import resource, sys
from headgate.router import heap

if sys.argv[1] == "keep":
    assert heap.keep_freed({})

def bodies():
    return [b"x" * 10_000_000 for _ in range(3)]

bodies()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    bodies()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    ran = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, timeout=60, check=True)
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library can be told so")
def test_large_bodies_are_received_into_memory_that_was_freed_before() -> None:
    kept, given_back = faults("keep"), faults("leave")
    assert kept < 100
    assert given_back > 20_000  # else this test shows nothing


def test_what_the_users_variables_say_of_memory_stays() -> None:
    assert not heap.keep_freed({"MALLOC_ARENA_MAX": "2"})
    assert not heap.keep_freed({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1"})
