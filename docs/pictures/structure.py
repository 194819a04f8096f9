"""What is an instance made of, and which processes and machines is that on?"""

from __future__ import annotations

from docs.pictures.drawing import Box, Picture


def architecture() -> Picture:
    """Who talks to whom: requests from left to right, control from below."""
    picture = Picture(
        "architecture",
        790,
        400,
        "The parts of an instance",
        "Requests go from left to right: HTTP clients to an ingress, Python callers to a handle in their own process. Both hold a "
        "router, which has a link, a socket, to each replica and sends requests there. The controller is below, and not on their "
        "way: it pushes the routing table to every router, has the engine start and stop replicas and ingresses, and keeps what "
        "is asked for in its store. Verbs, such as create_backend, go to the controller.",
    )
    client = picture.box(16, 50, 130, 44, "HTTP clients")
    program = picture.area(16, 160, 300, 96, "any Python process")
    caller = picture.box(30, 192, 104, 48, "your code", kind="yours")
    ingress = picture.area(192, 16, 160, 110, "ingress")
    http = picture.box(206, 44, 60, 66, "HTTP", kind="ours")
    router = picture.box(276, 44, 64, 66, "router", kind="ours")
    handle = picture.box(156, 192, 66, 48, "handle", kind="ours")
    other = picture.box(236, 192, 66, 48, "router", kind="ours")
    picture.arrow(client.right(), (206, client.right()[1]))
    picture.arrow(http.right(), router.left())
    picture.arrow(caller.right(), handle.left())
    picture.arrow(handle.right(), other.left())
    replicas = [_replica(picture, 16 + number * 88, number) for number in range(3)]
    for number, replica in enumerate(replicas):
        picture.line(router.right(0.3 + 0.2 * number), (replica.x + 14, replica.y + 40), kind="ours")
        picture.line(other.right(0.3 + 0.2 * number), (replica.x + 14, replica.y + 56), kind="ours")
    picture.text(436, 36, "links", "quiet", anchor="middle")
    controller = picture.box(276, 326, 160, 52, "controller", "`controller/`", kind="ours")
    engine = picture.box(520, 326, 254, 52, "engine", "local: processes · ray: actors", kind="ours")
    store = picture.box(16, 326, 190, 52, "what is asked for", "SQLite · Ray's store")
    picture.arrow(controller.left(), store.right(), both=True)
    picture.arrow(controller.right(), engine.left(), both=True)
    picture.arrow(engine.top(), (engine.top()[0], replicas[-1].bottom()[1]), dashed=True)
    picture.text(engine.top()[0] + 10, 298, "starts, stops", "quiet")
    picture.arrow((336, controller.y), (336, ingress.bottom()[1]), dashed=True)
    picture.arrow((308, controller.y), (308, 290), (268, 290), (268, program.bottom()[1]), dashed=True)
    picture.text(344, 298, "routing table", "quiet")
    picture.arrow(caller.bottom(), (caller.bottom()[0], 306), (286, 306), (286, controller.y))
    picture.text(caller.bottom()[0] + 8, 294, "verbs", "quiet")
    return picture


def _replica(picture: Picture, y: float, number: int) -> Box:
    replica = picture.area(520, y, 254, 76, f"replica {number + 1}")
    picture.box(534, y + 28, 96, 38, "inbox", kind="ours")
    picture.box(664, y + 28, 96, 38, "your code", kind="yours")
    picture.arrow((630, y + 47), (664, y + 47), both=True)
    return replica


def local_engine() -> Picture:
    """Who is whose parent on one machine."""
    picture = Picture(
        "local-engine",
        790,
        330,
        "The processes of an instance on one machine",
        "The driver, which is your program, starts the supervisor and is watched by it. The supervisor is the parent of the "
        "controller, of the ingresses, whose listening sockets it holds, and of the replicas. It tells the controller of every "
        "end, starts a controller anew that died or is stuck, and ends everything when the driver is gone, unless the instance is "
        "detached.",
    )
    driver = picture.box(280, 16, 230, 48, "driver", "your program: `serve.init()`", kind="yours")
    supervisor = picture.box(240, 116, 310, 52, "supervisor", "holds the sockets, reaps, forks", kind="ours")
    picture.arrow(driver.bottom(0.4), (driver.bottom(0.4)[0], supervisor.y))
    picture.text(driver.bottom(0.4)[0] - 10, 90, "starts", "quiet", anchor="end")
    picture.arrow((driver.bottom(0.6)[0], supervisor.y), driver.bottom(0.6), dashed=True)
    picture.text(driver.bottom(0.6)[0] + 10, 90, "watches", "quiet")
    children = [
        picture.box(16, 240, 150, 60, "controller", "one", kind="ours"),
        picture.box(206, 240, 170, 60, "ingress", "`num_ingresses`", kind="ours"),
        picture.box(416, 240, 170, 60, "replica", "greeter:v1", kind="yours"),
        picture.box(606, 240, 168, 60, "replica", "greeter:v1", kind="yours"),
    ]
    trunk = supervisor.bottom()[0]
    picture.line(supervisor.bottom(), (trunk, 204))
    picture.line((children[0].top()[0], 204), (children[-1].top()[0], 204))
    for child in children:
        picture.arrow((child.top()[0], 204), child.top())
    picture.text(400, 318, "all of them forked, each in a session of its own", "quiet", anchor="middle")
    return picture


def ray_engine() -> Picture:
    """What is on which node of a cluster."""
    picture = Picture(
        "ray-engine",
        790,
        404,
        "An instance on a Ray cluster",
        "On the head node the controller is an actor, which Ray starts again when it dies, and what is asked for is in Ray's own "
        "store. Each node may have an ingress, and replicas, which are actors. Clients reach any ingress; an ingress has links to "
        "replicas of its own node, which it prefers, and to those of others, over TCP. Requests never go through Ray.",
    )
    clients = picture.box(310, 16, 170, 36, "HTTP clients")
    head = picture.area(16, 84, 370, 226, "head node")
    other = picture.area(404, 84, 370, 226, "another node")
    ingresses, replicas = [], []
    for node in (head, other):
        ingress = picture.box(node.x + 16, 112, 150, 48, "ingress", "actor", kind="ours")
        ingresses.append(ingress)
        replicas.append(picture.box(node.x + 204, 112, 150, 48, "replicas", "actors", kind="yours"))
        picture.line(ingress.right(), replicas[-1].left(), kind="ours")
    picture.arrow(clients.left(), (ingresses[0].top(0.8)[0], clients.left()[1]), ingresses[0].top(0.8))
    picture.arrow(clients.right(), (ingresses[1].top(0.8)[0], clients.right()[1]), ingresses[1].top(0.8))
    across = (ingresses[0].bottom(0.7)[0], 200), (replicas[1].bottom()[0], 200)
    picture.line(ingresses[0].bottom(0.7), *across, replicas[1].bottom(), kind="ours", dashed=True)
    picture.text(ingresses[0].bottom(0.7)[0] + 8, 186, "between nodes: TCP, with Ray's TLS", "quiet")
    controller = picture.box(32, 240, 150, 50, "controller", "actor", kind="ours")
    store = picture.box(220, 240, 150, 50, "Ray's store", "what is asked for")
    picture.arrow(controller.right(), store.left(), both=True)
    ray = picture.box(16, 346, 758, 46, "Ray", "places actors, counts what they take, starts the controller again")
    for x in (head.bottom()[0], other.bottom()[0]):
        picture.arrow((x, ray.y), (x, head.bottom()[1]), dashed=True)
    return picture
