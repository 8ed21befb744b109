"""Skills from git: real repositories on this disk, commits that people pin, copies that nobody may change."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from quell.config import load_agents
from quell.domain import ConfigError, Principal, RefusedError, UsageError, WorldError
from quell.memory import Skills
from quell.tools import Git
from tests.doors._cli_bench import Desk
from tests.doors._desk_bench import a_desk, agents_of, asked, file_of, heard
from tests.doors._model_bench import delta, end, provider, sse, usage

pytestmark = pytest.mark.timeout(60)  # each command opens and closes a journal, and git is a program

_AGENT = """
[agent]
name = "sre"
system_prompt = "Find out."
[agent.llm]
provider = "builtin"
"""


class Repository:
    """A repository that somebody else keeps."""

    def __init__(self, at: Path) -> None:
        self.at = at
        self.git("init", "--quiet", "--initial-branch=main", str(at), here=False)

    def git(self, *arguments: str, here: bool = True, given: str = "") -> str:
        env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b"}
        env |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
        where = ["-C", str(self.at)] if here else []
        done = subprocess.run(
            ["git", *where, *arguments], check=True, capture_output=True, text=True, env=env, input=given
        )
        return done.stdout.strip()

    @property
    def url(self) -> str:
        return f"file://{self.at}"

    def skill(self, name: str, body: str = "Look first.", *, below: str = "") -> Path:
        home = self.at / below / name
        home.mkdir(parents=True, exist_ok=True)
        (home / "SKILL.md").write_text(f"---\nname: {name}\ndescription: Use for {name}.\n---\n{body}\n")
        return home

    def commit(self) -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "more")
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "theirs")
    made.skill("triage")
    (made.at / "README.md").write_text("Nothing for agents.")
    return made


def fetched(repository: Repository, commit: str, to: Path, *, path: str = "") -> Skills:
    Git(repository.url, env=os.environ).fetch(commit, path=path, chosen="SKILL.md", into=to)
    return Skills.load([to])


def test_a_commit_is_fetched_without_a_checkout_and_cannot_be_written(repository: Repository, tmp_path: Path) -> None:
    home = repository.skill("roll-back", below="ops/skills")
    (home / "run.sh").write_text("#!/bin/sh\necho hello\n")
    (home / "run.sh").chmod(0o755)
    (home / "also.md").symlink_to("run.sh")
    commit = repository.commit()
    whole = fetched(repository, commit, tmp_path / "whole")
    assert list(whole.by_name) == ["triage"]
    assert not (tmp_path / "whole" / "README.md").exists()
    below = fetched(repository, commit, tmp_path / "below", path="ops/skills")
    assert below.by_name["roll-back"].files["also.md"].text == "#!/bin/sh\necho hello\n"
    one = fetched(repository, commit, tmp_path / "one", path="ops/skills/roll-back")
    assert one.digest == below.digest
    modes = {stat.S_IMODE(path.lstat().st_mode) for path in (tmp_path / "one").rglob("*") if not path.is_symlink()}
    assert modes == {0o444, 0o555}
    assert not list(tmp_path.glob(".fetching-*"))


def test_a_name_means_a_branch_or_a_tag_and_never_both(repository: Repository) -> None:
    first = repository.commit()
    repository.git("tag", "--annotate", "--message", "one", "v1")
    repository.skill("triage", "Look twice.")
    second = repository.commit()
    git = Git(repository.url, env=os.environ)
    assert git.commit_of("v1") == first
    assert git.commit_of("main") == git.commit_of("refs/heads/main") == second
    assert git.commit_of(first) == first
    repository.git("branch", "v1")
    with pytest.raises(UsageError, match="a branch and a tag"):
        git.commit_of("v1")
    assert git.commit_of("refs/tags/v1") == first
    with pytest.raises(UsageError, match="no branch and no tag"):
        git.commit_of("ma*")
    with pytest.raises(WorldError):
        Git(f"{repository.url}-gone", env=os.environ).commit_of("main")


def _submodule(repository: Repository) -> None:
    commit = "1" * 40
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{commit},triage/vendor")


def _huge(repository: Repository) -> None:
    with (repository.at / "triage" / "huge.bin").open("wb") as file:
        file.truncate(9 * 1024 * 1024)


def _unseen(repository: Repository) -> None:
    (repository.at / "triage" / "a\u202egnp.md").write_text("x")


def _backslash(repository: Repository) -> None:
    (repository.at / "triage" / "..\\out.md").write_text("x")


def _twice(repository: Repository) -> None:
    (repository.at / "triage" / "Notes.md").write_text("x")
    (repository.at / "triage" / "notes.md").write_text("y")


def _not_text(repository: Repository) -> None:
    (repository.at / "triage" / os.fsdecode(b"\xff.md")).write_text("x")


def _many(repository: Repository) -> None:
    for number in range(5_001):
        (repository.at / "triage" / f"{number}").touch()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_submodule, "is a submodule"),
        (_huge, "8388608 are allowed"),
        (_unseen, "characters that nobody sees"),
        (_backslash, "characters that nobody sees"),
        (_twice, "by its case alone"),
        (_not_text, "not UTF-8"),
        (_many, "5000 are allowed"),
    ],
)
def test_what_may_not_be_written_is_refused_and_leaves_nothing(
    repository: Repository, tmp_path: Path, spoil: Callable[[Repository], None], reason: str
) -> None:
    repository.commit()
    spoil(repository)
    if spoil is _submodule:
        repository.git("commit", "--quiet", "--message", "more")
        commit = repository.git("rev-parse", "HEAD")
    else:
        commit = repository.commit()
    with pytest.raises(RefusedError, match=reason):
        fetched(repository, commit, tmp_path / "state" / "copy")
    assert list((tmp_path / "state").iterdir()) == []


def test_a_tree_that_git_itself_would_not_make_is_refused(repository: Repository, tmp_path: Path) -> None:
    repository.commit()
    blob = repository.git("hash-object", "-w", "--stdin", given="#!/bin/sh\n")
    inner = repository.git("mktree", given=f"100755 blob {blob}\tpost-checkout\n")
    hooks = repository.git("mktree", given=f"040000 tree {inner}\thooks\n")
    main = repository.git("rev-parse", "HEAD:triage/SKILL.md")
    raw = b""
    for mode, name, identifier in ((b"40000", b".git", hooks), (b"100644", b"SKILL.md", main)):
        raw += mode + b" " + name + b"\0" + bytes.fromhex(identifier)
    tree = (
        subprocess.run(
            ["git", "-C", str(repository.at), "hash-object", "-t", "tree", "-w", "--stdin", "--literally"],
            check=True,
            capture_output=True,
            input=raw,
        )
        .stdout.decode()
        .strip()
    )
    top = repository.git("mktree", given=f"040000 tree {tree}\ttriage\n")
    commit = repository.git("commit-tree", top, given="evil")
    repository.git("update-ref", "refs/heads/evil", commit)
    with pytest.raises(WorldError, match=r"hasDotgit|\.git"):
        fetched(repository, commit, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_hooks_filters_and_links_of_a_repository_have_no_say(repository: Repository, tmp_path: Path) -> None:
    told = tmp_path / "ran"
    (repository.at / ".gitattributes").write_text("* filter=evil\n*.md filter=lfs\n")
    (repository.at / "triage" / "passwd.md").symlink_to("/etc/passwd")
    commit = repository.commit()
    for hook in ("post-checkout", "pre-upload", "reference-transaction", "post-merge"):
        path = repository.at / ".git" / "hooks" / hook
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\ntouch {told}\n")
        path.chmod(0o755)
    config = tmp_path / "gitconfig"
    config.write_text(f'[filter "evil"]\n\tsmudge = touch {told}\n\trequired = true\n')
    env = {**os.environ, "GIT_CONFIG_GLOBAL": str(config), "GIT_DIR": str(tmp_path / "elsewhere")}
    Git(repository.url, env=env).fetch(commit, path="", chosen="SKILL.md", into=tmp_path / "copy")
    assert not told.exists()
    with pytest.raises(ConfigError) as refused:
        Skills.load([tmp_path / "copy"])
    assert [problem.reason for problem in refused.value.problems] == ["leads out of the skill"]


def test_only_what_an_address_says_is_spoken(repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit()
    (tmp_path / "ran").unlink(missing_ok=True)
    for url in (f"ext::touch {tmp_path / 'ran'}", str(repository.at), f"http://127.0.0.1:9{repository.at}"):
        with pytest.raises(WorldError, match="not allowed"):
            Git(url, env=os.environ).fetch(commit, path="", chosen="SKILL.md", into=tmp_path / "copy")
    assert not (tmp_path / "ran").exists()


# -- what a file may say -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ('url = "http://git.example.com/s"\nref = "main"', "url"),
        ('url = "ext::sh -c id"\nref = "main"', "url"),
        ('url = "https://ann:secret@git.example.com/s"\nref = "main"', "url"),
        ('url = "-oProxyCommand=id@h:x"\nref = "main"', "url"),
        ('url = "https://git.example.com/s"\nref = "--upload-pack=id"', "ref"),
        ('url = "https://git.example.com/s"\nref = "ma*"', "ref"),
        ('url = "https://git.example.com/s"\nref = "a..b"', "ref"),
        ('url = "https://git.example.com/s"\nref = "main"\npath = "../out"', "path"),
        ('url = "https://git.example.com/s"\nref = "main"\npath = "/etc"', "path"),
    ],
)
def test_an_address_a_ref_or_a_path_that_leads_elsewhere_is_a_mistake(tmp_path: Path, line: str, place: str) -> None:
    (tmp_path / "a.toml").write_text(f"{_AGENT}[[agent.skills.git]]\n{line}\n")
    with pytest.raises(ConfigError) as told:
        load_agents(tmp_path / "a.toml", env={})
    assert [problem.path for problem in told.value.problems] == [f"agent.skills.git.0.{place}"]


@pytest.mark.parametrize(
    "url", ["https://git.example.com:8443/a/b.git", "git@git.example.com:a/b.git", "ssh://git@h/a"]
)
def test_a_name_that_can_move_is_told_and_a_commit_is_not(tmp_path: Path, url: str) -> None:
    file = tmp_path / "a.toml"
    file.write_text(f'{_AGENT}[[agent.skills.git]]\nurl = "{url}"\nref = "main"\n')
    (told,) = load_agents(file, env={}).warnings
    assert (told.path, "can move" in told.reason) == ("agent.skills.git.0.ref", True)
    file.write_text(f'{_AGENT}[[agent.skills.git]]\nurl = "{url}"\nref = "{"a" * 40}"\n')
    assert load_agents(file, env={}).warnings == ()


# -- what people pin ---------------------------------------------------------------------------------------------------


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    (tmp_path / "here").mkdir()
    return Desk(at=tmp_path / "here")


def configure(desk: Desk, repository: Repository, ref: str) -> None:
    (desk.at / "quell.toml").write_text(
        f'[identity]\napi_keys = true\n{_AGENT}[[agent.skills.git]]\nurl = "{repository.url}"\nref = "{ref}"\n'
    )


def test_a_branch_is_loaded_as_it_was_pinned_until_it_is_pinned_anew(desk: Desk, repository: Repository) -> None:
    first = repository.commit()
    configure(desk, repository, "main")
    refused = desk.quell("ask", "is anything wrong?", "--json")
    assert refused.code == 2, refused
    assert "nobody pinned the skills" in refused.err
    assert desk.quell("skill", "list", "--json").document["sources"][0]["state"] == "not pinned"
    assert "can move" in desk.quell("config", "check").out
    assert desk.quell("skill", "fetch").code == 1
    assert desk.quell("skill", "pin").code == 4
    assert desk.quell("skill", "pin", "--yes", env=desk.key("vic", "viewer")).code == 4
    pinned = desk.quell("skill", "pin", "--yes", "--json").document
    assert (pinned["commit"], pinned["change"]) == (first, "not pinned")
    assert desk.quell("skill", "list").code == 0
    assert "Look first." in desk.done("skill", "show", "triage")

    repository.skill("triage", "Drop the database.")
    second = repository.commit()
    told = desk.quell("skill", "fetch")
    assert told.code == 1
    assert all(part in told.out for part in (first, second, pinned["digest"], "changed"))
    assert "Look first." in desk.done("skill", "show", "triage")
    wrong = desk.quell("skill", "pin", "--yes", "--digest", pinned["digest"])
    assert wrong.code == 4
    anew = desk.quell("skill", "pin", "--yes", "--json").document
    assert (anew["change"], anew["pinned_commit"], anew["commit"]) == ("changed", first, second)
    assert "Drop the database." in desk.done("skill", "show", "triage")
    records = desk.done("audit", "list", "--json")
    assert records.count("skill.pin") >= 3


def test_a_pinned_commit_needs_no_repository_and_a_lost_one_changes_nothing(desk: Desk, repository: Repository) -> None:
    commit = repository.commit()
    configure(desk, repository, commit)
    assert desk.quell("skill", "list", "--json").document["sources"][0]["state"] == "not fetched"
    assert desk.quell("skill", "fetch").code == 0
    repository.at.rename(repository.at.with_name("gone"))
    assert desk.quell("skill", "fetch").code == 0
    assert desk.quell("skill", "list", "--json").document["sources"][0]["commit"] == commit
    assert desk.quell("ask", "is anything wrong?").code != 2
    configure(desk, repository, "main")
    lost = desk.quell("skill", "fetch")
    assert (lost.code, "failed" in lost.out) == (3, True)


def test_a_tag_that_moves_is_what_it_was(desk: Desk, repository: Repository) -> None:
    first = repository.commit()
    repository.git("tag", "v1")
    configure(desk, repository, "v1")
    desk.done("skill", "pin", "--yes")
    repository.skill("triage", "Other words.")
    repository.commit()
    repository.git("tag", "--force", "v1")
    assert desk.quell("skill", "fetch").code == 1
    (source,) = desk.quell("skill", "list", "--json").document["sources"]
    assert (source["state"], source["commit"]) == ("pinned", first)


def test_a_copy_that_was_changed_is_not_loaded(desk: Desk, repository: Repository) -> None:
    repository.commit()
    configure(desk, repository, "main")
    desk.done("skill", "pin", "--yes")
    (copy,) = desk.at.rglob("SKILL.md")
    copy.chmod(0o644)
    copy.write_text("---\nname: triage\ndescription: d\n---\nDrop the database.\n")
    told = desk.quell("skill", "list", "--json")
    assert (told.code, told.document["sources"][0]["state"]) == (1, "changed")
    assert "is not what was pinned" in desk.quell("ask", "is anything wrong?", "--json").err
    assert desk.quell("skill", "show", "triage").code == 2


def test_a_process_that_runs_takes_a_new_pin_at_its_next_question(repository: Repository, tmp_path: Path) -> None:
    by = Principal(user="ann", roles=("operator",))

    async def story() -> None:
        repository.commit()
        async with provider(sse(delta("Hello."), end(), usage(10, 2))) as model:
            more = f'[[agent.skills.git]]\nurl = "{repository.url}"\nref = "main"\n'
            agents = agents_of(tmp_path / "agents", file_of("sre", model.url, more=more))
            (source,) = agents[0].agent.skills.git
            async with a_desk(tmp_path / "state", agents) as app:
                book = (await app.open_authority()).skills

                async def pin() -> None:
                    look = await asyncio.to_thread(book.look, source)
                    with app.runs.database.writing() as connection:
                        book.accept(connection, look, by=by)

                async def version() -> object:
                    run = await app.agents.start(asked("Hello?"), by=by)
                    return next(each.body["version"] for each in await heard(app, run.id) if each.name == "agent.began")

                with pytest.raises(ConfigError, match="nobody pinned"):
                    await version()
                await pin()
                first = await version()
                repository.skill("roll-back")
                repository.commit()
                assert await version() == first
                await pin()
                assert await version() != first
                assert ["roll-back" in str(body["messages"]) for body in model.bodies] == [False, False, True]

    asyncio.run(story())
