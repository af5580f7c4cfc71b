"""push_to_hub(): a whole compact checkpoint in one commit, or nothing."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo, snapshot_download
from huggingface_hub.errors import RevisionNotFoundError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..checked_models import WEIGHTS as STALE_WEIGHTS
from ..checkpoints import SENTENCE_FILES, changed_code, load_compact, write_checkpoint
from ..drafts import SUFFIX, draft_folder
from ..evaluation.report import Report
from ..modeling.errors import CheckpointError, CompactConfigError
from ..modeling.modeling_compact import CompactModelMixin
from .card import TaskResult, write_card
from .merged_card import complete_card
from .messages import HubError, explained, may_have_landed, only_warned, raised_by_client

logger = logging.get_logger(__name__)

# What training leaves in its folder beside the checkpoint.
_TRAINING_STATE = shutil.ignore_patterns(".git", ".cache", "checkpoint-*", "runs", "__pycache__", f".*{SUFFIX}")
# Loading one runs what it holds, so none is shared; `_is_pickle` finds those of other names.
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.joblib")
_WEIGHTS = (*_PICKLES, "*.safetensors", "*.gguf", "*.onnx", "*.h5", "*.msgpack")


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

    A push that fails leaves the repository's files as they were; the `HubError` says what to do next.

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
    with draft_folder(tempfile.gettempdir(), "compact-push") as scratch:
        folder = scratch / "checkpoint"
        if isinstance(compact, str | Path):
            _copy_checkpoint(Path(compact), folder)
            complete_card(folder)
            compact = load_compact(folder)
        else:
            _write(compact, folder, tokenizer, source, token)
        _remove_pickles(folder)
        write_card(folder, compact, report, repo_id=repo_id, base_model=base_model, results=results, token=token)
        files = tuple(
            PushedFile(file.relative_to(folder).as_posix(), file.stat().st_size)
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        )
        api = HfApi(token=token)
        if dry_run:
            return Push(repo_id, f"{api.endpoint}/{repo_id}", files)
        if not create_pr:
            with explained(api, repo_id, "creating the repository"):
                repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        head = _head(api, repo_id, revision)
        config = _config(api, head)
        if private and not head.private:
            raise HubError(
                f"{repo_id} is public, but `private` was asked for. Nothing was committed. "
                "Make it private on the Hub, or choose another name."
            )
        if not overwrite and not create_pr:
            _refuse_other_model(repo_id, head, config)
        title = commit_message or f"Upload {type(compact).__name__}"
        stale = _stale_files(head, config, files)
        commit = _Commit(api, repo_id, folder, files, stale, title, str(head.sha), revision, create_pr).make()
    return Push(repo_id, f"{api.endpoint}/{repo_id}", files, commit.oid, commit.pr_url)


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
    name = str(compact.config.name_or_path or "")
    if name and Path(name).is_dir():
        return Path(name)
    base_model = (compact.config.compact_source or {}).get("base_model")
    if base_model is not None:
        with only_warned(
            f"{base_model} is out of reach: if it has sentence-transformers files, they are not pushed along "
            "(`source` can name a folder with them)"
        ):
            return Path(snapshot_download(base_model, allow_patterns=list(SENTENCE_FILES), token=token))
    return None


def _copy_checkpoint(source: Path, folder: Path) -> None:
    if not (source / "config.json").is_file():
        raise CheckpointError(f"{str(source)!r} is no folder with a checkpoint: it holds no `config.json`.")
    shutil.copytree(source, folder, ignore=_TRAINING_STATE)
    if changed := changed_code(folder):
        raise CheckpointError(
            f"{str(source)!r} holds code files that are not those that were saved with it: {', '.join(changed)}. "
            "Nothing was pushed. Load the model and save it again, so that it has this release's code."
        )


def _remove_pickles(folder: Path) -> None:
    """Remove all pickles from the folder that is about to be pushed, and say so."""
    pickles = [file for file in sorted(folder.rglob("*")) if file.is_file() and _is_pickle(file)]
    for file in pickles:
        file.unlink()
    if pickles:
        found = ", ".join(file.relative_to(folder).as_posix() for file in pickles)
        logger.warning(f"Not pushed, because loading a pickle runs what it holds: {found}.")


def _is_pickle(file: Path) -> bool:
    if _matching([file.name], _PICKLES):
        return True
    # It begins with the length of its header, which can look like a pickle's first bytes.
    if file.suffix == ".safetensors":
        return False
    with file.open("rb") as content:
        start = content.read(2)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    return len(start) == 2 and start[0] == 0x80 and 2 <= start[1] <= 5


def _head(api: HfApi, repo_id: str, revision: str | None) -> ModelInfo:
    """Return what the commit is put on top of: a branch, or main for a branch that is still to be made."""
    with explained(api, repo_id, "looking at the repository"):
        try:
            return api.model_info(repo_id, revision=revision)
        except RevisionNotFoundError:
            # A branch that is not there is made; a pull request is not.
            if revision is None or revision.startswith("refs/"):
                raise
            return api.model_info(repo_id)


def _file_names(head: ModelInfo) -> list[str]:
    return [sibling.rfilename for sibling in head.siblings or ()]


def _config(api: HfApi, head: ModelInfo) -> dict[str, Any] | None:
    """Return the configuration that a repository holds: empty if it cannot be read, None if there is none."""
    if "config.json" not in _file_names(head):
        return None
    with explained(api, head.id, "looking at what the repository holds"):
        path = api.hf_hub_download(head.id, "config.json", revision=head.sha)
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def _refuse_other_model(repo_id: str, head: ModelInfo, config: dict[str, Any] | None) -> None:
    """Raise if the repository holds a model that is not compact: it would be half overwritten."""
    if config is None and not _matching(_file_names(head), _WEIGHTS):
        return
    model_type = str((config or {}).get("model_type", "unknown"))
    if not model_type.startswith("compact-"):
        raise HubError(
            f"The name {repo_id} is taken: the repository holds another model ({model_type}), which is not "
            "compact. Nothing was committed. Choose another name, or pass `overwrite=True` (`--overwrite`)."
        )


def _stale_files(head: ModelInfo, config: dict[str, Any] | None, files: Sequence[PushedFile]) -> list[str]:
    """Return what an earlier push has left in the repository and this one does not replace: weights and code."""
    record = (config or {}).get("compact_code")
    recorded = record.get("files") if isinstance(record, dict) else None
    code = [name for name in recorded or () if name.endswith(".py")]
    kept = {file.path for file in files}
    return [name for name in _matching(_file_names(head), (*STALE_WEIGHTS, *code)) if name not in kept]


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


@dataclasses.dataclass(frozen=True)
class _Commit:
    """One commit of a folder's files, on top of the commit `parent` or not at all.

    `HfApi.upload_folder` cannot make it: where `hf_xet` is installed, it divides a folder into several commits when
    one fails or grows large, and takes its own commit for somebody else's when the answer to it was lost.
    """

    api: HfApi
    repo_id: str
    folder: Path
    files: Sequence[PushedFile]
    stale: Sequence[str]
    title: str
    parent: str
    revision: str | None
    create_pr: bool

    def make(self) -> CommitInfo:
        """Make the commit; its branch too, where that is new."""
        if self.revision is not None and not self.revision.startswith("refs/"):
            with explained(self.api, self.repo_id, "making the branch"):
                self.api.create_branch(self.repo_id, branch=self.revision, revision=self.parent, exist_ok=True)
        with explained(self.api, self.repo_id, "sending the files"):
            try:
                return self._send(self.stale)
            except Exception as error:
                if not raised_by_client(error) or not may_have_landed(error):
                    raise
                return self._found_out(error)

    def _send(self, stale: Sequence[str]) -> CommitInfo:
        additions = [CommitOperationAdd(file.path, str(self.folder / file.path)) for file in self.files]
        return self.api.create_commit(
            self.repo_id,
            [*additions, *(CommitOperationDelete(path) for path in stale)],
            commit_message=self.title,
            revision=self.revision,
            create_pr=self.create_pr,
            parent_commit=self.parent,
        )

    def _found_out(self, error: Exception) -> CommitInfo:
        """Return the commit if it was made though its answer was lost; raise the error if it was not."""
        where = f"{self.api.endpoint}/{self.repo_id}{'/discussions' if self.create_pr else ''}"
        unknown = f"Whether the commit was made could not be found out: look at {where} first."
        with explained(self.api, self.repo_id, "sending the files", unknown):
            if self.create_pr:
                raise error
            if self.api.model_info(self.repo_id, revision=self.revision).sha != self.parent:
                # The client leaves out what is there already; for anything else the parent is too old.
                commit = self._send(())
                logger.warning(f"The Hub's answer was lost, but commit {commit.oid} was made in {self.repo_id}.")
                return commit
        raise error
