"""In which surroundings does a replica's code run on a node of the cluster?

Ray makes them: the node's environment variables, and what the `runtime_env` adds or replaces. What the driver's machine has
beyond that may not be there, so of its surroundings only those go along that can do no harm on another machine.
"""

from __future__ import annotations

import os
import sys
from typing import Final

import msgspec
import ray

from headgate.core.specs import Definition, ReplicaSpec
from headgate.engines.local.surroundings import limit_threads
from headgate.router.admin import TOKEN_VARIABLE

_CODE: Final = frozenset(("working_dir", "py_modules", "py_executable", "pip", "uv", "conda", "container", "image_uri"))
"""What of a `runtime_env` says where code comes from."""


def enter(spec: ReplicaSpec) -> Definition:
    """Put this process into them, before any of the user's code is imported; returns the definition as it is to be opened here.

    Variables of the `runtime_env` are set already; none of the driver's are. The driver's folders are looked for here, too: as
    the working directory, unless the `runtime_env` has one; and for imports, before the node's own ones, or after them where
    the `runtime_env` says where code comes from.
    """
    if TOKEN_VARIABLE not in spec.options.runtime_env.get("env_vars", {}):
        os.environ.pop(TOKEN_VARIABLE, None)  # a cluster that the driver has started has its variables
    limit_threads(os.environ, spec.options.num_cpus)
    runtime_env = ray.get_runtime_context().runtime_env  # the job's, and the replica's own
    if spec.definition.cwd and "working_dir" not in runtime_env and os.path.isdir(spec.definition.cwd):
        os.chdir(spec.definition.cwd)
    theirs = tuple(entry for entry in spec.definition.sys_path if os.path.exists(entry))
    if _CODE & runtime_env.keys():
        own = tuple(entry for entry in sys.path if entry)
        theirs = (*own, *(entry for entry in theirs if entry not in own))
    return msgspec.structs.replace(spec.definition, sys_path=theirs)
