"""The routes: HTTP in and out."""

import asyncio
import base64
import contextlib
import hmac
import json
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from t5x_lite.serve import metrics, requests
from t5x_lite.serve.answers import Shape
from t5x_lite.serve.requests import Asked, Refused
from t5x_lite.serve.service import Answer, Texts, Vectors
from t5x_lite.serve.settings import ServeConfig

log = logging.getLogger(__name__)
_LOCAL = ("localhost", "127.0.0.1", "[::1]")
_OPEN = ("/", "/health")  # without a key, too


class App:
    """One model's server, as an ASGI application (`asgi`).

    Args:
      name: of the model. page: what a browser gets.
      api_key: what clients must give as "Authorization: Bearer KEY"; None: nothing.
      local: refuse requests whose Host isn't this machine: a page on the web could otherwise, by a
        name that it makes point here, use the model through its reader's browser.
    """

    def __init__(
        self,
        service: Texts | Vectors,
        settings: ServeConfig,
        *,
        name: str,
        page: str,
        api_key: str | None = None,
        local: bool = True,
    ):
        self.service, self.settings, self.name = service, settings, name
        self._page, self._key, self._started = page, api_key, int(time.time())
        self.closing = False
        source = service.engine if isinstance(service, Texts) else service
        self._metrics = metrics.Metrics(lambda: source.waiting, lambda: source.running)
        post: dict[str, Any] = {"methods": ["POST"]}
        routes = [
            Route("/", self._browse),
            Route("/health", self._health),
            Route("/metrics", self._read_metrics),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._models),
            Route("/v1/completions", self._timed(self._complete), **post),
            Route("/v1/chat/completions", self._timed(self._chat), **post),
            Route("/v1/embeddings", self._timed(self._embed), **post),
        ]
        hosts = [Middleware(_LocalHosts)] if local else []
        handlers: Any = {Refused: _refusal, HTTPException: _http_error, Exception: _surprise}
        self.asgi = Starlette(routes=routes, middleware=hosts, exception_handlers=handlers)

    def close(self) -> None:
        """No more requests; those that there are have grace_seconds. Returns at once."""
        self.closing = True
        if isinstance(self.service, Texts):  # in a thread: this is called by a signal's handler
            end = threading.Thread(target=self.service.engine.close, daemon=True,
                                   args=(self.settings.grace_seconds,))  # fmt: skip
            end.start()

    # -- what is small ------------------------------------------------------------------------

    async def _browse(self, request: Request) -> Response:
        return HTMLResponse(self._page)

    async def _health(self, request: Request) -> Response:
        engine = getattr(self.service, "engine", None)
        well = not self.closing and (engine is None or engine.alive)
        state = "ok" if well else "stopping" if self.closing else "failed"
        return JSONResponse({"status": state, "model": self.name}, 200 if well else 503)

    async def _read_metrics(self, request: Request) -> Response:
        self._check_key(request)
        return Response(self._metrics.text(), headers={"content-type": metrics.CONTENT_TYPE})

    async def _models(self, request: Request) -> Response:
        self._check_key(request)
        model = {"id": self.name, "object": "model", "created": self._started,
                 "owned_by": "t5x_lite"}  # fmt: skip
        wanted = request.path_params.get("name")
        if wanted is None:
            return JSONResponse({"object": "list", "data": [model]})
        if wanted != self.name:
            raise Refused(404, f"no model {wanted!r} here, but {self.name!r}", param="model")
        return JSONResponse(model)

    # -- texts and vectors --------------------------------------------------------------------

    async def _complete(self, request: Request) -> Response:
        return await self._texts(request, requests.read_completion, chat=False)

    async def _chat(self, request: Request) -> Response:
        return await self._texts(request, requests.read_chat, chat=True)

    async def _texts(self, request: Request, read: Callable[[dict], Asked], chat: bool) -> Response:
        body = await self._body(request)
        if not isinstance(self.service, Texts):
            raise Refused(400, "this model makes embeddings: POST /v1/embeddings")
        asked = read(body)
        arrived = time.monotonic()
        answer = self.service.prepare(asked)
        self._metrics.tokens.labels("prompt").inc(answer.prompt_tokens)
        shape = Shape(self.service.vocabulary, self.name, chat, asked.log_probs, answer.contexts)
        if asked.stream:
            events = self._events(answer, shape, chat, asked.stream_usage, arrived)
            headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        with answer:
            pieces = await self._unless_gone(request, answer.whole())
            choices = [shape.choice(i, piece, delta=False) for i, piece in enumerate(pieces)]
            self._metrics.tokens.labels("completion").inc(answer.usage["completion_tokens"])
            return JSONResponse(shape.whole(choices, answer.usage))

    async def _events(
        self, answer: Answer, shape: Shape, chat: bool, usage: bool, arrived: float
    ) -> AsyncIterator[str]:
        """Server-sent events; what goes wrong is one, too, as the status was 200."""

        def event(data: Any) -> str:
            return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"

        first = True
        try:
            with answer:
                async with asyncio.timeout(self.settings.request_seconds):
                    if chat:
                        for index in range(answer.size):
                            yield event(shape.chunk([shape.opening(index)]))
                    async for index, piece in answer.pieces():
                        if first and piece.tokens:
                            self._metrics.first_token.observe(time.monotonic() - arrived)
                            first = False
                        if piece.text or piece.finish or shape.wants(piece):
                            yield event(shape.chunk([shape.choice(index, piece, delta=True)]))
                if usage:
                    yield event(shape.chunk([], answer.usage))
                yield "data: [DONE]\n\n"
        except TimeoutError:
            yield event(self._too_long().body)
        except Refused as refused:
            yield event(refused.body)
        finally:
            self._metrics.tokens.labels("completion").inc(answer.usage["completion_tokens"])

    async def _embed(self, request: Request) -> Response:
        body = await self._body(request)
        if not isinstance(self.service, Vectors):
            raise Refused(400, "this model writes texts: POST /v1/completions")
        texts, form = requests.read_embedding(body)
        vectors, count = await self._unless_gone(request, self.service.of(texts))
        self._metrics.tokens.labels("prompt").inc(count)
        data = [
            {"object": "embedding", "index": i, "embedding": _encoded(vector, form)}
            for i, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": count, "total_tokens": count}
        return JSONResponse({"object": "list", "data": data, "model": self.name, "usage": usage})

    # -- limits -------------------------------------------------------------------------------

    def _check_key(self, request: Request) -> None:
        if self._key is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not hmac.compare_digest(given.encode(), self._key.encode()):
            raise Refused(401, "a key is needed: Authorization: Bearer KEY", code="invalid_api_key")

    async def _body(self, request: Request) -> dict[str, Any]:
        self._check_key(request)
        if self.closing:
            raise Refused(503, "the server is stopping")
        # A page of another site can't send this type without being allowed to.
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if kind.lower() != "application/json":
            raise Refused(400, "expected content-type: application/json")
        most, body = self.settings.max_body_bytes, bytearray()
        large = Refused(413, f"a body of more than {most:,} bytes")
        if int(request.headers.get("content-length", 0)) > most:
            raise large
        try:
            async with asyncio.timeout(self.settings.read_seconds):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise large
        except TimeoutError:
            raise Refused(408, "the request took too long to arrive") from None
        return requests.read_json(bytes(body))

    def _too_long(self) -> Refused:
        return Refused(408, f"no answer within {self.settings.request_seconds:g} seconds")

    async def _unless_gone(self, request: Request, work: Awaitable) -> Any:
        """The result of the work, which is given up when its time is over or its client leaves."""

        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
        try:
            done, _ = await asyncio.wait(
                tasks,
                timeout=self.settings.request_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if tasks[0] in done:
                return tasks[0].result()
            if done:
                raise ClientDisconnect
            raise self._too_long()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _timed(self, handle: Callable[[Request], Awaitable[Response]]) -> Callable:
        """Counts a route's answers and their time."""

        async def handler(request: Request) -> Response:
            started, path = time.monotonic(), request.url.path
            try:
                response = await handle(request)
            except ClientDisconnect:
                response = Response(status_code=499)  # nobody reads it; nginx's number for that
            except Refused as refused:
                response = await _refusal(request, refused)

            def done() -> None:
                self._metrics.requests.labels(path, str(response.status_code)).inc()
                self._metrics.seconds.labels(path).observe(time.monotonic() - started)

            if isinstance(response, StreamingResponse):
                response.body_iterator = _then(response.body_iterator, done)
            else:
                done()
            return response

        return handler


class _LocalHosts:
    """Refuses requests for the name of another host."""

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        host = Headers(scope=scope).get("host")
        # HTTP/1.0 knows no Host, and browsers, which are what this is about, don't speak it.
        known = host is None and scope["http_version"] == "1.0"
        if known or re.sub(r":\d*$", "", host or "").lower() in _LOCAL:
            await self._app(scope, receive, send)
            return
        refused = Refused(400, f"this server is for this machine alone, not for host {host!r:.60}")
        await JSONResponse(refused.body, 400)(scope, receive, send)


async def _then(events: Any, done: Callable[[], None]) -> AsyncIterator[str]:
    try:
        async with contextlib.aclosing(events):
            async for event in events:
                yield event
    finally:
        done()


def _encoded(vector: list[float], form: str) -> list[float] | str:
    if form == "float":
        return vector
    return base64.b64encode(np.array(vector, "<f4").tobytes()).decode()


async def _refusal(request: Request, refused: Refused) -> Response:
    headers = {}
    if refused.status in (408, 413):  # there may be more of the request, which nobody wants
        headers["connection"] = "close"
    if refused.status in (429, 503):
        headers["retry-after"] = "1"
    if refused.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(refused.body, refused.status, headers=headers)


async def _http_error(request: Request, error: HTTPException) -> Response:
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(Refused(error.status_code, message).body, error.status_code)


async def _surprise(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse(Refused(500, "the server has failed; its log says why").body, 500)
