"""What is there to see of an instance: what is asked for, what runs, and why not?"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from headgate import usage
from headgate.controller.fleet import Replica
from headgate.core import replica_life as life
from headgate.core.declared import HttpSettings, code_of
from headgate.core.desired import Backend, Fault, State, state_id
from headgate.core.reports import BackendInfo, Coming, Description, EndpointInfo, ProcessInfo, ReplicaStatus, Waiting
from headgate.engines.base import InstanceSettings, Running
from headgate.router import certificate


def description(
    settings: InstanceSettings,
    http_urls: tuple[str, ...],
    state: State,
    replicas: Iterable[Replica],
    ingresses: Iterable[Running],
    *,
    updating: Iterable[str],
    faults: Mapping[str, Fault],
    waiting: Mapping[str, Waiting],
    resources: tuple[dict[str, float], dict[str, float]],
    node: str,
    now: float,
    admin_address: str = "",
) -> Description:
    """The whole instance at this moment.

    `faults` are those of backends, `waiting` what has no room, `resources` what there is and what is free, `node` where
    this is, if there are several, `admin_address` where commands are taken from afar.
    """
    by_tag: dict[str, list[Replica]] = {}
    processes = [] if node else [_process("supervisor", "supervisor", os.getppid())]
    processes.append(_process("controller", "controller", os.getpid(), node))
    processes += [
        _process("ingress", ingress.id, ingress.pid, ingress.node, is_here=ingress.node == node)
        for ingress in ingresses
        if ingress.pid is not None
    ]
    for replica in replicas:
        by_tag.setdefault(replica.tag, []).append(replica)
        if replica.pid is not None:
            processes.append(_process("replica", replica.id, replica.pid, replica.node, is_here=replica.node == node))
    backends = {
        tag: _backend(backend, by_tag.get(tag, []), updating=tag in updating, fault=faults.get(tag), waiting=waiting.get(tag), now=now)
        for tag, backend in state.backends.items()
    }
    with_traffic = {tag for endpoint in state.endpoints.values() for tag, weight in endpoint.weights.items() if weight > 0}
    return Description(
        name=settings.name,
        http_urls=http_urls,
        backends=backends,
        endpoints={
            name: EndpointInfo(name, endpoint.route, endpoint.methods, endpoint.weights, endpoint.shadows)
            for name, endpoint in state.endpoints.items()
        },
        processes=tuple(processes),
        resources=resources[0],
        free=resources[1],
        waiting=tuple(waiting.values()),
        coming={tag: found for tag, theirs in by_tag.items() if (found := _coming(theirs)).replicas},
        http={name: getattr(settings, name) for name in HttpSettings.__struct_fields__},
        state_id=state_id(state),
        ready=all(any(replica.state == life.READY and replica.shown for replica in by_tag.get(tag, [])) for tag in with_traffic),
        state_dir=settings.state_dir,
        log_dir=settings.log_dir,
        admin_address=admin_address,
        certificate_days=certificate.days_left(settings.ssl_certfile, settings.ssl_keyfile) if settings.ssl_certfile else None,
    )


def _backend(
    backend: Backend, replicas: list[Replica], *, updating: bool, fault: Fault | None, waiting: Waiting | None, now: float
) -> BackendInfo:
    ready = sum(replica.state == life.READY and replica.generation == backend.generation for replica in replicas)
    if updating:
        state = "updating"
    elif ready >= backend.config.num_replicas:
        state, fault = "ready", None
    else:
        state = "unhealthy" if fault is not None else "starting"
    return BackendInfo(
        tag=backend.tag,
        definition=backend.definition.name,
        config=backend.config,
        options=backend.options,
        state=state,
        reason="\n".join([*([waiting.text] if waiting is not None else []), *([fault.text] if fault is not None else [])]),
        replicas=tuple(ReplicaStatus(replica.id, replica.state, replica.pid, replica.gpus, now - replica.since) for replica in replicas),
        methods=tuple(backend.definition.methods),
        code=code_of(backend.definition),
    )


def _coming(replicas: list[Replica]) -> Coming:
    held = [replica for replica in replicas if replica.held and replica.live]
    return Coming(len(held), sum(replica.state == life.READY for replica in held))


def _process(role: str, id: str, pid: int, node: str = "", *, is_here: bool = True) -> ProcessInfo:
    if not is_here:
        return ProcessInfo(role, id, pid, node=node)
    return ProcessInfo(role, id, pid, usage.of(pid).rss_bytes, node)
