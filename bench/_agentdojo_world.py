"""The other end of the bridge, run by the benchmark's own Python: holds its worlds, does one tool call per line, judges.

Imports nothing of Quell. Lines of JSON on standard input, one line each on standard output.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

warnings.simplefilter("ignore")

from agentdojo.agent_pipeline.tool_execution import tool_result_to_str  # type: ignore[import-not-found]  # noqa: E402
from agentdojo.functions_runtime import FunctionCall, FunctionsRuntime  # type: ignore[import-not-found]  # noqa: E402
from agentdojo.task_suite.load_suites import get_suites  # type: ignore[import-not-found]  # noqa: E402
from agentdojo.types import text_content_block_from_string  # type: ignore[import-not-found]  # noqa: E402

VERSION = "v1.2.2"
SUITES = get_suites(VERSION)
FRESH = {name: suite.load_and_inject_default_environment({}) for name, suite in SUITES.items()}
"""The world of each suite as it is before any episode; reading one takes longer than copying it."""


class Episode:
    """One world with a user's task in it, and perhaps an attacker's."""

    def __init__(self, suite: str, user: str, injection: str) -> None:
        self.suite = SUITES[suite]
        self.user = self.suite.user_tasks[user]
        self.injection = self.suite.injection_tasks[injection] if injection else None
        self.world = self.user.init_environment(FRESH[suite].model_copy(deep=True))
        self.before = self.world.model_copy(deep=True)
        self.runtime = FunctionsRuntime(self.suite.tools)

    def plan(self) -> dict[str, object]:
        """Say what both tasks' ground truths want done and said."""
        wanted = {"user": self.user, "injection": self.injection}
        return {
            name: {
                "calls": [[call.function, _plain(call.args)] for call in task.ground_truth(self.before)],
                "output": task.GROUND_TRUTH_OUTPUT,
            }
            for name, task in wanted.items()
            if task is not None
        }

    def call(self, function: str, args: dict[str, Any]) -> dict[str, object]:
        """Do one call."""
        result, error = self.runtime.run_function(self.world, function, args)
        return {"result": tool_result_to_str(result) if error is None else "", "error": error or ""}

    def judge(self, calls: list[Any], output: str) -> dict[str, object]:
        """Say whether the user's task was done, and the attacker's."""
        trace = [FunctionCall(function=function, args=args) for function, args in calls]
        said = [text_content_block_from_string(output)]

        def check(task: Any) -> bool:
            return bool(self.suite._check_task_result(task, said, self.before, self.world, trace))  # noqa: SLF001

        return {
            "utility": check(self.user),
            "attacked": check(self.injection) if self.injection is not None else False,
        }


def _plain(args: Any) -> Any:
    return json.loads(json.dumps(dict(args), default=str))


def catalogue() -> dict[str, object]:
    """Return every suite with its tools and tasks."""
    return {
        name: {
            "tools": [
                {"name": tool.name, "description": tool.description, "schema": tool.parameters.model_json_schema()}
                for tool in suite.tools
            ],
            "users": list(suite.user_tasks),
            "injections": list(suite.injection_tasks),
            "inventory": inventory(suite),
        }
        for name, suite in SUITES.items()
    }


def inventory(suite: Any) -> dict[str, list[str]]:
    """Return the names that the user's own world has before anybody attacks: what arguments can be enumerated from."""
    world = FRESH[suite.name].model_dump(mode="json")
    found: dict[str, list[str]] = {
        "person": [person["email"] for person in _at(world, "inbox", "contact_list")],
        "event": [str(event) for event in _at(world, "calendar", "events")],
        "account": [str(_at(world, "bank_account", "iban"))] if "bank_account" in world else [],
    }
    for kind in ("transactions", "scheduled_transactions"):
        for one in _at(world, "bank_account", kind):
            found["account"] += [one["recipient"], one["sender"]]
    return {kind: sorted(set(names)) for kind, names in found.items()}


def _at(world: Any, *path: str) -> Any:
    for step in path:
        world = world.get(step, {}) if isinstance(world, dict) else {}
    return world


def main() -> None:
    """Answer one line after the other."""
    episode: Episode | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        answer: object
        match asked.pop("op"):
            case "catalogue":
                answer = catalogue()
            case "begin":
                episode = Episode(**asked)
                answer = episode.plan()
            case "call":
                assert episode is not None, "begin first"
                answer = episode.call(**asked)
            case op:
                assert episode is not None, "begin first"
                assert op == "judge", f"no such thing: {op}"
                answer = episode.judge(**asked)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
