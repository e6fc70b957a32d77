"""koe5-onnx publish: upload an artifact with a generated model card to the Hub."""

from __future__ import annotations

import argparse

from koe5_onnx import Artifact, InputError
from koe5_onnx.artifact.hub import is_hub_id


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand and its arguments."""
    parser = verbs.add_parser(
        "publish",
        help="upload an artifact with a model card to the Hub",
        description="Check the files of an artifact, generate a model card, and upload all of it to the "
        "Hub in one commit. Create the repository if it does not exist. Requires a token with write access: "
        "run hf auth login, or set HF_TOKEN.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("artifact", metavar="ARTIFACT", help="folder or Hub id of the artifact")
    parser.add_argument("repository", metavar="OWNER/NAME", help="repository on the Hub")
    parser.add_argument(
        "--private",
        action="store_true",
        help="create the repository as a private one; fails if it exists and is public",
    )
    parser.add_argument(
        "--revision",
        metavar="BRANCH",
        help="branch to upload to, created if it does not exist (default: main)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the model card and the files, and upload nothing"
    )


def run(args: argparse.Namespace) -> int:
    """Publish and return the exit code.

    Raises:
        Koe5Error: The artifact is damaged, the name is not valid, or the upload failed.
    """
    if not is_hub_id(args.repository):
        raise InputError(
            f"the repository is {args.repository!r}; expected OWNER/NAME, such as alice/koe5-int8"
        )
    # Imported here, because huggingface_hub would slow down the start of the other commands.
    from koe5_export.hub_card import model_card
    from koe5_export.hub_upload import Upload, upload

    artifact = Artifact.open(args.artifact)
    files = Upload(artifact, model_card(artifact.manifest, args.repository))
    if args.dry_run:
        print(files.card)
        for name, size in files.sizes.items():
            print(f"{size:>13,} bytes  {name}")
    else:
        url = upload(files, args.repository, args.revision, private=args.private)
        print(f"published: {url}")
    return 0
