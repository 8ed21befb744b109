"""The only file that knows DBOS: it queues, hands out, counts and recovers workflows. One workflow is one segment.

Loaded at launch only, as importing it costs more than a whole listing of runs.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa
from dbos import DBOS, DBOSClient, DBOSConfig, SetWorkflowID
from dbos._serialization import DBOSPortableJSONSerializer

from quell.domain import JournalError
from quell.runs._database import explain

if TYPE_CHECKING:
    from dbos import WorkflowStatus

APPLICATION = "quell"
APPLICATION_VERSION = "1"
"""Fixed, so that an upgrade of Quell or of dbos strands nothing: raise it only when segments of old cannot be executed."""
_WORKFLOW = "segment_v1"
_POLLING_S = 0.25
_AT_ONCE_MAX = 8
_NOTICES_S = 0.1
_THREADS_MAX = 16
_RECOVERIES_MAX = 20
_CHUNK = 200
_ACTIVE = ("ENQUEUED", "DELAYED", "PENDING")

Execute = Callable[[str, int], Awaitable[None]]
"""Executes one dispatch of a run, on the loop of its owner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatched:
    """What DBOS knows of one workflow."""

    status: str
    executor: str

    @property
    def is_active(self) -> bool:
        """Whether it is still to run, or runs."""
        return self.status in _ACTIVE


class _Owner:
    """The dispatcher that workflows of this process belong to; there is one at most."""

    present: Dispatcher | None = None
    declared: Callable[..., Awaitable[None]] | None = None
    lock = threading.Lock()


class _Forward(logging.Handler):
    """Hands DBOS's own records to our logger, from warnings on."""

    def emit(self, record: logging.LogRecord) -> None:
        if "Asyncio task cancelled" not in str(record.msg):  # what closing looks like; the rest of the run is recovered
            logging.getLogger("quell.runs").handle(record)


def _quiet() -> None:
    logger = logging.getLogger("dbos")
    if not logger.handlers:  # its own console handler comes only where there is none
        logger.addHandler(_Forward(level=logging.WARNING))
    logger.propagate = False
    logger.setLevel(logging.WARNING)


def _segment() -> Callable[..., Awaitable[None]]:
    """Return the one workflow, registered once per process."""
    if _Owner.declared is None:

        @DBOS.workflow(name=_WORKFLOW, max_recovery_attempts=_RECOVERIES_MAX)
        async def segment(run: str, dispatch: int) -> None:
            owner = _Owner.present
            if owner is None:
                raise asyncio.CancelledError
            await owner.execute_elsewhere(run, dispatch)

        _Owner.declared = segment
    return _Owner.declared


class Dispatcher:
    """DBOS of this process, launched under the token of a lease. Every method blocks: call it from a thread."""

    def __init__(self, engine: sa.Engine, *, where: str, execute: Execute, loop: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._where = where
        self._execute = execute
        self._loop = loop
        self._is_up = False

    async def execute_elsewhere(self, run: str, dispatch: int) -> None:
        """Execute a dispatch on the owner's loop; DBOS keeps to a loop of its own."""
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._on_loop(run, dispatch), self._loop))

    async def _on_loop(self, run: str, dispatch: int) -> None:
        await self._execute(run, dispatch)

    def launch(self, *, token: str, kinds: Iterable[str]) -> None:
        """Start DBOS as the executor of that token, listening for runs of these kinds."""
        with _Owner.lock:
            if _Owner.present is not None:
                raise JournalError("runs are already launched in this process", hint="close the first Runs before")
            _Owner.present = self
        _quiet()
        url = self._url()
        queues = [queue_of(kind) for kind in kinds]
        serializer = DBOSPortableJSONSerializer()
        try:
            DBOS.migrate(url.render_as_string(hide_password=False))
            client = DBOSClient(
                system_database_engine=self._engine, serializer=serializer, application_name=APPLICATION
            )
            try:
                # Before launch: a queue that comes later is noticed only a second after.
                for queue in queues:
                    client.register_queue(queue, worker_concurrency=_AT_ONCE_MAX, polling_interval_sec=_POLLING_S)
            finally:
                client.destroy()
            config: DBOSConfig = {
                "name": APPLICATION,
                "application_version": APPLICATION_VERSION,
                "executor_id": token,
                "serializer": serializer,
                "max_executor_threads": _THREADS_MAX,
                "system_database_url": url.render_as_string(hide_password=False),
                "system_database_engine": self._engine,
                # Nothing here waits for its notices: the thread that looks for them ends this soon after it is told.
                "notification_listener_polling_interval_sec": _NOTICES_S,
                "log_level": "WARNING",
                "enable_otlp": False,
            }
            DBOS(config=config)
            _segment()
            DBOS.listen_queues(queues)
            DBOS.launch()
        except Exception as error:
            self.close()
            if isinstance(error, sa.exc.SQLAlchemyError):
                raise explain(error, where=self._where) from error
            raise JournalError(
                f"the durable runtime did not start: {error}", hint="if another version made this journal, use that one"
            ) from error
        self._is_up = True

    def close(self) -> None:
        """Stop DBOS; what it was executing stays pending under the token."""
        if _Owner.present is not self:
            return
        try:
            DBOS.destroy()
        finally:
            self._is_up = False
            _Owner.present = None

    def enqueue(self, run: str, *, kind: str, dispatch: int) -> None:
        """Make sure that the workflow of this dispatch exists; twice is once."""
        with SetWorkflowID(workflow_id(run, dispatch)):
            DBOS.enqueue_workflow(queue_of(kind), _segment(), run, dispatch)

    def statuses(self, workflows: Sequence[str]) -> dict[str, Dispatched]:
        """Return what DBOS knows of these workflows."""
        found: dict[str, Dispatched] = {}
        for start in range(0, len(workflows), _CHUNK):
            chunk = list(workflows[start : start + _CHUNK])
            listed = DBOS.list_workflows(workflow_ids=chunk, load_input=False, load_output=False)
            found.update({status.workflow_id: _dispatched(status) for status in listed})
        return found

    def executors(self) -> set[str]:
        """Return the tokens under which workflows are being executed, or were when their executor died."""
        listed = DBOS.list_workflows(status="PENDING", name=_WORKFLOW, load_input=False, load_output=False)
        return {status.executor_id for status in listed if status.executor_id}

    def recover(self, tokens: Sequence[str]) -> None:
        """Put the workflows of dead executors back into their queues.

        The one private call: DBOS offers no public one without its paid service. It compares the executor in the same
        statement that changes the row, and a token is never used again, so that two takers do no harm.
        """
        if tokens:
            DBOS._recover_pending_workflows(list(tokens))  # noqa: SLF001 - see above

    def forget(self, workflows: Sequence[str]) -> None:
        """Delete workflows with all that belongs to them."""
        for start in range(0, len(workflows), _CHUNK):
            DBOS.delete_workflows(list(workflows[start : start + _CHUNK]))

    def _url(self) -> sa.URL:
        url = self._engine.url
        return url if url.get_backend_name() == "sqlite" else url.set(drivername="postgresql")


def workflow_id(run: str, dispatch: int) -> str:
    """Name the workflow of one dispatch of a run."""
    return f"{run}.{dispatch}"


def queue_of(kind: str) -> str:
    """Name the queue of a kind of run: a process listens only for what it can execute."""
    return f"quell-{kind}"


def _dispatched(status: WorkflowStatus) -> Dispatched:
    return Dispatched(status=status.status, executor=status.executor_id or "")
