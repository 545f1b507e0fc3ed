"""A real S3 server on this machine, moto's, and a bucket of its own for each test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


class Bucket:
    """A bucket as its user sees it: `store` is what the config says of it."""

    def __init__(self, endpoint: str) -> None:
        import s3fs

        self.name = f"bucket-{uuid.uuid4().hex[:8]}"
        self.options = {"endpoint_url": endpoint}
        self.fs = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True, **self.options)
        self.fs.mkdir(self.name)

    @property
    def store(self) -> dict[str, Any]:
        return {"url": f"s3://{self.name}/trainings", "options": self.options}

    def names(self, below: str = "") -> list[str]:
        """Return the keys below the store's address, from there on."""
        start = f"{self.name}/trainings/"
        return sorted(key.removeprefix(start) for key in self.fs.find(f"{start}{below}"))

    def put(self, name: str, content: bytes) -> None:
        """Put an object there by hand."""
        self.fs.pipe_file(f"{self.name}/trainings/{name}", content)

    def changed(self, name: str) -> datetime:
        """Return when an object was written last."""
        return self.fs.info(f"{self.name}/trainings/{name}")["LastModified"]


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return Bucket(s3_server)
