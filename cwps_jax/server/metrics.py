"""The server's metrics for Prometheus."""

import functools
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

ENDPOINTS = frozenset(
    {
        "/",
        "/docs",
        "/health",
        "/metrics",
        "/openapi.json",
        "/ready",
        "/v1/load_task",
        "/v1/predict",
        "/v1/reload",
        "/v1/tasks",
        "/v1/unload_task",
    }
)
PLACES = ("device", "host", "disk")


class Metrics:
    """Counts of one server, in a registry of its own.

    Attributes:
        held: the bytes of all bodies that are in memory now.
    """

    def __init__(self) -> None:
        self.registry, self.held = CollectorRegistry(), 0
        self._requests = Counter(
            "cwps_requests", "Requests by their answer", ("endpoint", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "cwps_request_seconds",
            "From a request's head to the end of its answer",
            ("endpoint",),
            registry=self.registry,
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
        )
        self._batches = Histogram(
            "cwps_batch_answers",
            "Answers computed in one call",
            registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
        )
        self._computing = Histogram(
            "cwps_batch_seconds", "Time of one call of the bank", registry=self.registry
        )

    def request(self, path: str, status: int, seconds: float) -> None:
        """Counts a request; paths without an endpoint share one label, since clients choose them."""
        endpoint = path if path in ENDPOINTS else "other"
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def batch(self, answers: int, seconds: float) -> None:
        """Counts a call of the bank."""
        self._batches.observe(answers)
        self._computing.observe(seconds)

    def watch(
        self, queue: Callable[[], float], tasks: Callable[[], float], resident: Callable[[str], float]
    ) -> None:
        """Adds gauges that call these functions whenever they are read.

        Args:
            queue: returns the number of answers that wait.
            tasks: returns the number of loaded tasks.
            resident: returns the bytes at a place: "device", "host" or "disk".
        """
        waiting = Gauge("cwps_queue_answers", "Answers that wait to be computed", registry=self.registry)
        waiting.set_function(queue)
        bodies = Gauge("cwps_held_bytes", "Bytes of all bodies in memory", registry=self.registry)
        bodies.set_function(lambda: self.held)
        Gauge("cwps_tasks", "Tasks that are loaded", registry=self.registry).set_function(tasks)
        held = Gauge("cwps_resident_bytes", "Bytes of the tasks", ("where",), registry=self.registry)
        for place in PLACES:
            held.labels(place).set_function(functools.partial(resident, place))

    def text(self) -> bytes:
        """Returns all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)
