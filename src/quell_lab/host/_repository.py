"""The git repository of the shop, and checking revisions out of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from dulwich import porcelain
from dulwich.objects import Blob, Commit, Tree
from dulwich.repo import Repo

from quell_lab._plan import SERVICES
from quell_lab.shop import EDITS, SETTINGS, Edit, first_release

AUTHOR = b"Shop team <team@shop.internal>"
FIRST = "v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One tagged commit."""

    tag: str
    commit: str
    message: str


class Repository:
    """Releases and settings of all services, as tagged commits."""

    def __init__(self, root: Path) -> None:
        self._root = root
        if not (root / ".git").exists():
            root.mkdir(parents=True, exist_ok=True)
            Repo.init(str(root)).close()
            for name in SERVICES:
                self._write(f"services/{name}/release.py", first_release(name))
                self._write(f"services/{name}/settings.json", json.dumps(SETTINGS[name], indent=1, sort_keys=True))
            self._commit("first release of the shop")
        self.main = self._newest().tag

    def edit(self, edit: Edit) -> Revision:
        """Commit an edit on top of the first release of its service."""
        source = (self._root / f"services/{edit.service}/release.py").read_text()
        assert edit.old in source, f"{edit.service} does not hold what the edit replaces"
        fresh = source.replace(edit.old, edit.new, 1)
        if "asyncio." in edit.new and "import asyncio" not in fresh:
            fresh = fresh.replace('"""\n\n', '"""\n\nimport asyncio\n', 1)
        self._write(f"services/{edit.service}/release.py", fresh)
        return self._commit(edit.message)

    def restore(self, service: str) -> Revision | None:
        """Commit the first release of a service again; None when nothing differs."""
        path = self._root / f"services/{service}/release.py"
        if path.read_text() == first_release(service):
            return None
        self._write(f"services/{service}/release.py", first_release(service))
        return self._commit(f"{service}: back to the first release")

    def set(self, service: str, key: str, value: float) -> Revision:
        """Commit one changed setting."""
        path = f"services/{service}/settings.json"
        values = {**json.loads((self._root / path).read_text()), key: value}
        self._write(path, json.dumps(values, indent=1, sort_keys=True))
        return self._commit(f"{service}: {key} = {value:g}")

    def check_out(self, service: str, tag: str, target: Path) -> tuple[Path, dict[str, float]]:
        """Write the files of one service at a tag below `target`; return the release file and the settings."""
        with Repo(str(self._root)) as repo:
            commit = repo[repo.refs[f"refs/tags/{tag}".encode()]]  # type: ignore[index]  # dulwich names refs by bytes
            assert isinstance(commit, Commit)
            release = self._blob(repo, commit, f"services/{service}/release.py")
            settings = self._blob(repo, commit, f"services/{service}/settings.json")
        target.mkdir(parents=True, exist_ok=True)
        (target / "release.py").write_bytes(release)
        return target / "release.py", json.loads(settings)

    def commit_of(self, tag: str) -> str:
        """Return the commit id behind a tag."""
        with Repo(str(self._root)) as repo:
            return repo.refs[f"refs/tags/{tag}".encode()].decode()  # type: ignore[index]  # as above

    def _blob(self, repo: Repo, commit: Commit, path: str) -> bytes:
        tree = repo[commit.tree]
        assert isinstance(tree, Tree)
        _mode, identity = tree.lookup_path(repo.__getitem__, path.encode())
        blob = repo[identity]
        assert isinstance(blob, Blob)
        return blob.data

    def _newest(self) -> Revision:
        with Repo(str(self._root)) as repo:
            numbers = [int(tag.decode()[1:]) for tag in repo.refs.as_dict(b"refs/tags")]  # type: ignore[arg-type]  # as above
        tag = f"v{max(numbers)}"
        return Revision(tag=tag, commit=self.commit_of(tag), message="")

    def _write(self, path: str, text: str) -> None:
        full = self._root / path
        full.parent.mkdir(parents=True, exist_ok=True)
        full.write_text(text)
        porcelain.add(str(self._root), paths=[str(full)])

    def _commit(self, message: str) -> Revision:
        commit = porcelain.commit(str(self._root), message=message.encode(), author=AUTHOR, committer=AUTHOR)
        with Repo(str(self._root)) as repo:
            tag = f"v{len(repo.refs.as_dict(b'refs/tags')) + 1}"  # type: ignore[arg-type]  # as above
        porcelain.tag_create(str(self._root), tag.encode(), objectish=commit)
        self.main = tag
        return Revision(tag=tag, commit=commit.decode(), message=message)


def edits_of(quality: str) -> tuple[Edit, ...]:
    """Return the edits of one quality, in their order."""
    return tuple(edit for edit in EDITS if edit.quality == quality)
