"""Upload an artifact with its model card to a repository on the Hub, in one commit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from koe5_onnx import Artifact, HubError
from koe5_onnx.artifact import MANIFEST

_CARD = "README.md"
_REASONS = {
    401: "the Hub rejects the token. Run hf auth login",
    403: "the token has no permission to write to it. Use a token with write access, and your account or "
    "organization as OWNER",
}


@dataclass(frozen=True)
class Upload:
    """The files of a repository: an artifact and its model card."""

    artifact: Artifact
    card: str
    """Content of README.md."""

    @property
    def content(self) -> Mapping[str, Path | bytes]:
        """Path or content of each file, by its name in the repository."""
        names = sorted((*self.artifact.manifest.files, MANIFEST))
        return {_CARD: self.card.encode()} | {name: self.artifact.path / name for name in names}

    @property
    def sizes(self) -> Mapping[str, int]:
        """Size of each file in bytes."""
        return {
            name: len(one) if isinstance(one, bytes) else one.stat().st_size
            for name, one in self.content.items()
        }


def upload(files: Upload, repository: str, branch: str | None = None, *, private: bool = False) -> str:
    """Upload the files in one commit, and return the URL of the commit.

    Files of an earlier artifact that the new one lacks are deleted.

    Args:
        files: The files.
        repository: Hub id; the repository is created if it does not exist.
        branch: Branch, created if it does not exist; None selects the default branch.
        private: True to create the repository as a private one, and to reject an existing public one.

    Raises:
        HubError: There is no token, it has no write permission, `private` is True and the repository is
            public, or the upload failed.
    """
    if get_token() is None:
        raise HubError(
            "there is no token for the Hub. Run hf auth login, or set HF_TOKEN to a token with write access"
        )
    hub = HfApi()
    try:
        hub.create_repo(repository, private=private or None, exist_ok=True)
        if private and not hub.model_info(repository).private:
            raise HubError(
                f"{repository} exists and is public, but --private was passed. Make it private in its "
                "settings on the Hub, or choose another name"
            )
        if branch is not None:
            hub.create_branch(repository, branch=branch, exist_ok=True)
        added = [CommitOperationAdd(name, content) for name, content in files.content.items()]
        deleted = _earlier_files(hub, repository, branch) - files.content.keys()
        commit = hub.create_commit(
            repository,
            [*added, *map(CommitOperationDelete, sorted(deleted))],
            commit_message=f"Upload the {files.artifact.manifest.precision} artifact",
            revision=branch,
        )
    except HubError:
        raise
    except Exception as error:  # the exception classes depend on the version of huggingface_hub
        raise HubError(f"cannot publish {repository}: {_reason(error)}") from error
    return str(commit.commit_url)


def _earlier_files(hub: HfApi, repository: str, branch: str | None) -> set[str]:
    """Return the files of the artifact that the branch has now."""
    present = set(hub.list_repo_files(repository, revision=branch))
    if MANIFEST not in present:
        return set()
    manifest = Path(hf_hub_download(repository, MANIFEST, revision=branch))
    found = json.loads(manifest.read_text(encoding="utf-8"))
    files = found.get("files") if isinstance(found, dict) else None
    return present & set(files) if isinstance(files, dict) else set()


def _reason(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError) and error.response.status_code in _REASONS:
        return _REASONS[error.response.status_code]
    reason = str(error).partition("\n")[0].rstrip(".")
    return f"{reason}. Check the name, the network and HF_HUB_OFFLINE"
