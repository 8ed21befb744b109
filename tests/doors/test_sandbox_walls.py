"""A program in a sandbox touches what its policy names and nothing else; behind bubblewrap, Landlock, and both."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from quell.domain import SandboxPolicy
from quell.tools import Sandbox
from tests.doors._sandbox_bench import MACHINE, PYTHON, behind_each_wall, needs_bubblewrap, python, run, sandbox

pytestmark = pytest.mark.timeout(30)  # real programs, on machines that may be busy

CANARY = "canary-of-the-test"

TRY_ALL = """
import json, os, sys
told = {}
for path in sys.argv[1:]:
    try:
        told[path] = open(path).read()
    except OSError as error:
        told[path] = type(error).__name__
print(json.dumps(told))
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Directories `open` (read), `work` (write) and `secret` (not named in any policy)."""
    for name in ("open", "work", "secret"):
        (tmp_path / name).mkdir()
    (tmp_path / "open" / "note").write_text("for all")
    (tmp_path / "secret" / "key").write_text(CANARY)
    return tmp_path


@behind_each_wall
def test_it_reads_and_changes_what_the_policy_names_and_nothing_else(wall: str, place: Path) -> None:
    code = """
import os, sys
here = sys.argv[1]
print(open(f"{here}/open/note").read())
open(f"{here}/work/made", "w").write("by the program")
for path in (f"{here}/open/note", f"{here}/open/new", f"{here}/secret/key", "/usr/new", "/new", "/etc/new", "/dev/new"):
    try:
        open(path, "a").write("x")
        print("WROTE", path)
    except OSError:
        pass
for path in (f"{here}/secret/key", "/etc/shadow", "/etc/passwd", "/root/.bashrc", "/proc/1/environ"):
    try:
        if found := open(path).read():
            print("READ", path, found)
    except OSError:
        pass
"""
    box = sandbox(wall, read_only=(str(place / "open"),), read_write=(str(place / "work"),))
    told = run(box, python(code, str(place)))
    assert (told.returncode, told.stdout, told.stderr) == (0, "for all\n", "")
    assert (place / "work" / "made").read_text() == "by the program"
    assert (place / "open" / "note").read_text() == "for all"
    assert not (place / "open" / "new").exists()


@behind_each_wall
def test_links_and_other_ways_around_lead_to_nothing_outside(wall: str, place: Path) -> None:
    (place / "work" / "link").symlink_to(place / "secret")
    (place / "work" / "up").symlink_to("..")
    code = (
        """
import os
for link, target in (("own", "HERE/secret/key"), ("relative", "../secret/key")):
    os.symlink(target, f"HERE/work/{link}")
try:
    os.link("HERE/secret/key", "HERE/work/hard")
except OSError:
    pass
try:
    os.rename("HERE/secret", "HERE/work/moved")
except OSError:
    pass
""".replace("HERE", str(place))
        + TRY_ALL
    )
    ways = [
        *(f"{place}/work/{way}" for way in ("link/key", "up/secret/key", "own", "relative", "hard", "moved/key")),
        f"{place}/work/../secret/key",
        *(f"/proc/{process}/root{place}/secret/key" for process in ("self", "1", "2")),
        *(f"/proc/{process}/cwd{place}/secret/key" for process in ("self", "1")),
        f"/proc/self/fd/3{place}/secret/key",
    ]
    # A descriptor of the root directory leaks in: it is closed before the program begins.
    leaked = os.open("/", os.O_RDONLY)
    try:
        box = sandbox(wall, read_write=(str(place / "work"),))
        told = run(box, python(code, *ways), pass_fds=(leaked,))
    finally:
        os.close(leaked)
    assert told.returncode == 0, told.stderr
    assert CANARY not in told.stdout
    assert set(json.loads(told.stdout)) == set(ways)
    assert (place / "secret" / "key").exists()


@behind_each_wall
def test_it_cannot_mount_unshare_or_take_privileges(wall: str, place: Path) -> None:
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.mount(b"/", b"HERE/work", None, 4096, None), libc.umount2(b"/tmp", 2), libc.chroot(b"HERE/work"))
print(libc.unshare(0x10000000 | 0x00020000) if WALLED else -1)
for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/proc/mtrr", "/sys/kernel/uevent_helper"):
    try:
        os.open(path, os.O_WRONLY)
        print("OPENED", path)
    except OSError:
        pass
""".replace("HERE", str(place))
    code = code.replace("WALLED", str(wall != "landlock"))
    told = run(sandbox(wall, read_write=(str(place / "work"),)), python(code))
    mounted, unshared, *opened = told.stdout.splitlines()
    # The kernel lets a root that is confined by Landlock alone change its root, which opens no file to it.
    assert mounted.split()[:2] == ["-1", "-1"], told
    assert (unshared, opened) == ("-1", [])


@behind_each_wall
def test_it_reaches_no_server_of_this_machine(wall: str, place: Path) -> None:
    code = """
import socket, sys
try:
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=5) as wire:
        print(wire.recv(99).decode())
except OSError as error:
    print("no way")
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            wire, _ = server.accept()
            with wire:
                wire.sendall(CANARY.encode())

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            assert run(sandbox(wall), python(code, str(port))).stdout == "no way\n"
            # The same program under a policy that opens the network: the test can tell.
            assert run(sandbox(wall, network="host"), python(code, str(port))).stdout == f"{CANARY}\n"
        finally:
            with socket.create_connection(("127.0.0.1", port)):
                thread.join()


@behind_each_wall
def test_it_neither_sees_nor_signals_other_processes(wall: str) -> None:
    code = """
import os, signal, sys
try:
    print(sorted(int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) > 20))
except OSError:
    print([])
try:
    os.kill(int(sys.argv[1]), signal.SIGTERM)
    print("sent")
except OSError:
    print("no way")
"""
    with subprocess.Popen(["/bin/sleep", "30"]) as other:
        try:
            told = run(sandbox(wall), python(code, str(other.pid)))
            assert told.stdout == "[]\nno way\n", told
            assert other.poll() is None
        finally:
            other.kill()


KEY_CALLS = {"x86_64": (248, 250), "aarch64": (217, 219)}
KEYS = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
ADD, CONTROL = json.loads(sys.argv[1])
SESSION, USER = ctypes.c_int(-3), ctypes.c_int(-4)
"""
HOLDER = f"""{KEYS}
import subprocess
if libc.syscall(CONTROL, 1, None) < 0:  # a session of its own
    sys.exit(77)
for ring in (SESSION, USER):
    key = libc.syscall(ADD, b"user", b"quell:test", b"{CANARY}", ctypes.c_size_t({len(CANARY)}), ring)
    libc.syscall(CONTROL, 15, key, 20)  # gone after 20 seconds, whatever happens
    number = libc.syscall(CONTROL, 0, ring, 0)
    subprocess.run([*sys.argv[2:], sys.argv[1], str(key), str(number)], env={{}})
"""
THIEF = f"""{KEYS}
key, ring = map(int, sys.argv[2:])
libc.syscall(CONTROL, 8, ring, SESSION)  # what hangs in one's session may be read
found = ctypes.create_string_buffer(99)
print(libc.syscall(CONTROL, 11, key, found, ctypes.c_size_t(99)), found.value)
"""


@behind_each_wall
def test_it_has_no_key_of_its_starter_from_the_keyrings_of_the_kernel(wall: str) -> None:
    if platform.machine() not in KEY_CALLS:
        pytest.skip("left out: knows the numbers of calls on x86-64 and ARM only")
    numbers = json.dumps(KEY_CALLS[platform.machine()])
    start = [sys.executable, "-c", HOLDER, numbers]
    bare = subprocess.run([*start, PYTHON, "-c", THIEF], capture_output=True, text=True, check=False)
    if bare.returncode == 77:
        pytest.skip("left out: this machine gives out no keys")
    assert bare.stdout.count(CANARY) == 2, "without walls both are there: the test can tell"
    wrapped = sandbox(wall).wrap(python(THIEF), environment={})
    told = subprocess.run([*start, *wrapped.argv], capture_output=True, text=True, check=False)
    assert told.stdout == "-1 b''\n-1 b''\n", told


@behind_each_wall
def test_it_gets_the_variables_that_the_policy_names_and_no_argument_shows_their_values(wall: str) -> None:
    code = "import os; print(sorted(os.environ.items()))"
    box = sandbox(wall, environment=("PATH", "TOKEN", "NOT_SET"))
    given = {"TOKEN": f"{CANARY} =\n'", "OTHER": CANARY}
    told = run(box, python(code), environment=given)
    shown = eval(told.stdout)
    assert [pair for pair in shown if pair[0] not in {"PWD", "LC_CTYPE"}] == [
        ("PATH", "/usr/bin:/bin"),
        ("TOKEN", given["TOKEN"]),
    ]
    assert not any(CANARY in word for word in box.wrap(python(code), environment=given).argv)


@behind_each_wall
def test_it_dies_with_its_parent(wall: str) -> None:
    """All of it holds the pipe: when the pipe ends, nothing is left."""
    code = "import time\nprint('here', flush=True)\ntime.sleep(60)"
    wrapped = sandbox(wall).wrap(["/bin/sh", "-c", f'"{PYTHON}" -I -S -c "{code}"'], environment={"PATH": "/usr/bin"})
    starter = "import json, subprocess, sys; subprocess.run(json.loads(sys.argv[1]), env={'PATH': '/usr/bin'})"
    if wall == "landlock":
        # Without a namespace only the program itself goes: what it started is told to be missing.
        wrapped = sandbox(wall).wrap(python(code), environment={"PATH": "/usr/bin"})
    with subprocess.Popen([sys.executable, "-c", starter, json.dumps(wrapped.argv)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"here\n"
        parent.kill()
        assert parent.stdout.read() == b""


LIMITS = {
    "memory": ("x = bytearray(600 << 20); print('took', len(x))", {"memory_max_bytes": 300 << 20}),
    "file": ("open('HERE/big', 'wb').write(b'x' * (2 << 20)); print('wrote')", {"file_max_bytes": 1 << 20}),
    "files": ("o = [open('/dev/null') for _ in range(100)]; print('opened')", {"files_max": 64}),
    "cpu": ("while True: pass", {"cpu_s": 1}),
}


@behind_each_wall
@pytest.mark.parametrize("what", LIMITS)
def test_it_ends_at_its_limits(wall: str, what: str, place: Path) -> None:
    code, policy = LIMITS[what]
    box = sandbox(wall, read_write=(str(place / "work"),), **policy)
    told = run(box, python(code.replace("HERE", str(place / "work"))))
    assert told.returncode != 0
    assert told.stdout == ""


@needs_bubblewrap
@pytest.mark.parametrize("path", ["/tmp/big", "/dev/shm/big"])
def test_its_own_temporary_files_are_bounded(path: str) -> None:
    told = run(
        sandbox("both", temporary_max_bytes=1 << 20),
        python(f"f = open({path!r}, 'wb', buffering=0)\nfor _ in range(40): assert f.write(b'x' * 65536) == 65536"),
    )
    assert "No space left" in told.stderr or "AssertionError" in told.stderr
    assert not Path(path).exists()


@needs_bubblewrap
@pytest.mark.skipif(not os.access("/usr/bin/python3", os.X_OK), reason="left out: needs /usr/bin/python3")
def test_it_starts_no_more_processes_than_its_policy_allows() -> None:
    shim = Path(__file__).parents[2] / "src" / "quell" / "tools" / "_landlock.py"
    if os.geteuid() == 0 and any(not parent.stat().st_mode & 0o005 for parent in shim.parents):
        pytest.skip("left out: needs a checkout that other users may read")
    code = """
import os, signal
made = []
try:
    while len(made) < 200:
        pid = os.fork()
        if not pid:
            signal.pause()
        made.append(pid)
except OSError as error:
    print(type(error).__name__)
print(len(made) < 30)
for pid in made:
    os.kill(pid, signal.SIGKILL)
"""
    box = Sandbox(SandboxPolicy(processes_max=30), machine=MACHINE, interpreter="/usr/bin/python3")
    # Limits on numbers do not bind root, so that this one is another's.
    nobody: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    told = run(box, ["/usr/bin/python3", "-I", "-S", "-c", code], **nobody)
    assert told.stdout == "BlockingIOError\nTrue\n", told


@behind_each_wall
def test_it_talks_over_its_pipes_and_ends_with_all_that_it_started_when_it_is_told_to(wall: str) -> None:
    code = "import os, sys; print(sys.stdin.readline().strip(), flush=True); os.execv('/bin/sleep', ['sleep', '60'])"
    wrapped = sandbox(wall).wrap(python(code), environment={"PATH": "/usr/bin"})
    with subprocess.Popen(
        wrapped.argv, env=wrapped.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(b"over the pipe\n")
        program.stdin.flush()
        assert program.stdout.readline() == b"over the pipe\n"
        program.terminate()
        assert program.stdout.read() == b""
        assert program.wait() != 0
