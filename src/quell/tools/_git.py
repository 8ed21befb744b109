"""What Quell does with the `git` program of its machine: anchors of the audit log, and the files of one commit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO

from quell.domain import RefusedError, UsageError, WorldError
from quell.tools import _git_tree as tree
from quell.tools._git_anchor import GitAnchor

_OPTIONS = (
    "--literal-pathspecs",
    *("-c", "core.hooksPath=/dev/null"),
    *("-c", "core.askPass=true"),
    *("-c", "core.fsmonitor=false"),
    *("-c", "core.attributesFile=/dev/null"),
    *("-c", "fetch.fsckObjects=true"),
    *("-c", "fetch.recurseSubmodules=false"),
    *("-c", "gc.auto=0"),
    *("-c", "maintenance.auto=false"),
)
_INHERITED = ("GIT_SSH", "GIT_SSL", "GIT_PROXY", "GIT_CURL", "GIT_CONFIG")
"""Of git's variables only those that say how a server is reached; the others name a repository that is not ours."""
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_TRANSFER_MAX_BYTES = 256 * 1024 * 1024
_BLOCK_BYTES = 512
_SAID_MAX_CHARS = 300
_HINT = "check the address, the network and the rights of its key; nothing is asked at a terminal"
_LIMITED = 'ulimit -f "$1" && shift && exec "$@"'
"""Lets no file of git's grow beyond what a repository of texts may have: its server decides how much it sends."""


class Git:
    """A repository at an address, reached by the git program of this machine."""

    Anchor = GitAnchor
    """Checkpoints of the audit log in a repository of its own."""

    def __init__(self, url: str, *, env: Mapping[str, str], timeout_s: float = 120.0) -> None:
        """Reach it by https or ssh, or a directory of this machine that the address names by `file:`."""
        self._url = url
        self._protocols = "file" if url.startswith("file:") else "https:ssh"
        self._env = env
        self._timeout_s = timeout_s

    @staticmethod
    def is_commit(ref: str) -> bool:
        """Tell whether a ref is a full commit id, which never means anything else."""
        return bool(_COMMIT.fullmatch(ref))

    def commit_of(self, ref: str) -> str:
        """Ask what a ref means now.

        Raises:
            UsageError: there is none, or it is a branch and a tag.
            WorldError: the repository does not answer.
        """
        if self.is_commit(ref):
            return ref
        names = (ref,) if ref.startswith("refs/") else (f"refs/heads/{ref}", f"refs/tags/{ref}")
        asked = [pattern for name in names for pattern in (name, f"{name}^{{}}")]
        told = self._run("ls-remote", "--", self._url, *asked).decode("utf-8", "replace")
        found = {name: commit for commit, _, name in (line.partition("\t") for line in told.splitlines())}
        known = [name for name in names if name in found]
        if not known:
            raise UsageError(f"{self._url} has no branch and no tag {ref!r}", hint="write a full commit id, or a name")
        if len(known) > 1:
            raise UsageError(f"{ref!r} is a branch and a tag of {self._url}", hint=f"write {' or '.join(known)}")
        # An annotated tag is an object of its own; what it names stands beside it.
        commit = found.get(f"{known[0]}^{{}}", found[known[0]])
        if not self.is_commit(commit):
            raise WorldError(f"{self._url}: {commit[:80]!r} is no commit id", hint=_HINT)
        return commit

    def fetch(self, commit: str, *, path: str, chosen: str, into: Path) -> None:
        """Write the files of a commit below `path` into a new directory, read-only, as `chosen_of` takes them.

        Nothing of the repository is run: there is no checkout, so hooks, filters and submodules have no say.

        Raises:
            RefusedError: there is nothing, too much, or something that may not be written.
            WorldError: the repository does not answer, or does not have the commit.
        """
        assert self.is_commit(commit), "only a commit can be fetched"
        into.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".fetching-", dir=into.parent))
        try:
            store = ("--git-dir", str(made / "git"))
            self._run("init", "--quiet", "--bare", "--template=", "--", str(made / "git"))
            self._run(
                *(*store, "fetch", "--quiet", "--no-tags", "--no-auto-maintenance", "--depth=1"),
                *("--", self._url, commit),
            )
            given = self._run(*store, "ls-tree", "-r", "-z", "-l", "--full-tree", commit, "--", *([path] * bool(path)))
            leaf = PurePosixPath(path or self._url.rstrip("/").replace(":", "/")).name.removesuffix(".git")
            files = tree.chosen_of(tree.listed(given), path=path, chosen=chosen, leaf=leaf)
            if not files:
                where = f"below {path!r} " if path else ""
                raise RefusedError(f"commit {commit[:12]} has no {chosen} {where}", hint="check `path` and `ref`")
            tree.judge(files)
            with self._objects(store) as read:
                tree.write(files, read, to=made / "tree")
            tree.lock(made / "tree")
            # Whoever fetched it at the same time wrote the same.
            with suppress(OSError):
                (made / "tree").rename(into)
        finally:
            tree.remove(made)

    @contextmanager
    def _objects(self, store: tuple[str, str]) -> Iterator[Callable[[str], bytes]]:
        """Give what reads one object after the other."""
        with self._started(*store, "cat-file", "--batch", stdin=subprocess.PIPE) as program:
            assert program.stdin is not None, "it was asked for"
            assert program.stdout is not None, "it was asked for"
            asking, answers = program.stdin, program.stdout
            yield lambda name: _object(asking, answers, name)

    def _run(self, *arguments: str) -> bytes:
        try:
            with self._started(*arguments, stdin=subprocess.DEVNULL) as program:
                out, said = program.communicate(timeout=self._timeout_s)
        except (OSError, subprocess.TimeoutExpired) as error:
            told = "no answer in time" if isinstance(error, subprocess.TimeoutExpired) else str(error)
            raise WorldError(f"{self._url}: git: {told}", hint=_HINT) from error
        if program.returncode:
            told = said.decode("utf-8", "replace").strip()[:_SAID_MAX_CHARS]
            raise WorldError(f"{self._url}: {told or f'git ended with {program.returncode}'}", hint=_HINT)
        return out

    @contextmanager
    def _started(self, *arguments: str, stdin: int) -> Iterator[subprocess.Popen[bytes]]:
        """Run git away from any terminal, where it or ssh could ask for a password and wait; what it starts ends too."""
        blocks = str(_TRANSFER_MAX_BYTES // _BLOCK_BYTES)
        with subprocess.Popen(
            ["/bin/sh", "-c", _LIMITED, "sh", blocks, "git", *_OPTIONS, *arguments],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment(),
            start_new_session=True,
        ) as program:
            try:
                yield program
            finally:
                if program.poll() is None:
                    with suppress(ProcessLookupError):
                        os.killpg(program.pid, signal.SIGKILL)

    def _environment(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in self._env.items()
            if not name.startswith("GIT_") or name.startswith(_INHERITED)
        }
        return kept | {
            "GIT_ALLOW_PROTOCOL": self._protocols,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_LFS_SKIP_SMUDGE": "1",
            "SSH_ASKPASS_REQUIRE": "never",
            "LC_ALL": "C",
        }


def _object(asking: IO[bytes], answers: IO[bytes], name: str) -> bytes:
    asking.write(f"{name}\n".encode("ascii"))
    asking.flush()
    told = answers.readline().split()
    if len(told) != 3 or told[1] != b"blob":
        raise WorldError(f"git does not give the object {name[:12]}", hint="fetch again")
    content = answers.read(int(told[2]))
    answers.read(1)
    return content
