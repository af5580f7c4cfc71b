"""Push a compact checkpoint with its code files and card to the Hub, in one commit."""

from __future__ import annotations

import argparse

from ..checkpoints import load_compact, load_dense
from ..evaluation.report import inspect
from ..hub import push_to_hub
from .outcome import Outcome


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("folder", help="folder with a compact checkpoint, as `hf-compact compress` writes it")
    parser.add_argument("repo", help="where to, as `name` or `user/name`; made if it is not there")
    parser.add_argument("--against", metavar="MODEL", help="Hub id or folder of the original: measured for the card")
    parser.add_argument("--base-model", metavar="ID", help="Hub id of the original, for the card")
    parser.add_argument(
        "--private", action="store_true", default=None, help="make a new repository private; stop at a public one"
    )
    parser.add_argument("--revision", metavar="BRANCH", help="branch to push to, made if it is not there")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing to main")
    parser.add_argument("--token", help="by default the one of `hf auth login`, or HF_TOKEN")
    parser.add_argument("--message", help="title of the commit")
    parser.add_argument("--overwrite", action="store_true", help="push even over a model that is not compact")
    parser.add_argument("--dry-run", action="store_true", help="send nothing: list the files and their sizes")


def run(options: argparse.Namespace) -> Outcome:
    """Push, and say where to."""
    report = None
    if options.against is not None:
        report = inspect(load_compact(options.folder), against=load_dense(options.against))
    push = push_to_hub(
        options.folder,
        options.repo,
        report=report,
        base_model=options.base_model,
        private=options.private,
        revision=options.revision,
        create_pr=options.create_pr,
        token=options.token,
        commit_message=options.message,
        overwrite=options.overwrite,
        dry_run=options.dry_run,
    )
    return Outcome(push.to_dict(), str(push))
