"""Figures of a running server, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from clipcls.serve.service import Service

#: The media type of `Figures.text`.
TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Figures:
    """Counts requests and pictures."""

    def __init__(self, service: Service) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "clipcls_requests", "Requests that were answered.", ["path", "status"], registry=registry
        )
        self._seconds = Histogram(
            "clipcls_request_seconds", "Seconds from a request's head to its answer.", ["path"], registry=registry
        )
        self._pictures = Counter("clipcls_pictures", "Pictures in requests.", registry=registry)
        self._failed = Counter("clipcls_failed_pictures", "Pictures that couldn't be read.", registry=registry)
        sizes = Histogram(
            "clipcls_batch_pictures",
            "Pictures that the model computed at once.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=registry,
        )
        service.batch_sizes = sizes.observe
        waiting = Gauge("clipcls_waiting_pictures", "Pictures that haven't been answered.", registry=registry)
        waiting.set_function(lambda: service.waiting)
        ready = Gauge("clipcls_ready", "Whether the model is loaded.", registry=registry)
        ready.set_function(lambda: service.is_ready)

    def add(self, path: str, status: int, seconds: float, pictures: int, failed: int) -> None:
        """Count an answered request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)
        self._pictures.inc(pictures)
        self._failed.inc(failed)

    def text(self) -> bytes:
        """Return all figures in Prometheus's text format."""
        return generate_latest(self._registry)
