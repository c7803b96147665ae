"""The control plane as one ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI

from sandbox.control.api import audit, bundles, health, leases, nodes, people, policies, problems, uploads
from sandbox.control.api.bounds import BoundedBodies, Counted
from sandbox.control.api.tus import Tus
from sandbox.control.core import Control
from sandbox.control.web.pages import console_router


def create_app(control: Control) -> FastAPI:
    """Return the application over an open control plane."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        control.bell.attach(asyncio.get_running_loop())
        yield
        control.bell.close()

    app = FastAPI(title="Sealrig", version=own_version(), lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.control = control
    for topic in (health, people, policies, uploads, bundles, leases, nodes, audit):
        app.include_router(topic.router)
    app.include_router(console_router(control))
    problems.install(app)
    app.add_middleware(BoundedBodies)
    app.add_middleware(Counted, metrics=control.metrics)
    app.add_middleware(Tus)
    return app


def own_version() -> str:
    """Return this distribution's version."""
    try:
        return version("sealrig")
    except PackageNotFoundError:
        return "0"
