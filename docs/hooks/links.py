"""MkDocs hook: add pages from outside docs/ to the site, and rewrite links to files outside the site."""

from __future__ import annotations

import posixpath
import re
import tomllib
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {"decisions": "benchmarks/decisions", "": "docs"}
"""Folder in the site to folder in the repository."""
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((\.\.?/[^)\s#]*)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the decision records."""
    for page in sorted((ROOT / SOURCES["decisions"]).glob("*.md")):
        files.append(File.generated(config, f"decisions/{page.name}", abs_src_path=str(page)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files outside the site into links to the repository.

    They become text if pyproject.toml has no URL of the repository. Images are copied into the site, so that
    pages load nothing from other hosts.
    """
    repository = _PROJECT["urls"].get("Repository")
    folder = posixpath.dirname(page.file.src_uri)
    source = SOURCES.get(folder) or posixpath.join("docs", folder)

    def rewritten(link: re.Match[str]) -> str:
        image, text, target, anchor = link[1], link[2], link[3], link[4] or ""
        path = posixpath.normpath(posixpath.join(source, target))
        in_site = path
        for name, prefix in SOURCES.items():
            if path.startswith(f"{prefix}/"):
                in_site = posixpath.join(name, path.removeprefix(f"{prefix}/"))
        if image and in_site == path:
            in_site = f"assets/{path}"
            if in_site not in files.src_uris:
                files.append(File.generated(config, in_site, abs_src_path=str(ROOT / path)))
        if in_site in files.src_uris:
            return f"{image}[{text}]({posixpath.relpath(in_site, folder or '.')}{anchor})"
        return f"[{text}]({repository}/blob/main/{path}{anchor})" if repository else text

    return _LINK.sub(rewritten, markdown)
