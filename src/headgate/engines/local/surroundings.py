"""In which surroundings does a replica's code run: environment variables, working directory, limits of threads?

The supervisor forks replicas from itself; what would act only when a program is executed starts a fresh interpreter instead.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, MutableMapping
from typing import Final

from headgate.engines.base import ReplicaSpec

THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "BLIS_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
"""How many threads the usual numeric libraries start; unset, each replica would start one per CPU."""

_AT_EXEC_PREFIXES: Final = ("LD_", "PYTHON", "MALLOC_", "GLIBC_", "ASAN_", "LSAN_", "TSAN_", "UBSAN_")


def environment(spec: ReplicaSpec, base: Mapping[str, str]) -> dict[str, str]:
    """A replica's environment variables: the definition's (where it has none, `base`), the user's `env_vars`, the devices, the threads."""
    environ = dict(spec.definition.environ or base)
    environ.update(spec.options.runtime_env.get("env_vars", {}))
    if spec.gpus:
        environ["CUDA_VISIBLE_DEVICES"] = ",".join(spec.gpus)
    limit_threads(environ, spec.options.num_cpus)
    return environ


def limit_threads(environ: MutableMapping[str, str], num_cpus: float) -> None:
    """Have the numeric libraries start one thread for each CPU that was asked for, and at least one, unless the user said otherwise."""
    # The others follow OMP_NUM_THREADS where the user set that one alone; it may be a list, one number for each level of nesting.
    threads = environ.get("OMP_NUM_THREADS", "").split(",")[0].strip() or str(max(1, int(num_cpus)))
    for name in THREAD_VARIABLES:
        environ.setdefault(name, threads)


def needs_exec(wanted: Mapping[str, str], own: Mapping[str, str]) -> bool:
    """Whether variables that are read only when a program starts differ from those that this process was started with."""
    return _at_exec(wanted) != _at_exec(own)


def enter(environ: Mapping[str, str], cwd: str) -> None:
    """Put this process into these surroundings. A working directory that is gone is said, and left out."""
    for name in os.environ.keys() - environ.keys():
        del os.environ[name]
    for name, value in environ.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    time.tzset()
    if cwd:
        try:
            os.chdir(cwd)
        except OSError as error:
            print(f"headgate: the driver's working directory {cwd} can't be entered: {error.strerror}", file=sys.stderr)  # noqa: T201  # before logging is set up


def _at_exec(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.startswith(_AT_EXEC_PREFIXES)}
