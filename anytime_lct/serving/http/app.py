"""The server as an ASGI app: the paths of the V2 protocol, metrics, and a page to try it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from anytime_lct.errors import LCTError
from anytime_lct.exits.budget import DEFAULT_ASK, Ask
from anytime_lct.serving.access import CLOSED, Access
from anytime_lct.serving.http.admin import Admin
from anytime_lct.serving.http.body import Receive, Scope
from anytime_lct.serving.http.infer import Infer, Send, refusal, send_refusal
from anytime_lct.serving.limits import DEFAULT_LIMITS, Limits
from anytime_lct.serving.metrics import CONTENT_TYPE, Metrics
from anytime_lct.serving.repository import Model, Repository
from anytime_lct.serving.service import Service
from anytime_lct.serving.v2 import openapi, protocol
from anytime_lct.serving.v2.json_text import write_json

INFER = re.compile("/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer")
PAGE = Path(__file__).with_name("page")
# The page loads nothing from other hosts, and may not be shown in a frame.
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
}


def build(
    bundle: Path | str,
    *,
    threads: int = 1,
    limits: Limits = DEFAULT_LIMITS,
    default: Ask = DEFAULT_ASK,
    metrics: Metrics | None = None,
    access: Access = CLOSED,
) -> Starlette:
    """Return the app for a bundle, or a folder of them, with its own engine, which ends with the app.

    It may be mounted into another app. `threads` threads compute answers; `default` fills in what a request leaves out;
    `access` says who may load and unload models. Host, Origin and request ids are left to the other app. Raises
    BundleError.

    >>> app = build("bundles", threads=2)  # then: uvicorn.run(app)  # doctest: +SKIP
    """
    from anytime_lct.serving.engine.engine import Engine
    from anytime_lct.serving.engine.job import ServedBundle

    repository = Repository(Path(bundle), ServedBundle)
    repository.start(repository.prepare())
    service = Service(repository, Engine(threads), metrics or Metrics(), limits, default)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await service.close()

    return create_app(service, access=access, lifespan=lifespan)


def create_app(service: Service, *, access: Access = CLOSED, lifespan: Any = None) -> Starlette:
    """Return the app of a service, which the caller closes; `access` says who may load and unload models."""
    infer, views = Infer(service), Views(service, access)

    def get(path: str, view: Callable[..., Any]) -> Route:
        return Route(path, view, methods=["GET"])

    def post(path: str, view: Callable[..., Any]) -> Route:
        return Route(path, view, methods=["POST"])

    routes = [
        post("/v2/models/{model}/infer", infer),
        post("/v2/models/{model}/versions/{version}/infer", infer),
        get("/", views.page),
        get("/metrics", views.metrics),
        get("/openapi.json", views.openapi),
        get("/v2", views.server),
        get("/v2/models/stats", views.all_stats),
        get("/v2/health/live", views.live),
        get("/v2/health/ready", views.ready),
        *Admin(service, access).routes(),
    ]
    for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        routes += [
            get(prefix, views.metadata),
            get(f"{prefix}/ready", views.model_ready),
            get(f"{prefix}/config", views.config),
            get(f"{prefix}/stats", views.stats),
            get(f"{prefix}/exits", views.exits),
        ]
    direct = Middleware(Direct, infer=infer)
    app = Starlette(routes=routes, middleware=[direct], lifespan=lifespan, exception_handlers=HANDLERS)
    app.router.redirect_slashes = False
    app.state.service = service
    return app


class Direct:
    """Passes requests for an answer straight to their endpoint: to go through all routes would take as long."""

    def __init__(self, app: Any, infer: Infer) -> None:
        self._app, self._infer = app, infer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        match = INFER.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if match is None:
            await self._app(scope, receive, send)
            return
        scope["path_params"] = match.groupdict()
        try:
            await self._infer(scope, receive, send)
        except LCTError as error:
            await send_refusal(send, error)


def _page() -> str:
    """Return the page as one document, with its style and its script."""
    page = (PAGE / "page.html").read_text(encoding="utf-8")
    for name in ("page.css", "page.js"):
        page = page.replace(f"{{{name}}}", (PAGE / name).read_text(encoding="utf-8"))
    return page


class Views:
    """The endpoints that describe the server."""

    def __init__(self, service: Service, access: Access) -> None:
        self._service, self._access = service, access

    async def page(self, request: Request) -> Response:
        """The page to try the server."""
        return Response(_page(), media_type="text/html; charset=utf-8", headers=PAGE_HEADERS)

    async def metrics(self, request: Request) -> Response:
        """The metrics, for Prometheus."""
        return Response(
            self._service.metrics.text(await self._service.crew.values()), headers={"content-type": CONTENT_TYPE}
        )

    async def openapi(self, request: Request) -> Response:
        """The description of the server in OpenAPI."""
        repository = self._service.repository
        models = {name: repository.versions(name) for name in repository.names()}
        return json_response(openapi.describe(models, self._access.root_path, self._access.keys is not None))

    async def server(self, request: Request) -> Response:
        """Name, version and extensions."""
        return json_response(protocol.describe_server(has_admin=self._access.has_admin))

    async def live(self, request: Request) -> Response:
        """Report that the process answers, and that no computation hangs."""
        is_live = not self._service.engine.hanging()
        return json_response({"live": is_live}, 200 if is_live else 503)

    async def ready(self, request: Request) -> Response:
        """Report whether requests are accepted."""
        is_ready = self._service.repository.is_open and not self._service.draining
        return json_response({"ready": is_ready}, 200 if is_ready else 503)

    async def model_ready(self, request: Request) -> Response:
        """Report that a model is in service."""
        model = self._model(request)
        return json_response({"name": model.name, "ready": True})

    async def metadata(self, request: Request) -> Response:
        """A model's inputs and outputs."""
        model = self._model(request)
        versions = self._service.repository.versions(model.name)
        return json_response(protocol.describe_model(model.name, versions, model.bundle.manifest))

    async def config(self, request: Request) -> Response:
        """A model's inputs and outputs in the form of Triton's model configuration."""
        model = self._model(request)
        return json_response(protocol.describe_config(model.name, model.bundle.manifest, self._service.limits))

    async def stats(self, request: Request) -> Response:
        """The statistics of a model."""
        return await self._statistics([self._model(request)])

    async def all_stats(self, request: Request) -> Response:
        """The statistics of all models."""
        repository = self._service.repository
        return await self._statistics(
            [repository.find(name, version) for name in repository.names() for version in repository.versions(name)]
        )

    async def exits(self, request: Request) -> Response:
        """The cost and quality of every exit, and the preprocessing of raw inputs."""
        model = self._model(request)
        profile, manifest = model.bundle.profile, model.bundle.manifest
        rows = [
            {
                "exit": i,
                "flops": profile.cost(i).flops,
                "params": profile.cost(i).params,
                "quality": profile.quality(i).value,
                "test": profile.exits[i - 1].test.value,
                "seconds": None if (latency := profile.exits[i - 1].latency) is None else latency.seconds,
            }
            for i in manifest.served
        ]
        return json_response(
            {
                "model": model.name,
                "version": model.version,
                "task": manifest.task,
                "metric": profile.metric,
                "classes": manifest.classes,
                "preprocessing": manifest.preprocessing.model_dump(),
                "exits": rows,
            }
        )

    async def _statistics(self, models: list[Model[Any]]) -> Response:
        statistics, values = self._service.metrics.statistics, await self._service.crew.values()
        return json_response(
            {
                "model_stats": [
                    statistics(each.name, each.version, each.bundle.manifest.served, values) for each in models
                ]
            }
        )

    def _model(self, request: Request) -> Model[Any]:
        return self._service.repository.find(request.path_params["model"], request.path_params.get("version"))


def json_response(value: object, status: int = 200) -> Response:
    """Return a response in JSON."""
    return Response(write_json(value), status, media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, LCTError)
    status, headers, body = refusal(error)
    return Response(body, status, headers)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    allow = (error.headers or {}).get("Allow")
    message = (
        f"Expected the method {allow} here, got {request.method}; use that."
        if allow
        else f"Expected a path of the V2 protocol, got '{request.url.path[:200]}'; /openapi.json lists them."
    )
    return Response(write_json({"error": message}), error.status_code, error.headers, media_type="application/json")


async def _failed(request: Request, error: Exception) -> Response:
    return json_response({"error": f"The server failed ({type(error).__name__}); see its log."}, 500)


HANDLERS: dict[Any, Any] = {LCTError: _refused, HTTPException: _not_found, Exception: _failed}
