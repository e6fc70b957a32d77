"""Fetching a folder from the Hugging Face Hub: the one place that talks to it.

Everything about caching, tokens, mirrors and `HF_HUB_OFFLINE` is huggingface_hub's own behavior.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from koe5_onnx.errors import HubError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form owner/name of a Hub repository."""
    return _HUB_ID.fullmatch(name) is not None


def fetch(
    repository: str,
    revision: str | None,
    patterns: Sequence[str],
    kind: Literal["model", "dataset"] = "model",
) -> Path:
    """Download the files of `repository` that match `patterns`, or find them in the local cache.

    Args:
        repository: Hub id, as "nlpai-lab/KoE5".
        revision: Branch, tag or commit; None is the default branch.
        patterns: File name patterns as `huggingface_hub.snapshot_download` takes them.
        kind: What the Hub files the repository under.

    Returns:
        The snapshot's folder; its name is the commit that `revision` resolved to.

    Raises:
        HubError: The repository, revision or network is not there.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=list(patterns), repo_type=kind
        )
    except Exception as error:  # of an HTTP library that changes with the client's version
        reason = str(error).partition("\n")[0].rstrip(".")
        at = f" at revision {revision}" if revision else ""
        raise HubError(
            f"cannot fetch {repository}{at} from the Hub: {reason}. "
            "Check the name, the network and HF_HUB_OFFLINE, or give a local folder."
        ) from error
    return Path(folder)
