"""gRPC: recsys_opt.v1.Predictor/Predict, with the payloads of the binary HTTP interface (predict.proto)."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from recsys_opt.server import wire
from recsys_opt.server.auth import check_token
from recsys_opt.server.grpc_messages import SERVICE, PredictReply, PredictRequest
from recsys_opt.server.refusal import RefusalError
from recsys_opt.server.wire import Answer

if TYPE_CHECKING:
    from recsys_opt.server.service import Service


class GrpcServer:
    """The server's gRPC side, on the same event loop."""

    def __init__(self, service: Service) -> None:
        self._service = service
        limits = service.settings.limits
        self._server: Any = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limits.max_body_bytes),
                ("grpc.max_metadata_size", limits.max_header_bytes),
                ("grpc.max_concurrent_streams", limits.max_connections),
                ("grpc.max_connection_idle_ms", int(1e3 * limits.idle_timeout_s)),
                ("grpc.keepalive_time_ms", int(1e3 * limits.idle_timeout_s)),
                ("grpc.keepalive_timeout_ms", int(1e3 * limits.write_timeout_s)),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=limits.max_connections,
        )
        # The messages are (de)serialised in the handler, where a damaged one can be answered as any other.
        handler = grpc.unary_unary_rpc_method_handler(self._predict)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"Predict": handler}),)
        )

    async def listen(self, host: str, port: int) -> int:
        """Takes calls from now on; returns the port."""
        bound: int = self._server.add_insecure_port(f"{host}:{port}")
        await self._server.start()
        return bound

    async def close(self, within_s: float) -> None:
        """Takes no more calls, and waits for those there are."""
        await self._server.stop(within_s)

    async def _predict(self, request: bytes, context: Any) -> bytes:
        service = self._service
        try:
            metadata = dict(context.invocation_metadata() or ())
            check_token(service.settings.token, metadata.get("authorization"))
            engine = service.engine_for_queries()
            query = wire.decode_query(_payload(request), max_samples=service.settings.limits.max_samples)
            answered: asyncio.Future[Answer | RefusalError] = asyncio.get_running_loop().create_future()
            number = engine.submit(query, functools.partial(_tell, answered))
        except RefusalError as refusal:
            service.count_refusal(refusal)
            await _abort(context, refusal)
        try:
            answer = await answered
        except asyncio.CancelledError:  # by the client, or its deadline
            engine.drop(number)
            raise
        if isinstance(answer, RefusalError):
            await _abort(context, answer)
        reply: bytes = PredictReply(answer=wire.encode_answer(answer)).SerializeToString()
        return reply


def _tell(waiting: asyncio.Future[Answer | RefusalError], answer: Answer | RefusalError) -> None:
    if not waiting.done():  # cancelled a moment ago, which the engine has not heard of yet
        waiting.set_result(answer)


def _payload(request: bytes) -> bytes:
    try:
        query: bytes = PredictRequest.FromString(request).query
    except DecodeError:
        raise RefusalError("bad_request", "the message is no recsys_opt.v1.PredictRequest") from None
    return query


async def _abort(context: Any, refusal: RefusalError) -> NoReturn:
    pause = refusal.retry_after_s
    metadata = () if pause is None else (("retry-after", str(max(1, round(pause)))),)
    await context.abort(
        getattr(grpc.StatusCode, refusal.kind.grpc_status), f"{refusal.code}: {refusal.message}", metadata
    )
    raise AssertionError("abort raises")
