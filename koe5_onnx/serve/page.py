"""The page for people at "/": one file, nothing from outside."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from fastapi import APIRouter, Response


def page_route() -> APIRouter:
    """GET /."""
    html = files("koe5_onnx.serve").joinpath("page.html").read_text(encoding="utf-8")
    headers = {"content-security-policy": policy_for(html), "x-content-type-options": "nosniff"}
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(html, media_type="text/html; charset=utf-8", headers=headers)

    return router


def policy_for(html: str) -> str:
    """A Content-Security-Policy that lets this page's own script and style run, and nothing else.

    Source: https://www.w3.org/TR/CSP3/#framework-directive-source-list
    """
    script, style = (
        " ".join(
            f"'sha256-{_digest(body)}'" for body in re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        )
        for tag in ("script", "style")
    )
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _digest(body: str) -> str:
    return base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
