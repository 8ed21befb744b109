"""An anchor in git: every signed checkpoint is the message of a commit on a branch that only grows."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

from quell.domain import WorldError

_OPTIONS = (
    *("-c", "user.name=Quell"),
    *("-c", "user.email=quell@localhost"),
    *("-c", "commit.gpgSign=false"),
    *("-c", "core.hooksPath=/dev/null"),
    *("-c", "core.askPass=true"),
    *("-c", "protocol.ext.allow=never"),
)
_NO_SUCH_REF = 2
_HINT = "check the repository, the remote and the rights of its key; nothing is asked at a terminal"


class GitAnchor:
    """Checkpoints in a bare repository of its own, and on a remote: read back from there, never pushed by force.

    Whoever could rewrite the log and this repository could not rewrite a remote that refuses such pushes. Where a remote
    does not refuse them, this repository remembers what stood there: a branch that was rewritten is told at the next
    checkpoint, and what was taken from it still counts.
    """

    def __init__(
        self, repository: Path, *, remote: str = "", branch: str = "quell-audit", timeout_s: float = 60
    ) -> None:
        self.name = f"git {remote or repository}"
        self._repository = repository
        self._remote = remote
        self._ref = f"refs/heads/{branch}"
        # A remote of another address is another place.
        self._seen = f"refs/quell/seen/{hashlib.sha256(remote.encode()).hexdigest()[:12]}/{branch}"
        """What stood on the remote when it was read or written last."""
        self._timeout_s = timeout_s

    def publish(self, note: str) -> None:
        """Commit a note on top of what is there, and push it.

        Raises WorldError, too, when the remote's branch does not continue what stood there before.
        """
        parent = self._tip()
        if self._remote and self._is_rewritten(parent):
            raise WorldError(
                f"{self.name}: its branch was rewritten or deleted: it does not continue what stood there",
                hint=f"find out who pushed by force; {self._seen} in {self._repository} holds what stood there",
            )
        tree = self._git("mktree", given="")
        commit = self._git("commit-tree", tree, *(("-p", parent) if parent else ()), given=note)
        # The old value is named too: of two that publish at once, one is told to come again.
        self._git("update-ref", self._ref, commit, self._local())
        if self._remote:
            self._git("push", "--quiet", "--", self._remote, f"{self._ref}:{self._ref}")
            self._git("update-ref", self._seen, commit)

    def published(self) -> Sequence[str]:
        """Return the messages of all commits, those of the remote where there is one, and those that stood there."""
        tip = self._tip()
        seen = self._commit_of(self._seen) if self._remote else ""
        tips = [each for each in (tip, seen) if each]
        if not tips:
            return []
        if tip and not self._is_rewritten(tip):
            self._git("update-ref", self._seen, tip)
        told = self._git("log", "--reverse", "--format=%B%x00", *tips, "--")
        return [f"{message.strip()}\n" for message in told.split("\0") if message.strip()]

    def _tip(self) -> str:
        """Return the newest commit; empty when there is none."""
        if not (self._repository / "HEAD").exists():
            self._run("init", "--quiet", "--bare", str(self._repository))
        if not self._remote:
            local = self._local()
            return "" if set(local) == {"0"} else local
        told = self._run(*self._at(), "ls-remote", "--exit-code", "--", self._remote, self._ref, accepts=_NO_SUCH_REF)
        if not told:
            return ""
        self._git("fetch", "--quiet", "--no-tags", "--", self._remote, self._ref)
        return told.split()[0]

    def _is_rewritten(self, tip: str) -> bool:
        """Whether the remote's branch has lost what stood there."""
        seen = self._commit_of(self._seen)
        return bool(seen) and (not tip or self._run(*self._at(), "merge-base", seen, tip, accepts=1) != seen)

    def _local(self) -> str:
        return self._commit_of(self._ref) or "0" * 40

    def _commit_of(self, ref: str) -> str:
        return self._run(*self._at(), "rev-parse", "--verify", "--quiet", ref, accepts=1)

    def _at(self) -> tuple[str, str]:
        return "--git-dir", str(self._repository)

    def _git(self, *arguments: str, given: str = "") -> str:
        return self._run(*self._at(), *arguments, given=given)

    def _run(self, *arguments: str, given: str = "", accepts: int = 0) -> str:
        try:
            done = subprocess.run(
                ["git", *_OPTIONS, *arguments],  # noqa: S607 - the operator's git, from the operator's path
                input=given,
                capture_output=True,
                text=True,
                timeout=self._timeout_s,
                check=False,
                # Away from any terminal, where git could ask for a password and wait.
                start_new_session=True,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise WorldError(f"{self.name}: git cannot be run: {error}", hint=_HINT) from error
        if done.returncode not in {0, accepts}:
            raise WorldError(f"{self.name}: {done.stderr.strip()[:300] or 'git failed'}", hint=_HINT)
        return done.stdout.strip() if done.returncode == 0 else ""
