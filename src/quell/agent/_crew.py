"""Several agents on one question: a coordinator routes it, workers do their tasks, and the coordinator answers or plans again.

Everything is a step of one durable run. A round is planned, carried out side by side as far as its tasks allow, and looked
at by the coordinator with the same three tools; rounds, time and money are bounded, and each bound says so in the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Unpack

from quell.agent._agent import fence_of
from quell.agent._board import Board, board_of
from quell.agent._ending import Ended, opened
from quell.agent._means import Means, Options, WorkerSpec
from quell.agent._shift import Shift
from quell.agent._talk import Role
from quell.agent._telling import tell_end
from quell.config import OrchestrationSettings
from quell.domain import Message, ToolCaller
from quell.models import Model
from quell.runs import RunContext
from quell.telemetry import genai
from quell.tools import Toolbox


class Crew:
    """A coordinator and its workers; it keeps nothing of a run itself."""

    def __init__(
        self,
        coordinator: Role,
        *,
        model: Model,
        workers: Mapping[str, WorkerSpec],
        toolbox: Toolbox,
        settings: OrchestrationSettings,
        monotonic: Callable[[], float],
        **options: Unpack[Options],
    ) -> None:
        """Join what they need.

        Options: `live`, `accounts` (of a place in the run, such as a task), `parallel_max`, `default_worker`,
        `memory_dir` (empty: no files are kept), `session`, `entropy` of the keys of fences, `pause` and `chance` for pauses between tries.
        """
        assert workers, "a crew has workers"
        self._means = Means(
            coordinator=coordinator,
            model=model,
            workers=workers,
            toolbox=toolbox,
            settings=settings,
            monotonic=monotonic,
            **options,
        )

    async def begin(self, context: RunContext, messages: Sequence[Message], *, caller: ToolCaller) -> Ended:
        """Begin with a conversation whose last message is what is asked."""
        talk = opened(messages, fence=fence_of(self._means.entropy))
        now = await context.now()
        board = Board(messages=talk.messages, exhibits=talk.exhibits, fence=talk.fence, began_at=now.isoformat())
        return await self._work(context, board, caller, part="first")

    async def go_on(self, context: RunContext, state: Mapping[str, object], *, caller: ToolCaller) -> Ended:
        """Go on with what the segment before left when it began to wait for people."""
        return await self._work(context, board_of(state), caller, part="later")

    async def _work(
        self, context: RunContext, board: Board, caller: ToolCaller, *, part: Literal["first", "later"]
    ) -> Ended:
        """Work for one segment, as one span with those of the workers below it."""
        means, began_s = self._means, self._means.monotonic() - board.spent_s
        session = means.session or context.run.id
        with genai.invoke_agent(
            means.coordinator.name, run=context.run.id, session=session, question=board.messages
        ) as invoked:
            if part == "first":
                invoked.began()
            ended = await Shift(means, context, board, caller=caller).work()
            tell_end(invoked, ended, elapsed_s=means.monotonic() - began_s)
            return ended
