"""push_to_hub(): a whole compact checkpoint in one commit, or nothing."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.utils import yaml_dump
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..checkpoints import SENTENCE_FILES, changed_code, load_compact, write_checkpoint
from ..evaluation.report import Report
from ..modeling.errors import CheckpointError, CompactConfigError
from ..modeling.modeling_compact import CARD_TAG, CompactModelMixin
from .card import ANY_REPOSITORY, TaskResult, make_card
from .commit import Landed, Target, commit_folder
from .messages import CLIENT_ERRORS

logger = logging.get_logger(__name__)

_CARD = "README.md"
_LEFT_BEHIND = shutil.ignore_patterns(
    ".git", ".cache", "checkpoint-*", "runs", "__pycache__", "training_args.bin", "*.pt", "*.pth"
)


@dataclasses.dataclass(frozen=True)
class PushedFile:
    """A file of a push.

    Attributes:
        path: its place in the repository.
        size: its bytes.
    """

    path: str
    size: int


@dataclasses.dataclass(frozen=True)
class Push:
    """What was pushed; of a dry run, what would be.

    Attributes:
        repo_id: the repository.
        url: its address.
        files: all files of the commit.
        commit: the commit's hash; None for a dry run.
        pr_url: the pull request's address, where one was opened.
    """

    repo_id: str
    url: str
    files: tuple[PushedFile, ...]
    commit: str | None = None
    pr_url: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the push as plain JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """Return the push as text."""
        total = sum(file.size for file in self.files)
        lines = [f"{file.size:>14,}  {file.path}" for file in self.files]
        lines.append(f"{total:>14,}  bytes in {len(self.files)} files")
        if self.commit is None:
            return "\n".join([*lines, f"dry run: nothing was sent to {self.url}"])
        lines.append(f"{'pull request':<16}{self.pr_url}" if self.pr_url else f"{'pushed to':<16}{self.url}")
        return "\n".join([*lines, f"{'commit':<16}{self.commit}"])


def push_to_hub(
    compact: PreTrainedModel | str | Path,
    repo_id: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    report: Report | None = None,
    *,
    source: str | Path | None = None,
    base_model: str | None = None,
    results: Sequence[TaskResult] = (),
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    commit_message: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Push:
    """Push a compact model with its code files, tokenizer and card in one commit.

    A push that fails leaves the repository's branches as they were; the `HubError` says what to do next.

    Args:
        compact: a compact model, or a folder with a compact checkpoint, which is pushed as it is.
        repo_id: where to; made if it is not there.
        tokenizer: pushed beside the model.
        report: from `inspect(compact, against=dense)`, for the card.
        source: the Hub id or folder of the original, whose sentence-transformers files go along; by default
            the one that the model was made from.
        base_model: the original's Hub id, for the card; by default the one that `compress()` noted.
        results: of tasks, before and after, for the card.
        private: whether a new repository is private.
        revision: the branch to push to, made if it is not there; by default main.
        create_pr: open a pull request instead.
        token: by default the one you are logged in with.
        commit_message: the commit's title.
        overwrite: push even if the repository holds a model that is not compact.
        dry_run: send nothing; return the files and their sizes.
    """
    if create_pr and revision is not None:
        raise CompactConfigError("`create_pr` cannot be given beside `revision`: a pull request goes to main.")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkpoint"
        if isinstance(compact, str | Path):
            _copy_checkpoint(Path(compact), folder)
            compact = load_compact(folder)
        else:
            _write(compact, folder, tokenizer, source, token)
        write_card(folder, compact, report, repo_id=repo_id, base_model=base_model, results=results, token=token)
        files = tuple(
            PushedFile(file.relative_to(folder).as_posix(), file.stat().st_size)
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        )
        api = HfApi(token=token)
        if dry_run:
            return Push(repo_id, f"{api.endpoint}/{repo_id}", files)
        target = Target(api, repo_id, revision, create_pr, private, overwrite)
        landed: Landed = commit_folder(target, folder, commit_message or f"Upload {type(compact).__name__}")
    return Push(landed.repo_id, f"{api.endpoint}/{landed.repo_id}", files, landed.commit, landed.pr_url)


def _write(
    compact: PreTrainedModel,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None,
    source: str | Path | None,
    token: str | bool | None,
) -> None:
    if not isinstance(compact, CompactModelMixin):
        raise CompactConfigError(f"`compact` is a {type(compact).__name__}, which is not compact.")
    source = _sentence_source(compact, token) if source is None else source
    write_checkpoint(compact, folder, tokenizer, source)


def _sentence_source(compact: PreTrainedModel, token: str | bool | None) -> Path | None:
    """Return the folder that the model, or its original, came from; of one on the Hub, as far as it is needed."""
    name = str(compact.config._name_or_path or "")
    if name and Path(name).is_dir():
        return Path(name)
    base_model = (compact.config.compact_source or {}).get("base_model")
    if base_model is None:
        return None
    try:
        return Path(snapshot_download(base_model, allow_patterns=list(SENTENCE_FILES), token=token))
    except CLIENT_ERRORS as error:
        logger.warning(
            f"{base_model} is out of reach: if it has sentence-transformers files, they are not pushed along "
            f"(`source` can name a folder with them): {' '.join(str(error).split())}"
        )
        return None


def _copy_checkpoint(source: Path, folder: Path) -> None:
    if not (source / "config.json").is_file():
        raise CheckpointError(f"{str(source)!r} is no folder with a checkpoint: it holds no `config.json`.")
    shutil.copytree(source, folder, ignore=_LEFT_BEHIND)
    if changed := changed_code(folder):
        raise CheckpointError(
            f"{str(source)!r} holds code files that are not those that were saved with it: {', '.join(changed)}. "
            "Nothing was pushed. Load the model and save it again, so that it has this release's code."
        )


def write_card(
    folder: Path,
    compact: PreTrainedModel,
    report: Report | None = None,
    *,
    repo_id: str = ANY_REPOSITORY,
    base_model: str | None = None,
    results: Sequence[TaskResult] = (),
    token: str | bool | None = None,
) -> None:
    """Write a checkpoint's card and `.eval_results`; a compact card that is there is kept if nothing new is known."""
    path = folder / _CARD
    is_new = report is not None or base_model is not None or bool(results)
    if not is_new and path.is_file() and CARD_TAG in (text := path.read_text(encoding="utf-8")):
        path.write_text(text.replace(ANY_REPOSITORY, repo_id), encoding="utf-8")
        return
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    card = make_card(
        compact,
        report,
        code_sha256=(config.get("compact_code") or {}).get("sha256"),
        repo_id=repo_id,
        base_model=base_model,
        results=results,
        sentences=(folder / "modules.json").is_file(),
        token=token,
    )
    path.write_text(str(card), encoding="utf-8")
    for name, content in eval_result_files(results).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")


def eval_result_files(results: Sequence[TaskResult]) -> dict[str, str]:
    """Return the `.eval_results` files: of the results on benchmarks of the Hub, where the client knows them."""
    try:
        from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    except ImportError:
        return {}
    files = {}
    for result in results:
        if result.dataset_id is not None and result.task_id is not None:
            name = f".eval_results/{result.dataset_id.rpartition('/')[2]}-{result.task_id}.yaml"
            entry = EvalResultEntry(dataset_id=result.dataset_id, task_id=result.task_id, value=round(result.after, 6))
            files[name] = yaml_dump(eval_result_entries_to_yaml([entry]))
    return files
