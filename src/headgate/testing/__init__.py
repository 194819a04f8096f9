"""For tests, yours as well as Headgate's: an engine without processes, and what every engine must keep to.

`FakeEngine` runs replicas that exist only as records, and fails as it is told. `conformance` holds the checks that the fake,
the local and every other engine pass. `ControlServer` takes replicas' control connections for an engine, without a controller.
"""

from headgate.testing.control import ControlServer
from headgate.testing.fake import FakeEngine

__all__ = ["ControlServer", "FakeEngine"]
