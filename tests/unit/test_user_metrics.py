"""Do metrics of the user's own count, refuse what can't be told, and stay bounded?"""

from __future__ import annotations

import logging
import pickle
import threading

import cloudpickle
import pytest
from prometheus_client.parser import text_string_to_metric_families

from headgate import serve
from headgate.core.messages import RoutingTable
from headgate.core.reports import Counters, Measurement, ReplicaReport, Series, UserMetric
from headgate.errors import InvalidTypeError, InvalidValueError
from headgate.ingress.metrics import page
from headgate.replica import metrics


@pytest.fixture(autouse=True)
def no_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_families", {})


def told(name: str) -> dict[tuple[str, ...], tuple[float, ...]]:
    (found,) = [metric for metric in metrics.told() if metric.name == name]
    return {series.labels: series.values for series in found.series}


def test_a_counter_grows_by_what_is_said_for_each_set_of_labels() -> None:
    pixels = serve.metrics.Counter("pixels_total", "Pixels seen.", ["model"])
    pixels.labels(model="small").inc()
    pixels.labels(model="small").inc(2.5)
    pixels.labels(model=3).inc()
    assert told("pixels") == {("small",): (3.5,), ("3",): (1.0,)}
    with pytest.raises(InvalidValueError, match="can't be made smaller"):
        pixels.labels(model="small").inc(-1)
    with pytest.raises(InvalidValueError, match=r"count by .labels\(model=…\)"):
        pixels.inc()


def test_a_gauge_goes_up_and_down() -> None:
    cached = serve.metrics.Gauge("cached")
    cached.set(5)
    cached.inc()
    cached.dec(2)
    assert told("cached") == {(): (4.0,)}


def test_a_histogram_counts_a_value_at_the_lowest_bound_that_is_no_less() -> None:
    sizes = serve.metrics.Histogram("sizes", buckets=(1, 2, float("inf")))
    for value in (0.5, 1, 1.5, 2, 7):
        sizes.observe(value)
    assert told("sizes") == {(): (2.0, 2.0, 1.0, 12.0)}


def test_the_same_name_and_arguments_are_the_same_metric_and_others_are_refused() -> None:
    serve.metrics.Counter("same", labelnames=("a",)).labels(a=1).inc()
    serve.metrics.Counter("same_total", labelnames=("a",)).labels(a=1).inc()
    assert told("same") == {("1",): (2.0,)}
    for other in (lambda: serve.metrics.Gauge("same", labelnames=("a",)), lambda: serve.metrics.Counter("same")):
        with pytest.raises(InvalidValueError, match="there is a metric 'same' already, a counter"):
            other()


@pytest.mark.parametrize("dump", [pickle.dumps, cloudpickle.dumps])
def test_a_metric_goes_along_with_the_code_that_uses_it(dump, monkeypatch: pytest.MonkeyPatch) -> None:
    counter, histogram = serve.metrics.Counter("c", "said", ("a",)), serve.metrics.Histogram("h", buckets=(1, 2))
    one = counter.labels(a="x")
    one.inc()
    data = dump((counter, one, histogram))
    monkeypatch.setattr(metrics, "_families", {})  # another process
    counter, one, histogram = pickle.loads(data)
    one.inc()
    counter.labels(a="x").inc()
    histogram.observe(1)
    assert told("c") == {("x",): (2.0,)}
    assert told("h") == {(): (1.0, 0.0, 0.0, 1.0)}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: serve.metrics.Counter("no spaces"), "can't be the name of a metric"),
        (lambda: serve.metrics.Counter("headgate_x"), "Headgate's"),
        (lambda: serve.metrics.Counter("x", labelnames=("backend",)), "is added to every metric"),
        (lambda: serve.metrics.Counter("x", labelnames=("le",)), "can't be the name of a label"),
        (lambda: serve.metrics.Counter("x", labelnames=("a", "a")), "named twice"),
        (lambda: serve.metrics.Counter("x", labelnames="model"), r"did you mean \('model',\)"),
        (lambda: serve.metrics.Counter(7), "must be a string"),  # type: ignore[arg-type]
        (lambda: serve.metrics.Histogram("x", buckets=(2, 1)), "bounds that grow"),
        (lambda: serve.metrics.Histogram("x", buckets=()), "bounds that grow"),
        (lambda: serve.metrics.Gauge("x").set("high"), "counts numbers"),  # type: ignore[arg-type]
        (lambda: serve.metrics.Gauge("x", labelnames=("a",)).labels(b=1), "has the labels a, got b"),
    ],
)
def test_what_cannot_be_told_is_refused_with_what_to_do(make, said: str) -> None:
    with pytest.raises((InvalidValueError, InvalidTypeError), match=said):
        make()


def test_beyond_1000_sets_of_labels_nothing_is_kept_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    users = serve.metrics.Counter("users", labelnames=("user",))
    with caplog.at_level(logging.WARNING):
        for number in range(1100):
            users.labels(user=number).inc()
    assert len(told("users")) == 1000
    assert [record.getMessage()[:40] for record in caplog.records] == ["metric 'users': 1000 sets of labels are "]
    users.labels(user=0).inc()
    assert told("users")[("0",)] == (2.0,)


def test_all_metrics_of_a_process_together_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MOST_SERIES_IN_ALL", 30)
    for name in range(50):
        serve.metrics.Gauge(f"gauge_{name}").set(1)
    assert sum(len(metric.series) for metric in metrics.told()) == 30


def test_threads_lose_no_count() -> None:
    counter = serve.metrics.Counter("together")

    def count() -> None:
        for _ in range(2000):
            counter.inc()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told("together") == {(): (8000.0,)}


def test_labels_that_utf8_cannot_say_are_told_all_the_same() -> None:
    serve.metrics.Counter("odd", labelnames=("a",)).labels(a="\ud800").inc()
    assert list(told("odd")) == [("\\ud800",)]


def test_the_page_has_them_by_backend_and_replica_and_of_two_kinds_of_one_name_the_first() -> None:
    counter = UserMetric("counter", "seen", "Seen.", ("a",), (Series(('x"',), (2.0,)),))
    histogram = UserMetric("histogram", "took", "", (), (Series((), (1.0, 2.0, 0.5)),), (0.1,))
    gauge = UserMetric("gauge", "seen", "", (), (Series((), (7.0,)),))
    replicas = (ReplicaReport("r2", "v2", (gauge,)), ReplicaReport("r1", "v1", (counter, histogram)))
    text = page(Measurement(Counters(), replicas=replicas), RoutingTable(1)).body.decode()
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.startswith("headgate_")
    }
    of_replica = (("backend", "v1"), ("replica", "r1"))
    assert found == {
        ("seen_total", ("a", 'x"'), *of_replica): 2,
        ("took_bucket", ("backend", "v1"), ("le", "0.1"), ("replica", "r1")): 1,
        ("took_bucket", ("backend", "v1"), ("le", "+Inf"), ("replica", "r1")): 3,
        ("took_count", *of_replica): 3,
        ("took_sum", *of_replica): 0.5,
    }
