"""Qdrant's gRPC services on loopback: the client's own service classes and conversions around `Engine`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import grpc as grpcio
from qdrant_client import grpc, models
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc, grpc_to_payload
from qdrant_client.grpc.collections_service_pb2_grpc import CollectionsServicer, add_CollectionsServicer_to_server
from qdrant_client.grpc.points_service_pb2_grpc import PointsServicer, add_PointsServicer_to_server
from qdrant_client.grpc.qdrant_pb2_grpc import QdrantServicer, add_QdrantServicer_to_server

from tests.servers.qdrant_engine import RefusedError

if TYPE_CHECKING:
    from tests.servers.qdrant_server import Desk

__all__ = ["serve"]

T = TypeVar("T")
Context = Any

# Qdrant's own mapping of its errors.
CODES = {
    400: grpcio.StatusCode.INVALID_ARGUMENT,
    401: grpcio.StatusCode.UNAUTHENTICATED,
    403: grpcio.StatusCode.PERMISSION_DENIED,
    404: grpcio.StatusCode.NOT_FOUND,
    408: grpcio.StatusCode.DEADLINE_EXCEEDED,
    409: grpcio.StatusCode.ALREADY_EXISTS,
    413: grpcio.StatusCode.OUT_OF_RANGE,
    422: grpcio.StatusCode.INVALID_ARGUMENT,
    429: grpcio.StatusCode.RESOURCE_EXHAUSTED,
    503: grpcio.StatusCode.UNAVAILABLE,
    504: grpcio.StatusCode.DEADLINE_EXCEEDED,
}


def serve(desk: Desk) -> tuple[grpcio.Server, int]:
    """A started server, and its port."""
    server = grpcio.server(
        ThreadPoolExecutor(16, "qdrant-grpc"),
        options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
    )
    add_PointsServicer_to_server(_Points(desk), server)  # type: ignore[no-untyped-call]  # generated
    add_CollectionsServicer_to_server(_Collections(desk), server)  # type: ignore[no-untyped-call]
    add_QdrantServicer_to_server(_Root(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


def _answer(
    desk: Desk, context: Context, endpoint: str, work: Callable[[], T], ids: Sequence[str] = (), size: int = 0
) -> T:
    """Do the work, unless a fault comes first; end the call with a status if it cannot be done."""
    where = f"grpc {endpoint}"
    metadata = dict(context.invocation_metadata())
    fault = None
    desk.books.received(where)
    try:
        desk.check_key(metadata.get("api-key"))
        fault = desk.fault(endpoint, ids)
        if fault is not None and fault.delay and not desk.loses(fault):
            time.sleep(fault.delay)
        desk.refuse(fault)
        result = work()
        if endpoint == "upsert":
            desk.books.applied(len(ids), size)
    except RefusedError as error:
        code = CODES.get(error.status, grpcio.StatusCode.INTERNAL)
        if error.retry_after is not None:
            context.set_trailing_metadata((("retry-after", str(error.retry_after)),))
        desk.books.answered(where, code.name, fault)
        context.abort(code, error.message)
    if fault is not None and desk.loses(fault):
        time.sleep(fault.delay)
        desk.books.answered(where, "lost", fault)
        context.abort(grpcio.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
    desk.books.answered(where, "OK", fault)
    return result


class _Root(QdrantServicer):
    def HealthCheck(self, request: Any, context: Context) -> Any:  # noqa: N802  # as the service says
        return grpc.HealthCheckReply(title="qdrant - vector search engine", version="1.20.0")


class _Collections(CollectionsServicer):
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def Get(self, request: Any, context: Context) -> Any:  # noqa: N802  # as the service says
        info = _answer(
            self._desk, context, "get_collection", lambda: self._desk.engine.info(request.collection_name)
        )
        return grpc.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(info))

    def List(self, request: Any, context: Context) -> Any:  # noqa: N802
        names = _answer(self._desk, context, "list_collections", self._desk.engine.names)
        return grpc.ListCollectionsResponse(collections=[grpc.CollectionDescription(name=name) for name in names])

    def CollectionExists(self, request: Any, context: Context) -> Any:  # noqa: N802
        exists = _answer(self._desk, context, "exists", lambda: self._desk.engine.exists(request.collection_name))
        return grpc.CollectionExistsResponse(result=grpc.CollectionExists(exists=exists))

    def Create(self, request: Any, context: Context) -> Any:  # noqa: N802
        def work() -> None:
            self._desk.engine.create(request.collection_name, self._desk.filtered(_creation(request)))

        _answer(self._desk, context, "create_collection", work)
        return grpc.CollectionOperationResponse(result=True)

    def Update(self, request: Any, context: Context) -> Any:  # noqa: N802
        def work() -> None:
            change = GrpcToRest.convert_update_collection(request)
            self._desk.engine.change(request.collection_name, self._desk.filtered(change))

        _answer(self._desk, context, "update_collection", work)
        return grpc.CollectionOperationResponse(result=True)

    def Delete(self, request: Any, context: Context) -> Any:  # noqa: N802
        gone = _answer(
            self._desk, context, "delete_collection", lambda: self._desk.engine.drop(request.collection_name)
        )
        return grpc.CollectionOperationResponse(result=gone)


class _Points(PointsServicer):
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def Upsert(self, request: Any, context: Context) -> Any:  # noqa: N802
        def work() -> None:
            points = [GrpcToRest.convert_point_struct(point) for point in request.points]
            self._desk.engine.upsert(request.collection_name, points)

        ids = [point.id.uuid for point in request.points]
        _answer(self._desk, context, "upsert", work, ids, request.ByteSize())
        return self._done(request.wait)

    def Delete(self, request: Any, context: Context) -> Any:  # noqa: N802
        ids = [GrpcToRest.convert_point_id(point) for point in request.points.points.ids]
        _answer(self._desk, context, "delete", lambda: self._desk.engine.delete(request.collection_name, ids))
        return self._done(request.wait)

    def _done(self, wait: bool) -> Any:
        status: Any = RestToGrpc.convert_update_stats(models.UpdateStatus(self._desk.status(wait=wait)))
        return grpc.PointsOperationResponse(result=grpc.UpdateResult(operation_id=1, status=status))

    def CreateFieldIndex(self, request: Any, context: Context) -> Any:  # noqa: N802
        kind = models.PayloadSchemaType(grpc.FieldType.Name(request.field_type).removeprefix("FieldType").lower())
        index = models.CreateFieldIndex(field_name=request.field_name, field_schema=kind)
        _answer(self._desk, context, "index", lambda: self._desk.engine.index(request.collection_name, index))
        return self._done(request.wait)

    def Get(self, request: Any, context: Context) -> Any:  # noqa: N802
        wanted = models.PointRequest(
            ids=[GrpcToRest.convert_point_id(point) for point in request.ids],
            with_payload=GrpcToRest.convert_with_payload_selector(request.with_payload),
            with_vector=GrpcToRest.convert_with_vectors_selector(request.with_vectors),
        )
        found = _answer(
            self._desk, context, "get", lambda: self._desk.engine.retrieve(request.collection_name, wanted)
        )
        return grpc.GetResponse(result=[RestToGrpc.convert_record(record) for record in found])

    def Scroll(self, request: Any, context: Context) -> Any:  # noqa: N802
        wanted = models.ScrollRequest(
            offset=GrpcToRest.convert_point_id(request.offset) if request.HasField("offset") else None,
            limit=request.limit,
            filter=GrpcToRest.convert_filter(request.filter) if request.HasField("filter") else None,
            with_payload=GrpcToRest.convert_with_payload_selector(request.with_payload),
            with_vector=GrpcToRest.convert_with_vectors_selector(request.with_vectors),
        )
        page = _answer(
            self._desk, context, "scroll", lambda: self._desk.engine.scroll(request.collection_name, wanted)
        )
        following = page.next_page_offset
        return grpc.ScrollResponse(
            result=[RestToGrpc.convert_record(record) for record in page.points],
            next_page_offset=None if following is None else RestToGrpc.convert_extended_point_id(following),
        )

    def Count(self, request: Any, context: Context) -> Any:  # noqa: N802
        wanted = models.CountRequest(
            exact=True, filter=GrpcToRest.convert_filter(request.filter) if request.HasField("filter") else None
        )
        count = _answer(
            self._desk, context, "count", lambda: self._desk.engine.count(request.collection_name, wanted)
        )
        return grpc.CountResponse(result=grpc.CountResult(count=count))

    def Query(self, request: Any, context: Context) -> Any:  # noqa: N802
        wanted = GrpcToRest.convert_query_points(request)
        found = _answer(
            self._desk, context, "query", lambda: self._desk.engine.query(request.collection_name, wanted)
        )
        return grpc.QueryResponse(result=[RestToGrpc.convert_scored_point(point) for point in found])


def _creation(request: Any) -> models.CreateCollection:
    def given(name: str, convert: Callable[[Any], Any]) -> Any:
        return convert(getattr(request, name)) if request.HasField(name) else None

    return models.CreateCollection(
        vectors=given("vectors_config", GrpcToRest.convert_vectors_config),
        sparse_vectors=given("sparse_vectors_config", GrpcToRest.convert_sparse_vector_config),
        hnsw_config=given("hnsw_config", GrpcToRest.convert_hnsw_config_diff),
        optimizers_config=given("optimizers_config", GrpcToRest.convert_optimizers_config_diff),
        quantization_config=given("quantization_config", GrpcToRest.convert_quantization_config),
        strict_mode_config=given("strict_mode_config", GrpcToRest.convert_strict_mode_config),
        metadata=grpc_to_payload(request.metadata) or None,
    )
