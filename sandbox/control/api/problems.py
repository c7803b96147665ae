"""Every error as RFC 9457 problem details with its stable code. Nothing of the server's inside leaves through an error."""

from __future__ import annotations

import sqlite3
from typing import Any, cast

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from attestation.errors import AttestationError, LimitError, LogError, VerificationError
from policies.errors import PolicyError, PolicyLimitError
from sandbox.control.errors import storage_error
from sandbox.errors import SealrigError
from sandbox.wire import Problem

MEDIA_TYPE = "application/problem+json"
MAX_DETAIL_CHARS = 4000
logger = structlog.get_logger("sealrig.control")

_HTTP_CODES = {400: "bad-request", 404: "not-found", 405: "method-not-allowed", 413: "limit-exceeded", 415: "unsupported-media-type"}


def problem(status: int, code: str, title: str, details: dict[str, Any] | None = None) -> Response:
    """Return problem details as a response."""
    body = Problem(title=title, status=status, code=code, detail=title, details=_plain(details or {}))
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(body.model_dump(mode="json"), status, headers=headers, media_type=MEDIA_TYPE)


def status_of(error: Exception) -> tuple[int, str]:
    """Return HTTP status and code of any error that is raised on purpose."""
    match error:
        case SealrigError():
            return error.http_status, error.code
        case PolicyLimitError():
            return 413, error.code
        case PolicyError():
            return 422, error.code
        case LimitError():
            return 413, error.code
        case LogError():
            return 503, error.code
        case VerificationError():
            return 422, error.code
        case AttestationError():
            return 422, error.code
        case _:
            return 500, SealrigError.code


def install(app: FastAPI) -> None:
    """Map every error of the application to problem details."""
    for kind in (SealrigError, AttestationError, PolicyError):
        app.add_exception_handler(kind, _on_purpose)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    for fault in (SQLAlchemyError, sqlite3.Error, OSError):
        app.add_exception_handler(fault, _storage)
    app.add_exception_handler(Exception, _unexpected)


async def _on_purpose(request: Request, error: Exception) -> Response:
    status, code = status_of(error)
    if status >= 500:
        logger.warning("request failed", code=code, method=request.method, reason=str(error)[:300])
    details = dict(getattr(error, "details", {}))
    if isinstance(error, VerificationError):
        details["steps"] = [{"step": step.step, "ok": step.ok, "detail": step.detail} for step in error.steps]
    if isinstance(error, LogError):  # paths and states of the log are for the server's own log
        return problem(status, code, "the audit log does not answer as it should", {"rule": details.get("rule", "log"), "fix": "try again"})
    return problem(status, code, str(error), details)


async def _invalid(request: Request, error: Exception) -> Response:
    del request
    first = cast("RequestValidationError", error).errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return problem(
        422,
        "bad-input",
        f"{place}: {first['msg']}"[:500],
        {"rule": "request-schema", "seen": place, "wanted": first["msg"][:300], "fix": "see /openapi.json"},
    )


async def _http(request: Request, error: Exception) -> Response:
    del request
    status = cast("HTTPException", error).status_code
    return problem(status, _HTTP_CODES.get(status, "bad-request"), str(cast("HTTPException", error).detail))


async def _storage(request: Request, error: Exception) -> Response:
    logger.error("storage failed", method=request.method, error=type(error).__name__, reason=str(error)[:300])
    fault = storage_error(error, "the server's storage")
    return problem(fault.http_status, fault.code, fault.message, fault.details)


async def _unexpected(request: Request, error: Exception) -> Response:
    logger.error("unexpected error", method=request.method, error=type(error).__name__)
    return problem(500, SealrigError.code, "the server met an unexpected error; its own log says more")


def _plain(value: object) -> Any:  # noqa: ANN401  (JSON is dynamic)
    """Cut details down to bounded JSON values."""
    match value:
        case dict():
            return {str(key)[:100]: _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value[:256]]
        case bool() | int() | float() | None:
            return value
        case _:
            return str(value)[:MAX_DETAIL_CHARS]
