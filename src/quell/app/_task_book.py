"""Tasks of other agents: each is a chain of runs, the newest of which is where it stands; and who is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from quell.domain import AgentTask, Clock, Principal, TaskHook
from quell.runs import Connection, Database

TABLES = (
    (
        "CREATE TABLE IF NOT EXISTS quell_agent_tasks (number {number}, task TEXT NOT NULL, run TEXT NOT NULL UNIQUE,"
        " context TEXT NOT NULL, tenant TEXT NOT NULL, owner TEXT NOT NULL, at TEXT NOT NULL)"
    ),
    "CREATE INDEX IF NOT EXISTS quell_agent_tasks_by ON quell_agent_tasks (task, number)",
    (
        "CREATE TABLE IF NOT EXISTS quell_task_hooks (task TEXT NOT NULL, hook TEXT NOT NULL, settings TEXT NOT NULL,"
        " told TEXT NOT NULL, tries INTEGER NOT NULL, due_at TEXT NOT NULL, PRIMARY KEY (task, hook))"
    ),
)


class TaskBook:
    """Keeps tasks and hooks in the journal; it blocks."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        """Make the tables where they are missing."""
        self._database = database
        self._clock = clock
        with database.writing() as connection:
            connection.make_tables(TABLES)

    def add(self, task: str, *, run: str, context: str, by: Principal) -> None:
        """Note the newest run of a task; twice is once."""
        with self._database.writing() as connection:
            connection.run(
                "INSERT INTO quell_agent_tasks (task, run, context, tenant, owner, at)"
                " VALUES (:task, :run, :context, :tenant, :owner, :at) ON CONFLICT (run) DO NOTHING",
                task=task,
                run=run,
                context=context,
                tenant=by.tenant,
                owner=by.user,
                at=self._clock().isoformat(),
            )

    def find(self, task: str, *, by: Principal | None) -> AgentTask | None:
        """Return where a task stands; None when there is none of this caller. None for `by` asks for ourselves."""
        whose = "" if by is None else " AND tenant = :tenant AND owner = :owner"
        names = {} if by is None else {"tenant": by.tenant, "owner": by.user}
        with self._database.reading() as connection:
            row = connection.first(
                "SELECT number, task, run, context, at FROM quell_agent_tasks WHERE task = :task"
                f"{whose} ORDER BY number DESC LIMIT 1",
                task=task,
                **names,
            )
        return None if row is None else _task(row)

    def runs_of(self, task: str) -> Sequence[str]:
        """Return the runs of a task, the oldest first."""
        with self._database.reading() as connection:
            rows = connection.all("SELECT run FROM quell_agent_tasks WHERE task = :task ORDER BY number", task=task)
        return [row.run for row in rows]

    def listed(self, *, by: Principal, context: str, before: int, rows_max: int) -> Sequence[AgentTask]:
        """Return the caller's tasks whose newest run is older than a number, the newest first."""
        of_context = " AND context = :context" if context else ""
        with self._database.reading() as connection:
            rows = connection.all(
                "SELECT number, task, run, context, at FROM quell_agent_tasks WHERE number IN (SELECT max(number)"
                f" FROM quell_agent_tasks WHERE tenant = :tenant AND owner = :owner{of_context} GROUP BY task)"
                " AND number < :before ORDER BY number DESC LIMIT :most",
                tenant=by.tenant,
                owner=by.user,
                before=before,
                most=rows_max,
                **({"context": context} if context else {}),
            )
        return [_task(row) for row in rows]

    def put_hook(self, task: str, hook: str, *, settings: str) -> None:
        """Keep who wants to be told; the same id again replaces it."""
        with self._database.writing() as connection:
            connection.run("DELETE FROM quell_task_hooks WHERE task = :task AND hook = :hook", task=task, hook=hook)
            connection.run(
                "INSERT INTO quell_task_hooks (task, hook, settings, told, tries, due_at)"
                " VALUES (:task, :hook, :settings, '', 0, '')",
                task=task,
                hook=hook,
                settings=settings,
            )

    def hooks(self, task: str) -> Sequence[TaskHook]:
        """Return who wants to be told of a task."""
        with self._database.reading() as connection:
            rows = connection.all(
                "SELECT task, hook, settings, told, tries FROM quell_task_hooks WHERE task = :task ORDER BY hook",
                task=task,
            )
        return [_hook(row) for row in rows]

    def due_hooks(self, *, rows_max: int, after: tuple[str, str] = ("", "")) -> Sequence[TaskHook]:
        """Return who may have to be told something now, in the order of tasks; `after` is the last of an earlier look."""
        with self._database.reading() as connection:
            rows = connection.all(
                "SELECT task, hook, settings, told, tries FROM quell_task_hooks WHERE due_at <= :now"
                " AND (task > :task OR (task = :task AND hook > :hook)) ORDER BY task, hook LIMIT :most",
                now=self._clock().isoformat(),
                task=after[0],
                hook=after[1],
                most=rows_max,
            )
        return [_hook(row) for row in rows]

    def told(self, hook: TaskHook, *, state: str) -> None:
        """Note what somebody was told."""
        self._mark(hook, told=state, tries=0, due_at="")

    def not_told(self, hook: TaskHook, *, again_at: datetime) -> None:
        """Note that somebody could not be told, and when to try again."""
        self._mark(hook, told=hook.told, tries=hook.tries + 1, due_at=again_at.isoformat())

    def drop_hook(self, task: str, hook: str) -> bool:
        """Tell somebody nothing more; False when nobody was there."""
        with self._database.writing() as connection:
            gone = connection.run(
                "DELETE FROM quell_task_hooks WHERE task = :task AND hook = :hook", task=task, hook=hook
            )
        return gone == 1

    def _mark(self, hook: TaskHook, *, told: str, tries: int, due_at: str) -> None:
        with self._database.writing() as connection:
            connection.run(
                "UPDATE quell_task_hooks SET told = :told, tries = :tries, due_at = :due_at"
                " WHERE task = :task AND hook = :hook",
                told=told,
                tries=tries,
                due_at=due_at,
                task=hook.task,
                hook=hook.id,
            )


def forget_tasks(connection: Connection) -> int:
    """Forget tasks whose runs are gone, and who wanted to be told of them; return how many runs of tasks."""
    connection.make_tables(TABLES)
    gone = connection.run("DELETE FROM quell_agent_tasks WHERE run NOT IN (SELECT id FROM quell_runs)")
    connection.run("DELETE FROM quell_task_hooks WHERE task NOT IN (SELECT task FROM quell_agent_tasks)")
    return gone


def _task(row: object) -> AgentTask:
    number, task, run, context, at = (getattr(row, name) for name in ("number", "task", "run", "context", "at"))
    return AgentTask(number=number, task=task, run=run, context=context, at=datetime.fromisoformat(at))


def _hook(row: object) -> TaskHook:
    task, hook, settings, told, tries = (getattr(row, name) for name in ("task", "hook", "settings", "told", "tries"))
    return TaskHook(task=task, id=hook, settings=settings, told=told, tries=tries)
