"""What a machine cannot do is refused or told, never left out quietly; what a policy may not open is a mistake."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from quell.domain import ConfigError, RefusedError, SandboxCapabilities, SandboxPolicy
from quell.tools import Sandbox
from quell.tools._cgroup import find_delegated, make_group, remove_group
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
            ("bubblewrap does not work here", "outlive", "no Landlock either", "no cgroup", "number of its processes"),
        ),
        (
            replace(BARE, landlock=7),
            ("bubblewrap does not", "outlive", "UDP and sockets", "no cgroup", "number of its processes"),
        ),
        (
            replace(BARE, landlock=3),
            ("bubblewrap does not", "outlive", "TCP, UDP", "signals", "no cgroup", "number of its"),
        ),
        (replace(FULL, landlock=0), ("only wall", "no cgroup")),
        (replace(FULL, is_root=True), ("no cgroup", "number of its processes")),
        (FULL, ("no cgroup",)),
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
    import subprocess  # noqa: PLC0415 - this test alone starts without the bench

    told = subprocess.run(wrapped.argv, env={}, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (126, "")
    assert "cannot be confined" in told.stderr


def test_a_delegated_group_is_found_and_gets_the_limits(tmp_path: Path) -> None:
    """A tree that looks like cgroup v2, for machines where nothing is delegated."""
    mount, own = tmp_path / "cgroup", tmp_path / "own"
    (mount / "service" / "main").mkdir(parents=True)
    own.write_text("3:cpu:/x\n0::/service/main\n")
    assert find_delegated(mount=mount, own=own) is None
    (mount / "service" / "cgroup.subtree_control").write_text("cpu memory pids\n")
    found = find_delegated(mount=mount, own=own)
    assert found == mount / "service"
    box = Sandbox(
        SandboxPolicy(need="best_effort", memory_max_bytes=123, processes_max=7),
        machine=replace(BARE, cgroup=str(found)),
    )
    wrapped = box.wrap(["/bin/true"], environment={})
    group = Path(wrapped.cgroup)
    assert group.parent == found
    assert (group / "memory.max").read_text() == "123"
    assert (group / "pids.max").read_text() == "7"
    assert "cgroup" in wrapped.layers
    assert not any("no cgroup" in sentence for sentence in wrapped.missing)


def test_a_group_that_cannot_be_made_is_told_to_be_missing(tmp_path: Path) -> None:
    box = Sandbox(SandboxPolicy(need="best_effort"), machine=replace(BARE, cgroup=str(tmp_path / "gone")))
    wrapped = box.wrap(["/bin/true"], environment={})
    assert wrapped.cgroup == ""
    assert any("no cgroup" in sentence for sentence in wrapped.missing)


@pytest.mark.skipif(not MACHINE.cgroup, reason="left out: no cgroup v2 with memory and pids is delegated to us")
def test_a_real_group_kills_what_passes_its_memory() -> None:
    group = make_group(Path(MACHINE.cgroup), f"quell-test-{os.getpid()}", memory_max_bytes=64 << 20, processes_max=8)
    remove_group(group)
    assert not group.exists()
    told = run(sandbox("both", memory_max_bytes=64 << 20), python("x = bytearray(128 << 20); print('took')"))
    assert told.stdout == ""
    assert told.returncode != 0
