"""Uploads planned repositories to the Hub: only files that are not there yet, a commit and a tag for each round."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from posttrain.errors import HubError
from posttrain.hub.client import HubClient
from posttrain.hub.plan import CARD, File, RepoPlan, RoundPlan
from posttrain.storage.pushed import Pushed

MAIN = "main"
EARLIER = "earlier-rounds"  # where a round goes that is older than what main holds
# Files of an older policy that would be loaded in place of the new one's, or beside it.
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "adapter/*")


def push(plan: RepoPlan, client: HubClient, done: Callable[[Pushed], None]) -> None:
    """Creates the repository if needed, and pushes each round that is not there. `done` is called after each.

    Raises:
        HubError: see HubClient.call; or the repository is public and the plan private; or a tag names another model.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what it retries, it would tell with addresses
    _open(plan, client)
    for one in plan.rounds:
        done(_Repository(plan, client).bring(one))


def sign_in(client: HubClient) -> None:
    """Checks the token by asking for its owner: the cheapest call that fails early."""
    client.user = client.call("ask whose token it is", client.api.whoami).get("name", "")


def _open(plan: RepoPlan, client: HubClient) -> None:
    def make() -> Any:
        try:
            return client.api.repo_info(plan.repo, repo_type=plan.kind)
        except RepositoryNotFoundError:
            client.api.create_repo(plan.repo, repo_type=plan.kind, private=plan.private, exist_ok=True)
            return None

    found = client.call(f"open {plan.repo}", make)
    if found is not None and plan.private and found.private is False:
        raise HubError(
            f"{plan.repo} is there already and public, and this push is private; nothing was sent\n"
            "  make it private in its settings, push to another name, or leave --private (push.private) out"
        )


class _Repository:
    """The state of a repository on the Hub, queried for each round."""

    def __init__(self, plan: RepoPlan, client: HubClient) -> None:
        self.plan, self.client, self.api = plan, client, client.api
        refs = self._call(f"read the tags of {plan.repo}", self.api.list_repo_refs)
        self.tags = {ref.name: ref.target_commit for ref in refs.tags}
        self.branches = {ref.name: ref.target_commit for ref in refs.branches}

    def bring(self, one: RoundPlan) -> Pushed:
        name = f"round {one.number} to {self.plan.repo}"
        if one.tag in self.tags:
            self._same(one)
            return self._pushed(one, self.tags[one.tag], ())
        branch = self._branch(one.number)
        sent: list[File] = []
        commit = self.client.call(f"push {name}", lambda: self._commit(one, branch, sent))
        self._call(f"tag {name}", self.api.create_tag, tag=one.tag, revision=commit, exist_ok=True)
        return self._pushed(one, commit, sent)

    def _same(self, one: RoundPlan) -> None:
        """Raises HubError if the tag names other weights or tables: a pinned tag is never moved."""
        held = self.client.call(f"read {one.tag} of {self.plan.repo}", lambda: self._held(one.tag))
        other = [file.path for file in one.files if file.path != CARD and not _is_there(file, held)]
        if other:
            raise HubError(
                f"{self.plan.repo} has another {one.tag} already: {', '.join(other[:3])} differs; nothing was sent\n"
                f"  push to another name, or take the tag away first: hf repos tag delete {self.plan.repo} {one.tag}"
                f"{' --repo-type dataset' if self.plan.kind == 'dataset' else ''}"
            )

    def _branch(self, number: int) -> str:
        """The branch to commit to: main, or another if main holds a later round."""
        there = [int(tag[6:]) for tag in self.tags if tag.startswith("round-") and tag[6:].isdigit()]
        if number >= max(there, default=0):
            return MAIN
        if EARLIER not in self.branches:
            self._call(f"make a branch of {self.plan.repo}", self.api.create_branch, branch=EARLIER, exist_ok=True)
        return EARLIER

    def _call(self, what: str, method: Callable[..., Any], **more: Any) -> Any:
        """Calls a method of the API for this repository, with retries."""
        return self.client.call(what, lambda: method(self.plan.repo, repo_type=self.plan.kind, **more))

    def _commit(self, one: RoundPlan, branch: str, sent: list[File]) -> str:
        """The commit with all files of the round; made unless the branch has them. Safe to retry after any failure: a
        commit whose reply was lost is found."""
        held = self._held(branch)
        missing = [file for file in one.files if not _is_there(file, held)]
        wanted = {file.path for file in one.files}
        stale = [path for path in held if path not in wanted and any(fnmatch(path, known) for known in _WEIGHTS)]
        sent += [file for file in missing if file not in sent]
        if not missing and not stale:
            info = self.api.repo_info(self.plan.repo, repo_type=self.plan.kind, revision=branch)
            return str(info.sha)
        made = self.api.create_commit(
            self.plan.repo,
            [*(_addition(file) for file in missing), *(CommitOperationDelete(path) for path in stale)],
            commit_message=f"Round {one.number} ({one.key})",
            repo_type=self.plan.kind,
            revision=branch,
        )
        return made.oid

    def _held(self, revision: str) -> Mapping[str, RepoFile]:
        tree = self.api.list_repo_tree(self.plan.repo, recursive=True, revision=revision, repo_type=self.plan.kind)
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

    def _pushed(self, one: RoundPlan, commit: str, sent: list[File] | tuple[()]) -> Pushed:
        names = tuple(file.path for file in sent)
        there = tuple(file.path for file in one.files if file.path not in names)
        size = sum(file.size for file in sent)
        return Pushed(self.plan.repo, self.plan.kind, one.number, one.key, one.tag, commit, names, there, size)


def _is_there(file: File, held: Mapping[str, RepoFile]) -> bool:
    """Whether the file is there, by content: SHA-256 of a large file, git blob of a small one."""
    found = held.get(file.path)
    if found is None or found.size != file.size:
        return False
    return found.lfs.sha256 == file.sha256 if found.lfs else found.blob_id == git_hash(_content(file))


def _content(file: File) -> bytes:
    return file.source.read_bytes() if file.source else file.text.encode()


def _addition(file: File) -> CommitOperationAdd:
    made = CommitOperationAdd(file.path, file.source or file.text.encode())
    made.upload_info.sha256 = bytes.fromhex(file.sha256)  # known: a large file is not read once more for it
    return made
