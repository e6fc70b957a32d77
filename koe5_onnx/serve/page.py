"""The web pages: a single HTML file at "/", and Swagger UI at "/docs". They load nothing from other hosts."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, JSONResponse

from koe5_onnx.serve.refusals import Reason, Refusal

_SWAGGER_FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")


def page_routes(described: FastAPI, prefix: str) -> APIRouter:
    """Return the routes of the pages.

    Args:
        described: The app whose routes "/docs" describes.
        prefix: Prefix of the URLs of these pages.
    """
    static = Path(str(files("fastapi_offline") / "static"))
    html = files("koe5_onnx.serve").joinpath("page.html").read_text(encoding="utf-8")
    headers = {"content-security-policy": policy_for(html), "x-content-type-options": "nosniff"}
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(html, media_type="text/html; charset=utf-8", headers=headers)

    @router.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return JSONResponse(described.openapi())

    @router.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        script, style, icon = (f"{prefix}/docs-files/{name}" for name in _SWAGGER_FILES)
        return get_swagger_ui_html(
            openapi_url=f"{prefix}/openapi.json", title=described.title, swagger_js_url=script,
            swagger_css_url=style, swagger_favicon_url=icon,
        )  # fmt: skip

    @router.get("/docs-files/{name}", include_in_schema=False)
    async def docs_file(name: str) -> Response:
        if name not in _SWAGGER_FILES:
            raise Refusal(Reason.UNKNOWN_ROUTE, f"there is no file {name[:200]!r}")
        return FileResponse(static / name)

    return router


def policy_for(html: str) -> str:
    """Return a Content-Security-Policy that allows only the inline script and style of the page.

    Source: https://www.w3.org/TR/CSP3/#framework-directive-source-list
    """
    parts = [re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL) for tag in ("script", "style")]
    digests = [hashlib.sha256(body.encode()).digest() for (body,) in parts]
    script, style = (f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
