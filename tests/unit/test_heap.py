"""Freed memory is kept for the next request, unless the user has chosen otherwise."""

import os
import platform
import resource
import subprocess
import sys

import pytest

from headgate import heap

# Three bodies of 10 MB, as of three requests, again and again: how often did the kernel have to give a page?
PROGRAM = """
import ctypes, resource, sys
from headgate import heap

PR_SET_THP_DISABLE = 41
assert ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0  # huge pages would be counted as one

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
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    ran = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, timeout=60, check=True, env=environ)
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library can be told so")
def test_large_bodies_are_received_into_memory_that_was_freed_before() -> None:
    kept, given_back = faults("keep"), faults("leave")
    assert kept < 100
    assert given_back > 20_000 * 4096 // resource.getpagesize()  # else this test shows nothing


def test_what_the_users_variables_say_of_memory_stays() -> None:
    assert not heap.keep_freed({"MALLOC_ARENA_MAX": "2"})
    assert not heap.keep_freed({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1"})
