"""What is wrong or slow with an instance and its machine, and what helps? Pure: judged by records alone."""

from __future__ import annotations

from collections import Counter

import msgspec

from headgate.core.reports import NO_REPLICA, SHED, BackendInfo, Description, Measurement
from headgate.errors import CALLER_LEFT

PROBLEM = "problem"
WARNING = "warning"

_FEW_DESCRIPTORS = 4096
_LITTLE_MEMORY = 0.1
_LITTLE_DISK = 0.05
_RESTARTS_PER_REPLICA = 3
_SHED_SHARE = 0.01
_LEFT_SHARE = 0.1
"""Some callers always leave, of streams above all."""
_LONG_S = 60.0
_FEW_DAYS = 14.0
_OLDEST_KERNEL = (5, 3)
"""The first that has pidfd_open, by which processes see each other's end."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that isn't as it should be."""

    level: str  # PROBLEM: requests suffer from it; WARNING: they may
    subject: str
    what: str
    do: str


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What a look at the machine found; None where it couldn't be found out, or doesn't apply."""

    open_files_limit: int | None = None
    memory_bytes: int | None = None
    memory_available_bytes: int | None = None
    state_dir: str | None = None
    disk_bytes: int | None = None
    disk_free_bytes: int | None = None
    python: tuple[int, int] = (3, 11)
    kernel: tuple[int, int] | None = None
    stale_folders: tuple[str, ...] = ()


def missing(name: str, address: str | None, why: str) -> Finding:
    """That no instance of that name runs, or none at that address of another machine."""
    if address is not None:
        return Finding(PROBLEM, f"instance at {address}", why, "headgate status, on its own machine")
    return Finding(PROBLEM, f"instance {name}", why, "headgate start, or --name with that of another one")


def of_instance(description: Description, measured: Measurement) -> list[Finding]:
    """What its own reports show."""
    found: list[Finding] = []
    for backend in description.backends.values():
        found += _of_backend(backend, measured)
    for waiting in description.waiting:
        found.append(
            Finding(
                PROBLEM,
                f"backend {waiting.backend}",
                waiting.text,
                "free resources (headgate scale another backend down), ask for less, or add machines",
            )
        )
    with_backend = {name: endpoint for name, endpoint in description.endpoints.items() if any(endpoint.traffic.values())}
    for name in description.endpoints.keys() - with_backend.keys():
        found.append(Finding(WARNING, f"endpoint {name}", "it has no traffic, so requests get 503", f"headgate traffic {name} TAG=1"))
    used = {tag for endpoint in description.endpoints.values() for tag in (*endpoint.traffic, *endpoint.shadows)}
    for tag in description.backends.keys() - used:
        do = f"headgate traffic ENDPOINT {tag}=1, or headgate delete backend {tag}"
        found.append(Finding(WARNING, f"backend {tag}", "no endpoint sends requests to it", do))
    for url in description.http_urls:
        if not _is_private(url):
            found.append(
                Finding(
                    WARNING,
                    "address",
                    f"whoever reaches {url} can call every endpoint; there is no password",
                    "listen on 127.0.0.1 and let a proxy pass on what is meant for others, or see that a firewall is before it",
                )
            )
    found += _of_certificate(description.certificate_days)
    return found


def _of_certificate(days: float | None) -> list[Finding]:
    if days is None or days > _FEW_DAYS:
        return []
    what = f"it expires in {days:.0f} days" if days else "what is on disk of it can't be used, or not any more"
    do = "renew the files of ssl_certfile and ssl_keyfile, which are read again without a restart"
    return [Finding(WARNING if days else PROBLEM, "certificate", what, do)]


def _of_backend(backend: BackendInfo, measured: Measurement) -> list[Finding]:
    subject, found = f"backend {backend.tag}", []
    if backend.state == "unhealthy":
        why = backend.reason.strip() or "its replicas don't run"
        found.append(
            Finding(PROBLEM, subject, f"it has fewer replicas than it should:\n{why}", "mend what the traceback says, then update_backend")
        )
    starts, deaths = measured.replica_starts.get(backend.tag, 0), measured.replica_deaths.get(backend.tag, 0)
    if deaths >= _RESTARTS_PER_REPLICA * backend.config.num_replicas:
        found.append(
            Finding(
                WARNING,
                subject,
                f"its replicas have died {deaths} times, of {starts} starts",
                "look into the log for what they die of: memory (dmesg shows what the kernel killed), or calls longer than request_timeout",
            )
        )
    slow = [replica for replica in backend.replicas if replica.state != "ready" and replica.since_s > _LONG_S]
    for replica in slow:
        what = f"its replica {replica.id} (pid {replica.pid}) has been {replica.state} for {replica.since_s:.0f} s"
        found.append(Finding(WARNING, subject, what, f"see what it does: py-spy dump --pid {replica.pid}"))
    counts = [count for count in measured.counters.requests if count.backend == backend.tag]
    total = sum(count.count for count in counts)
    for status, what, do in (
        (503, *_refused(backend.tag, measured)),
        (504, "ran out of time", f"headgate scale {backend.tag} MORE, or raise its request_timeout"),
        (502, "were lost with a replica that died", "mark the backend idempotent where its code may run twice, and see why replicas die"),
        (500, "failed in its code", f"see why: headgate logs --backend {backend.tag}"),
    ):
        count = sum(each.count for each in counts if each.status == status)
        if count and count >= total * _SHED_SHARE:
            level = PROBLEM if status in (500, 502) else WARNING
            found.append(Finding(level, subject, f"{count} of {total} requests {what} ({status})", do))
    left = sum(each.count for each in counts if each.status == CALLER_LEFT)
    if left and left >= total * _LEFT_SHARE:
        what = f"{left} of {total} requests were given up by their callers before they were answered (499)"
        do = f"see whether it is too slow for them: headgate bench; then headgate scale {backend.tag} MORE, or batch"
        found.append(Finding(WARNING, subject, what, do))
    depth = sum(depth.queued for depth in measured.counters.queues if depth.backend == backend.tag)
    if depth * 2 >= backend.config.max_queued_queries:
        found.append(
            Finding(
                WARNING,
                subject,
                f"{depth} requests wait for it; at {backend.config.max_queued_queries} in one router they are refused",
                f"headgate scale {backend.tag} MORE",
            )
        )
    return found


def _refused(tag: str, measured: Measurement) -> tuple[str, str]:
    """Why requests were refused, the most frequent reason first, and what helps against that."""
    reasons: Counter[str] = Counter()
    for event in measured.counters.events:
        if event.event == SHED and event.backend == tag:
            reasons[event.reason] += event.count
    ordered = [reason for reason, _ in reasons.most_common()]
    what = f"were refused: {', '.join(ordered)}" if ordered else "were refused"
    if ordered[:1] == [NO_REPLICA]:
        return what, f"see why its replicas die, or don't start: headgate backends {tag}, headgate logs --backend {tag}"
    return what, f"headgate scale {tag} MORE, or batch"


def of_machine(machine: Machine) -> list[Finding]:
    """What the machine lacks."""
    found: list[Finding] = []
    if machine.open_files_limit is not None and machine.open_files_limit < _FEW_DESCRIPTORS:
        what = f"a process may have {machine.open_files_limit} open files, and each connection is one"
        found.append(Finding(WARNING, "open files", what, "ulimit -n 65536 before it starts, or LimitNOFILE=65536 in its systemd unit"))
    if machine.memory_bytes and machine.memory_available_bytes is not None:
        share = machine.memory_available_bytes / machine.memory_bytes
        if share < _LITTLE_MEMORY:
            what = f"{share:.0%} of memory is available; the kernel kills processes when there is none"
            found.append(Finding(PROBLEM, "memory", what, "scale backends down, or use a machine with more"))
    if machine.disk_bytes and machine.disk_free_bytes is not None and machine.disk_free_bytes < machine.disk_bytes * _LITTLE_DISK:
        share = 1 - machine.disk_free_bytes / machine.disk_bytes
        what = f"the disk of {machine.state_dir} is {share:.0%} full; when it is full, changes are refused"
        found.append(Finding(WARNING, "disk", what, "make room there"))
    if machine.kernel is not None and machine.kernel < _OLDEST_KERNEL:
        what = f"kernel {machine.kernel[0]}.{machine.kernel[1]} is older than {_OLDEST_KERNEL[0]}.{_OLDEST_KERNEL[1]}"
        found.append(Finding(PROBLEM, "kernel", f"{what}, and has no pidfd", "use a newer one"))
    if machine.python < (3, 11):
        found.append(Finding(PROBLEM, "Python", f"{machine.python[0]}.{machine.python[1]} is too old", "use 3.11 or newer"))
    for folder in machine.stale_folders:
        what = f"{folder} is what an instance left that was killed"
        found.append(Finding(WARNING, "runtime folder", what, "the next start removes it; or remove it"))
    return found


def _is_private(url: str) -> bool:
    from ipaddress import ip_address
    from urllib.parse import urlsplit

    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
