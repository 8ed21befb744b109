"""`--server URL` with a real `quell serve` behind it: questions, approvals and ends by HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests._quell import error_of, quell, started, wait_for_line
from tests.doors._chat_bench import agent_file, calls, played, says
from tests.doors._cli_bench import Desk
from tests.doors._model_bench import silence

pytestmark = pytest.mark.timeout(120)  # whole processes, a server among them

QUIET = ("--set", "detection.enabled=false", "--set", "store.url=http://127.0.0.1:9")


@contextmanager
def server(at: Path) -> Iterator[str]:
    """Run a server on a free port, and yield its URL."""
    with started("serve", "--port", "0", *QUIET, cwd=at) as process:
        told = wait_for_line(process, "ready: ")
        yield told.split()[1]


def typed(*lines: str, url: str, cwd: Path, env: Mapping[str, str]) -> str:
    """Type lines into `quell chat --server`, and return what was said."""
    told = quell("chat", "--server", url, cwd=cwd, env=env, stdin="\n".join(lines) + "\n")
    return told.stdout + told.stderr


def test_a_call_that_waits_on_a_server_is_approved_by_somebody_else_over_http(tmp_path: Path) -> None:
    desk = Desk(at=tmp_path)
    desk.configure()
    desk.pin_all()
    asker, bob = desk.key("ann", "operator"), desk.key("bob", "approver")
    tool = next(name for name in desk.done("tool", "list").split() if name.endswith("restart"))
    with played(calls(tool, service="web"), says("Restarted [e1].")) as model:
        agent_file(tmp_path, model.url)
        with server(tmp_path) as url:
            parked = quell("ask", "restart web", "--server", url, "--json", cwd=tmp_path, env=asker)
            assert (parked.returncode, parked.stdout) == (5, ""), parked
            error = error_of(parked)
            approval, run = str(error["approval"]), str(error["run"])
            assert approval.startswith("apr_")

            def says_to(person: Mapping[str, str], line: str) -> str:
                return typed(line, url=url, cwd=tmp_path, env=person)

            assert approval in says_to(bob, "/approval list")
            shown = says_to(bob, f"/approval show {approval}")
            assert tool in shown
            found = re.search(r"digest: (\S+)", shown)
            assert found is not None, shown
            refused = says_to(bob, f"/approval approve {approval} --digest {'0' * 20}")
            assert "error:" in refused
            own = says_to(asker, f"/approval approve {approval} --digest {found[1]}")
            assert "error:" in own, "who asked approves nothing"
            said = says_to(bob, f"/approval approve {approval} --digest {found[1]}")
            assert "error:" not in said, said
            assert "nothing waits for people" in says_to(bob, "/approval list")

            for _ in range(200):
                if "succeeded" in (seen := says_to(asker, f"/run show {run}")):
                    break
                time.sleep(0.05)
            assert "succeeded" in seen, seen
    trace = quell("run", "trace", run, cwd=tmp_path).stdout
    assert f"people were asked: {approval}" in trace


def test_ctrl_c_and_run_cancel_end_a_run_of_a_server_for_good(tmp_path: Path) -> None:
    with played(silence()) as model:
        agent_file(tmp_path, model.url)
        with server(tmp_path) as url:
            with started("ask", "hello?", "--server", url, cwd=tmp_path) as process:
                while not model.bodies:
                    time.sleep(0.02)
                time.sleep(0.3)
                os.kill(process.pid, signal.SIGINT)
                out, err = process.communicate(timeout=20)
            assert (process.returncode, out) == (130, b""), err
            assert b"cancelled run_" in err
            assert f" --server {url}`".encode() in err, "where its trace is"

            with started("ask", "again?", "--server", url, cwd=tmp_path) as process:
                while len(model.bodies) < 2:
                    time.sleep(0.02)
                running = json.loads(quell("run", "list", "--json", cwd=tmp_path).stdout)["runs"][0]
                assert running["status"] == "running"
                said = typed(f"/run cancel {running['id']}", url=url, cwd=tmp_path, env={})
                assert "is cancelled" in said
                _, err = process.communicate(timeout=20)
            assert process.returncode != 0, err
            assert b"cancelled" in err, err
    runs = json.loads(quell("run", "list", "--json", cwd=tmp_path).stdout)["runs"]
    assert [each["status"] for each in runs] == ["cancelled", "cancelled"]
