"""What every page of the console shares: templates, headers, the person who looks, and refusals as pages."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import jinja2
from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from attestation.errors import AttestationError
from policies.units import format_size
from sandbox.control.access import Caller, caller_of_token
from sandbox.control.core import Control
from sandbox.control.web.sessions import COOKIE, ConsoleSession, Sessions
from sandbox.errors import AccessError, SealrigError

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_templates = jinja2.Environment(
    loader=jinja2.PackageLoader("sandbox.control.web"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters["filesize"] = format_size
_templates.filters["moment"] = datetime.isoformat

View = Callable[[Caller], dict[str, object]]


class Console:
    """Renders pages for signed-in people."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.sessions = Sessions()

    def page(self, request: Request, template: str, title: str, view: View) -> Response:
        """Render a page for whoever is signed in; others are sent to sign in. What is refused is shown as a page with its reason."""
        session = self.sessions.find(request.cookies.get(COOKIE))
        try:
            caller = None if session is None else caller_of_token(self.control, session.token)
        except AccessError:
            caller = None
        if session is None or caller is None:
            return RedirectResponse("/login", status_code=303, headers=HEADERS)
        try:
            values = view(caller)
        except (SealrigError, AttestationError) as error:
            status = error.http_status if isinstance(error, SealrigError) else 500
            return self.render(
                "problem.html", "That did not work", {"detail": explain(error)}, status=status, caller=caller, session=session
            )
        section = "/" + request.url.path.split("/")[1]
        return self.render(template, title, {"section": section, **values}, caller=caller, session=session)

    def download(self, request: Request, media_type: str, name: str, make: Callable[[Caller], bytes]) -> Response:
        """Give a file to whoever is signed in."""
        session = self.sessions.find(request.cookies.get(COOKIE))
        if session is None:
            return RedirectResponse("/login", status_code=303, headers=HEADERS)
        try:
            data = make(caller_of_token(self.control, session.token))
        except (SealrigError, AttestationError) as error:
            status = error.http_status if isinstance(error, SealrigError) else 500
            return Response(explain(error) + "\n", status_code=status, media_type="text/plain", headers=HEADERS)
        return Response(data, media_type=media_type, headers={**HEADERS, "Content-Disposition": f'attachment; filename="{name}"'})

    def render(
        self,
        template: str,
        title: str,
        values: dict[str, object],
        *,
        status: int = 200,
        caller: Caller | None = None,
        session: ConsoleSession | None = None,
    ) -> HTMLResponse:
        """Render a template."""
        shared = {"title": title, "viewer": caller, "csrf": session.csrf if session else "", "section": ""}
        return HTMLResponse(_templates.get_template(template).render({**shared, **values}), status_code=status, headers=HEADERS)


def explain(error: SealrigError | AttestationError) -> str:
    """Return an error's message with what was seen, what was wanted and the fix."""
    parts = [f"{name}: {error.details[name]}" for name in ("seen", "wanted", "fix") if error.details.get(name)]
    return "; ".join([error.message, *parts])
