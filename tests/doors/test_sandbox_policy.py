"""What a machine cannot do is refused or told, never left out quietly; what a policy may not open is a mistake."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from quell.domain import ConfigError, RefusedError, SandboxCapabilities, SandboxPolicy
from quell.tools import Sandbox
from quell.tools._cgroup import find_delegated, limits_of
from tests.doors._sandbox_bench import MACHINE, behind_each_wall, python, run, sandbox

BARE = SandboxCapabilities(bubblewrap="", problem="no bwrap", landlock=0, cgroup="", is_root=False)
FULL = SandboxCapabilities(bubblewrap="/usr/bin/bwrap", problem="", landlock=7, cgroup="", is_root=False)


def test_a_sandbox_that_is_required_and_cannot_be_built_is_refused() -> None:
    with pytest.raises(RefusedError, match="no sandbox on this machine: no bwrap") as caught:
        Sandbox(SandboxPolicy(), machine=BARE)
    assert "best_effort" in caught.value.hint


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (
            BARE,
            (
                "bubblewrap does not work here",
                "outlive",
                "no Landlock either",
                "with memory",
                "number of its processes",
            ),
        ),
        (
            replace(BARE, landlock=7),
            ("bubblewrap does not", "outlive", "UDP and sockets", "with memory", "number of its processes"),
        ),
        (
            replace(BARE, landlock=3),
            ("bubblewrap does not", "outlive", "TCP, UDP", "signals", "with memory", "number of its"),
        ),
        (replace(FULL, landlock=0), ("only wall", "with memory")),
        (replace(FULL, is_root=True), ("with memory", "number of its processes")),
        (FULL, ("with memory",)),
    ],
)
def test_everything_that_nothing_holds_is_told(machine: SandboxCapabilities, words: tuple[str, ...]) -> None:
    box = Sandbox(SandboxPolicy(need="best_effort"), machine=machine)
    missing = box.wrap(["/bin/true"], environment={}).missing
    assert len(missing) == len(words)
    assert all(word in sentence for word, sentence in zip(words, missing, strict=True))


def test_without_any_wall_the_program_runs_with_its_limits_and_variables_alone() -> None:
    box = Sandbox(SandboxPolicy(need="best_effort", environment=("A",), files_max=64), machine=BARE)
    code = (
        "import os, resource; print(os.environ['A'], 'PATH' in os.environ, resource.getrlimit(resource.RLIMIT_NOFILE));"
        "print([line.split()[1] for line in open('/proc/self/status') if line.startswith(('NoNewPrivs', 'Seccomp:'))])"
    )
    told = run(box, python(code), environment={"A": "1"})
    assert told.stdout == "1 False (64, 64)\n['1', '2']\n", told
    assert box.wrap(["/bin/true"], environment={}).layers == ("rlimits",)


def test_paths_that_must_not_be_opened_are_told_all_at_once(tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(state)
    policy = SandboxPolicy(
        read_only=("/", "relative", "/usr/../etc", "/proc/1", "/no/such/place"),
        read_write=(str(state), str(state / "sub"), str(tmp_path), str(tmp_path / "link"), "/usr"),
    )
    with pytest.raises(ConfigError) as caught:
        Sandbox(policy, protected=(str(state),), machine=FULL)
    reasons = [problem.reason.removeprefix(str(tmp_path)) for problem in caught.value.problems]
    assert reasons == [
        "/ is never opened to a program",
        "relative is no absolute path",
        "/usr/../etc is no absolute path",
        "/proc/1 is never opened to a program",
        "/no/such/place is not there",
        "/state holds what Quell keeps for itself",
        "/state/sub holds what Quell keeps for itself",
        " holds what Quell keeps for itself",
        "/link holds what Quell keeps for itself",
    ]


@pytest.mark.parametrize("name", ["LD_PRELOAD", "LD_LIBRARY_PATH", "A=B", "", "A\0B", "1A"])
def test_variables_that_would_act_before_the_walls_stand_are_mistakes(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Sandbox(SandboxPolicy(environment=("PATH", name)), machine=FULL)
    assert [problem.path for problem in caught.value.problems] == ["sandbox.environment"]


@behind_each_wall
def test_a_program_that_is_not_mounted_says_so(wall: str, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho ran\n")
    program.chmod(0o755)
    told = run(sandbox(wall), [str(program)])
    assert (told.returncode, told.stdout) == (127, "")
    assert "mount its files" in told.stderr
    assert run(sandbox(wall, read_only=(str(program),)), [str(program)]).stdout == "ran\n"


@pytest.mark.skipif(not MACHINE.landlock, reason="left out: the kernel has no Landlock")
def test_a_program_that_cannot_be_confined_is_not_started(tmp_path: Path) -> None:
    (tmp_path / "was_a_directory").mkdir()
    box = sandbox("landlock", read_only=(str(tmp_path / "was_a_directory"),))
    wrapped = box.wrap(["/bin/echo", "ran"], environment={})
    (tmp_path / "was_a_directory").rmdir()
    (tmp_path / "was_a_directory").symlink_to("was_a_directory")
    told = subprocess.run(wrapped.argv, env={}, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (126, "")
    assert "cannot be confined" in told.stderr


@pytest.mark.parametrize(("landlock", "is_told"), [(0, True), (5, True), (6, False)])
def test_the_abstract_sockets_of_the_hosts_network_are_told_of_where_nothing_closes_them(
    landlock: int, is_told: bool
) -> None:
    told = {}
    for network in ("host", "none"):
        policy = SandboxPolicy(need="best_effort", network=network)
        box = Sandbox(policy, machine=replace(FULL, landlock=landlock))
        told[network] = any("abstract" in sentence for sentence in box.wrap(["/bin/true"], environment={}).missing)
    assert told == {"host": is_told, "none": False}


@pytest.mark.parametrize(
    ("limits", "held", "missing"),
    [
        ("cpu memory pids", {"memory.max": "123", "pids.max": "7"}, []),
        ("pids", {"pids.max": "7"}, ["with memory"]),
        ("memory", {"memory.max": "123"}, ["with pids"]),
    ],
)
def test_a_delegated_group_is_found_wherever_it_is_mounted_and_gets_what_limits_there_are(
    limits: str, held: dict[str, str], missing: list[str], tmp_path: Path
) -> None:
    """A tree that looks like cgroup v2, for machines where nothing is delegated."""
    mount, own, mounts = tmp_path / "unified", tmp_path / "own", tmp_path / "mounts"
    (mount / "service" / "main").mkdir(parents=True)
    own.write_text("3:cpu:/x\n0::/service/main\n")
    mounts.write_text(f"proc /proc proc rw 0 0\ncgroup /elsewhere cgroup rw 0 0\ncgroup2 {mount} cgroup2 rw 0 0\n")
    assert find_delegated(mounts=mounts, own=own) is None
    (mount / "service" / "cgroup.subtree_control").write_text(f"{limits}\n")
    place = mount / "service"
    if not missing:  # a limit that is not on is switched on, which a file that only looks like one does not survive
        assert find_delegated(mounts=mounts, own=own) == place
    box = Sandbox(
        SandboxPolicy(need="best_effort", memory_max_bytes=123, processes_max=7),
        machine=replace(BARE, cgroup=str(place)),
    )
    wrapped = box.wrap(["/bin/true"], environment={})
    group = Path(wrapped.cgroup)
    assert group.parent == place
    told = {name: (group / name).read_text() for name in ("memory.max", "pids.max") if (group / name).exists()}
    assert told == held
    assert "cgroup" in wrapped.layers
    assert [words for words in ("with memory", "with pids") if any(words in one for one in wrapped.missing)] == missing


def test_groups_of_processes_that_are_gone_are_removed_and_no_name_is_taken_twice(tmp_path: Path) -> None:
    (tmp_path / "cgroup.subtree_control").write_text("pids\n")
    kept = [f"quell-{os.getpid()}-0", "quell-1-0", "quell-999999999-0x", "other"]
    for name in (*kept, "quell-999999999-0"):
        (tmp_path / name).mkdir()
    box = Sandbox(SandboxPolicy(need="best_effort"), machine=replace(BARE, cgroup=str(tmp_path)))
    made = Path(box.wrap(["/bin/true"], environment={}).cgroup).name
    assert made == f"quell-{os.getpid()}-1"
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {*kept, made}


def test_a_group_that_cannot_be_made_is_told_to_be_missing(tmp_path: Path) -> None:
    box = Sandbox(SandboxPolicy(need="best_effort"), machine=replace(BARE, cgroup=str(tmp_path / "gone")))
    wrapped = box.wrap(["/bin/true"], environment={})
    assert wrapped.cgroup == ""
    assert any("with memory" in sentence for sentence in wrapped.missing)


HELD = limits_of(Path(MACHINE.cgroup)) if MACHINE.cgroup else frozenset()


@pytest.mark.skipif("memory" not in HELD, reason="left out: no cgroup v2 with memory is delegated to us")
def test_a_real_group_kills_what_passes_its_memory() -> None:
    told = run(sandbox("both", memory_max_bytes=64 << 20), python("x = bytearray(128 << 20); print('took')"))
    assert told.stdout == ""
    assert told.returncode != 0


BREEDING = """
import os, signal
made = 0
try:
    while made < 60:
        if not os.fork():
            signal.pause()
        made += 1
except OSError as error:
    print(type(error).__name__, made < 20, flush=True)
signal.pause()
"""


@pytest.mark.skipif("pids" not in HELD, reason="left out: no cgroup v2 with pids is delegated to us")
@behind_each_wall
def test_a_real_group_holds_a_program_that_forks_even_as_root_and_all_of_it_goes_with_its_group(wall: str) -> None:
    box = sandbox(wall, processes_max=20)
    wrapped = box.wrap(python(BREEDING), environment={})
    with subprocess.Popen(wrapped.argv, env={}, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "BlockingIOError True\n"
        assert len((Path(wrapped.cgroup) / "cgroup.procs").read_text().split()) == 20
        box.release(wrapped)
        assert program.stdout.read() == "", "nothing holds the pipe any more"
    assert not Path(wrapped.cgroup).exists()
