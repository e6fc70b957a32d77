"""Downloads from the Hugging Face Hub.

huggingface_hub handles caching, tokens, mirrors and `HF_HUB_OFFLINE`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from koe5_onnx.errors import HubError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_id(name: str) -> bool:
    """Return True if `name` has the form owner/name of a Hub repository."""
    return _HUB_ID.fullmatch(name) is not None


def fetch(
    repository: str,
    revision: str | None,
    patterns: Sequence[str],
    kind: Literal["model", "dataset"] = "model",
) -> Path:
    """Download the files of `repository` that match `patterns`, or find them in the local cache.

    Args:
        repository: Hub id, such as "nlpai-lab/KoE5".
        revision: Branch, tag or commit; None selects the default branch.
        patterns: File name patterns for `allow_patterns` of `huggingface_hub.snapshot_download`.
        kind: Repository type.

    Returns:
        The downloaded snapshot in the local cache, a folder named after the commit.

    Raises:
        HubError: The download failed, for example because the repository does not exist.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=list(patterns), repo_type=kind
        )
    except Exception as error:  # the exception classes depend on the version of huggingface_hub
        reason = str(error).partition("\n")[0].rstrip(".")
        at = f" at revision {revision}" if revision else ""
        raise HubError(
            f"cannot download {repository}{at} from the Hub: {reason}. "
            "Check the name, the network and HF_HUB_OFFLINE, or pass a local folder"
        ) from error
    return Path(folder)
