"""As little of a Qdrant server as its clients need to load into it: points are counted and dropped.

    python -m benchmarks.qdrant_sink

So what is measured is the client. The first line on stdout is its URL; GET /_books answers what it counted.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import urllib.request
from typing import Any

import msgspec
from aiohttp import web

__all__ = ["SinkBooks", "read_sink"]


class SinkBooks(msgspec.Struct):
    """Requests that wrote points, and the points; ids that came for the first time."""

    upserts: int
    points: int
    ids: int
    bytes: int


class _Point(msgspec.Struct):
    id: str | int
    vector: msgspec.Raw


class _Points(msgspec.Struct):
    points: list[_Point]


_decode_points = msgspec.json.Decoder(_Points).decode


def read_sink(url: str) -> SinkBooks:
    """The books of a sink in another process."""
    with urllib.request.urlopen(f"{url}/_books") as answer:  # noqa: S310 - our own server
        return msgspec.json.decode(answer.read(), type=SinkBooks)


class Sink:
    def __init__(self) -> None:
        self._collections: dict[str, dict[str, Any]] = {}
        self._ids: set[str | int] = set()
        self._books = SinkBooks(0, 0, 0, 0)

    def application(self) -> web.Application:
        application = web.Application(client_max_size=2**31)
        route = application.router.add_route
        route("GET", "/", self._version)
        route("GET", "/collections", self._list)
        route("GET", "/collections/{name}", self._info)
        route("GET", "/collections/{name}/exists", self._exists)
        route("PUT", "/collections/{name}", self._create)
        route("PUT", "/collections/{name}/points", self._upsert)
        route("GET", "/_books", self._show)
        # Whatever else a client asks for while it prepares is granted.
        route("*", "/{path:.*}", self._grant)
        return application

    async def _version(self, _request: web.Request) -> web.Response:
        return web.json_response({"title": "qdrant - vector search engine", "version": "1.20.0"})

    async def _list(self, _request: web.Request) -> web.Response:
        return _answer({"collections": [{"name": name} for name in self._collections]})

    async def _exists(self, request: web.Request) -> web.Response:
        return _answer({"exists": request.match_info["name"] in self._collections})

    async def _create(self, request: web.Request) -> web.Response:
        self._collections[request.match_info["name"]] = await request.json()
        return _answer(True)

    async def _info(self, request: web.Request) -> web.Response:
        asked = self._collections.get(request.match_info["name"])
        if asked is None:
            message = f"Not found: Collection `{request.match_info['name']}` doesn't exist!"
            return web.json_response({"status": {"error": message}, "time": 0.0}, status=404)
        params = {
            "vectors": asked.get("vectors"),
            "sparse_vectors": asked.get("sparse_vectors"),
            "shard_number": 1,
            "replication_factor": 1,
            "write_consistency_factor": 1,
            "on_disk_payload": True,
        }
        config = {
            "params": params,
            "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
            "optimizer_config": {
                "deleted_threshold": 0.2,
                "vacuum_min_vector_number": 1000,
                "default_segment_number": 0,
                "flush_interval_sec": 5,
            },
            "metadata": asked.get("metadata"),
        }
        info = {
            "status": "green",
            "optimizer_status": "ok",
            "points_count": len(self._ids),
            "indexed_vectors_count": 0,
            "segments_count": 1,
            "config": config,
            "payload_schema": {},
        }
        return _answer(info)

    async def _upsert(self, request: web.Request) -> web.Response:
        body = await request.read()
        ids = [point.id for point in _decode_points(body).points]
        self._ids.update(ids)
        self._books.upserts += 1
        self._books.points += len(ids)
        self._books.ids = len(self._ids)
        self._books.bytes += len(body)
        return _answer({"operation_id": self._books.upserts, "status": "completed"})

    async def _grant(self, request: web.Request) -> web.Response:
        await request.read()
        return _answer({"operation_id": 0, "status": "completed"})

    async def _show(self, _request: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(self._books), content_type="application/json")


def _answer(result: Any) -> web.Response:
    return web.Response(
        body=json.dumps({"result": result, "status": "ok", "time": 0.0}).encode(), content_type="application/json"
    )


async def _serve() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(Sink().application(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    sys.stdout.write(f"http://127.0.0.1:{runner.addresses[0][1]}\n")
    sys.stdout.flush()
    await stop.wait()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(_serve())
