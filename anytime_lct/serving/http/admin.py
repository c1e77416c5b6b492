"""The model repository over HTTP: its index for everybody, loading and unloading for those who may."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from anytime_lct.serving.access import KEY_VARIABLE, Access, is_loopback
from anytime_lct.serving.http.body import read_body
from anytime_lct.serving.request import Refusal
from anytime_lct.serving.service import Service
from anytime_lct.serving.v2.json_text import write_json

MAX_BODY = 1 << 16


class Admin:
    """The endpoints of the repository."""

    def __init__(self, service: Service, access: Access) -> None:
        self._service, self._access = service, access

    def routes(self) -> list[Route]:
        """Return the routes of the endpoints."""
        views: dict[str, Callable[..., Any]] = {
            "/v2/repository/index": self.index,
            "/v2/repository/models/{model}/load": self.load,
            "/v2/repository/models/{model}/unload": self.unload,
        }
        return [Route(path, view, methods=["POST"]) for path, view in views.items()]

    async def index(self, request: Request) -> Response:
        """The models by name and version, in service or not, and why not."""
        rows = [
            {
                "name": row.name,
                "version": row.version,
                "state": "READY" if row.is_ready else "UNAVAILABLE",
                "reason": row.reason,
            }
            for row in self._service.repository.index()
        ]
        return Response(write_json(rows), media_type="application/json")

    async def load(self, request: Request) -> Response:
        """Read a model again, in all processes or in none."""
        self._check(request)
        if await self._body(request):
            raise Refusal("Expected no body, or {}, got settings, which the bundle holds itself; leave them out.")
        await self._service.crew.load(request.path_params["model"])
        return Response(b"{}", media_type="application/json")

    async def unload(self, request: Request) -> Response:
        """Take a model out of service, in all processes."""
        self._check(request)
        if await self._body(request) not in ({}, {"parameters": {"unload_dependents": False}}):
            raise Refusal("Expected no body, or {}, got settings that are not supported; leave them out.")
        await self._service.crew.unload(request.path_params["model"])
        return Response(b"{}", media_type="application/json")

    async def _body(self, request: Request) -> object:
        limits = replace(self._service.limits, body=min(MAX_BODY, self._service.limits.body))
        with self._service.allowance.hold() as holding:
            body = await read_body(request.scope, request.receive, limits, holding)
        try:
            return json.loads(body or b"{}")
        except (ValueError, RecursionError):
            raise Refusal("Expected no body, or {}, got other bytes; leave them out.") from None

    def _check(self, request: Request) -> None:
        """Raise Refusal for a client that may not change what is served, and Overloaded while the server starts."""
        self._service.repository.check_open()
        access = self._access
        if access.allow_admin:
            return
        words = request.headers.get("authorization", "").encode("latin-1")
        is_here = request.client is not None and is_loopback(request.client.host)
        if access.key is None or not is_here or not hmac.compare_digest(words, b"Bearer " + access.key.encode()):
            raise Refusal(
                "Expected a client that may load and unload models, got another; start the server with --allow-admin, "
                f"or ask from its own machine with 'Authorization: Bearer' and the key in its {KEY_VARIABLE}.",
                "forbidden",
            )
