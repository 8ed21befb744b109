"""One segment of a crew's run: route, carry out, look at what came of it, and again, until there is an answer or a wait."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import msgspec

from quell.agent._agent import Agent
from quell.agent._board import Board, Category, Going, TaskEnd, Timing, state_of_board
from quell.agent._catalog import looking_up
from quell.agent._claims import Held, hold
from quell.agent._coordinator import (
    CLARIFY,
    DIRECT,
    PLAN,
    Known,
    Terms,
    gaps_of,
    own_plan,
    plan_in,
    preamble_of,
    results_text,
    routing,
)
from quell.agent._ending import Ended, Halt, labelled, wait_of
from quell.agent._history import Outcome, history_text, manifest_of, task_files
from quell.agent._means import Means
from quell.agent._plan import Plan, Task
from quell.agent._reading import prior_runs, reading
from quell.agent._run_files import MANIFEST, RunFiles
from quell.agent._seat import Closing, Native, Seat
from quell.agent._talk import AgentAnswer, Role, Stop, Talk
from quell.agent._words import COORDINATOR_FAILED, REPLAN_OVER, TIME_OVER, UNROUTED
from quell.agent._worker import Bench, carry_out, prompt_of
from quell.domain import Message, ModelFault, Parked, StepError, ToolCaller
from quell.runs import RunContext
from quell.telemetry import genai

_COORDINATOR_TURNS = 6
_PAUSE_FIRST_S, _PAUSE_MAX_S = 1.0, 30.0
_PASSING = frozenset({fault.value for fault in ModelFault if fault.is_passing} | {"overload"})
_TOLD_MAX_CHARS = 8_000
_HISTORY_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unrouted:
    """The coordinator did not decide."""

    stop: Stop
    fault: str
    text: str = ""


class Shift:
    """Works on a board until the run's question is answered, or waits for people."""

    def __init__(self, means: Means, context: RunContext, board: Board, *, caller: ToolCaller) -> None:
        """Take over a board as the segment before left it."""
        self._means = means
        self._context = context
        self._board = board
        self._caller = caller
        self._began_s = means.monotonic() - board.spent_s
        self._files: RunFiles | None = None
        if means.memory_dir:
            self._files = RunFiles(
                Path(means.memory_dir), by=caller.principal, session=means.session, run=context.run.id
            )

    async def work(self) -> Ended:
        """Work until there is an answer, or people have to decide."""
        artifacts = self._means.settings.artifacts
        if self._files is not None:
            await self._files.begin(
                runs_max=artifacts.max_session_runs, now=datetime.fromisoformat(self._board.began_at)
            )
        while True:
            if self._board.phase == "working":
                parked = await self._carry_out_plan()
                if parked:
                    return await self._wait(parked)
                early = await self._after_work()
                if early is not None:
                    return early
            decided = await self._route()
            if isinstance(decided, tuple):
                return await self._wait(decided)
            ended = await self._follow(decided)
            if ended is not None:
                return ended

    # -- routing ------------------------------------------------------------------------------------------------------

    async def _route(self) -> Closing | _Unrouted | tuple[Parked, ...]:
        """Ask the coordinator what is to be done, again when it does not say so."""
        board, began_s = self._board, self._means.monotonic()
        role = await self._coordinator()
        if board.talk is None:
            board.talk = self._opened()
            await self._keep_planning("prompt", board.talk.messages[-1].text)
        tries = max(1, self._means.settings.max_plan_parse_retries)
        decided: Closing | _Unrouted = _Unrouted(stop=Stop.MODEL, fault="unrouted: it was not asked")
        while board.attempt <= tries:
            halt = await self._ask(role)
            board.talk = halt.talk
            if halt.parked:
                return halt.parked
            if halt.closing is not None:
                decided = halt.closing
                break
            decided = _unrouted(halt)
            if not decided.fault.startswith("unrouted") and decided.fault.partition(":")[0] not in _PASSING:
                break
            await self._again(decided, tries=tries)
        self._close_conversation()
        board.timing = replace(
            board.timing, planning_ms=board.timing.planning_ms + (self._means.monotonic() - began_s) * 1000
        )
        told = decided.given if isinstance(decided, Closing) else {"fault": decided.fault, "text": decided.text}
        await self._keep_planning("response", json.dumps(told, indent=2, ensure_ascii=False, default=str))
        return decided

    async def _again(self, decided: _Unrouted, *, tries: int) -> None:
        """Make ready for another try: a correction where it did not route, a pause where its provider is busy."""
        board = self._board
        assert board.talk is not None
        board.attempt += 1
        if board.attempt > tries:
            return
        if decided.fault.startswith("unrouted"):
            messages = (*board.talk.messages, Message(role="user", text=UNROUTED))
            board.talk = replace(board.talk, messages=messages, repeats={}, failures=0)
        else:
            await self._pause(board.attempt)

    async def _pause(self, attempt: int) -> None:
        """Give a busy provider time, full jitter over an exponential pause; a run that comes back does not pause again."""

        async def work() -> bool:
            await self._means.pause(self._means.chance() * min(_PAUSE_FIRST_S * 2.0**attempt, _PAUSE_MAX_S))
            return True

        name = f"{self._board.chair}.pause.{attempt}"
        await self._context.step(name, work, returns=bool, timeout_s=_PAUSE_MAX_S + 10.0)

    async def _ask(self, role: Role) -> Halt:
        board, means = self._board, self._means
        assert board.talk is not None
        agent = Agent(
            replace(
                role, turns_max=board.talk.turn + _COORDINATOR_TURNS, minutes_max=means.call_s(self._left_s()) / 60
            ),
            model=means.model,
            toolbox=means.toolbox,
            live=means.live,
            accounts=means.accounts(f"{board.chair}."),
            monotonic=means.monotonic,
            seat=Seat(tag=board.chair, natives=self._natives()),
        )
        talk = replace(board.talk, began_s=0.0)
        return await agent.proceed(self._context, talk, caller=means.narrowed(self._caller, role))

    def _natives(self) -> tuple[Native, ...]:
        found = list(routing(self._terms()))
        if self._means.settings.tools_in_planning == "none":
            found += looking_up(self._known())
        if self._files is not None:
            found += reading(self._files)
            found += prior_runs(self._files) if self._means.session else ()
        return tuple(found)

    def _terms(self) -> Terms:
        means, is_first = self._means, self._board.plan is None
        only = next(iter(means.workers)) if len(means.workers) == 1 else ""
        return Terms(
            workers=tuple(means.workers),
            default_worker=means.default_worker,
            own_worker=(means.default_worker or only) if is_first else "",
            asked=self._board.asked,
            first=self._board.next_number,
            allows_direct=means.settings.allow_direct_answers or not is_first,
            allows_question=means.settings.allow_clarification,
        )

    async def _coordinator(self) -> Role:
        """Return what the coordinator is told to be."""
        means, settings = self._means, self._means.settings
        history = ""
        if self._files is not None:
            history = history_text(await self._history())
        preamble = preamble_of(
            means.coordinator.preamble,
            self._known(),
            tools=settings.tools_in_planning,
            tools_max=settings.max_tools_per_worker,
            history=history,
        )
        return replace(
            means.coordinator,
            preamble=preamble,
            silent_max_s=settings.timeouts.stream_inactivity_timeout_secs,
            repeats_nudge=settings.duplicate_call_nudge_threshold,
            repeats_max=settings.duplicate_call_block_threshold,
            client_tools=(),
            answer_schema="",
            choice="auto",
            asks="nobody",
            stop=(),
        )

    async def _history(self) -> Sequence[Mapping[str, object]]:
        """Return earlier runs of the session, read once: a run that comes back is told the same."""
        files, turns = self._files, self._means.settings.artifacts.session_history_turns
        assert files is not None

        async def work() -> list[Mapping[str, object]]:
            return await files.prior(runs_max=turns)

        name = f"history.{self._board.chair}"
        try:
            return await self._context.step(name, work, returns=list[Mapping[str, object]], timeout_s=_HISTORY_S)
        except StepError:
            return ()  # a disk that does not answer takes the history, and not the run

    def _known(self) -> list[Known]:
        return [
            Known(name=name, description=spec.description, tools=self._means.tools_of(spec.role), stores=spec.stores)
            for name, spec in self._means.workers.items()
        ]

    def _opened(self) -> Talk:
        """Return the conversation that the coordinator has now: the person's, and after a round what came of it."""
        board, settings = self._board, self._means.settings
        if board.plan is None:
            return Talk(messages=board.messages, is_tainted=bool(board.exhibits), fence=board.fence)
        told = results_text(
            board,
            rounds_max=settings.max_planning_cycles,
            shown={number: self._shown(end) for number, end in board.ends.items()},
            shows_reasons=settings.artifacts.show_tool_reasoning_in_continuation,
            window=self._means.model.window,
        )
        messages = (*board.messages, Message(role="user", text=told))
        return Talk(messages=messages, is_tainted=True, fence=board.fence)

    def _shown(self, end: TaskEnd) -> str:
        """Return a result as it is shown: its beginning, where the whole is in a file."""
        if not end.artifact:
            return end.result
        head = end.result[: self._means.settings.artifacts.result_summary_length]
        return f"{head}\n(the whole of {len(end.result)} characters: read_artifact {end.artifact})"

    def _close_conversation(self) -> None:
        """Count what the coordinator took, and forget what it said; what it looked up stays evidence."""
        board, talk = self._board, self._board.talk
        assert talk is not None
        board.turns, board.calls, board.failed = (
            board.turns + talk.turn,
            board.calls + talk.calls,
            board.failed + talk.failed,
        )
        board.usage = board.usage + talk.usage
        board.is_usage_told = board.is_usage_told and talk.is_usage_told
        board.exhibits = (*board.exhibits, *talk.exhibits)
        board.talk, board.attempt = None, 1

    # -- what was decided ---------------------------------------------------------------------------------------------

    async def _follow(self, decided: Closing | _Unrouted) -> AgentAnswer | None:
        """Do what the coordinator decided; None: there is a plan to carry out."""
        if isinstance(decided, _Unrouted):
            return await self._without_route(decided)
        given = decided.given
        if decided.tool == PLAN:
            plan = plan_in(decided, self._terms())
            assert isinstance(plan, Plan), plan
            return await self._planned(plan)
        rationale = str(given.get("routing_rationale") or "")
        mode = self._board.plan.mode if self._board.plan else "direct_answer"
        await self._routed(decided.tool, rationale=rationale, mode=mode, **_words(given))
        await self._round_ended(will_replan=False, reasoning=rationale)
        if decided.tool == CLARIFY:
            options = [str(each) for each in _list(given.get("options"))]
            text = "\n".join([str(given["question"]), *(f"- {option}" for option in options)])
            return await self._answer(Held(text=text, cited=(), unverified=0, confidence="none"), Stop.ASKED)
        assert decided.tool == DIRECT
        return await self._answer(self._held(str(given["response"])), Stop.ANSWERED)

    async def _without_route(self, decided: _Unrouted) -> AgentAnswer | None:
        terms = self._terms()
        if self._board.plan is not None:
            return await self._raw(COORDINATOR_FAILED, decided.stop, fault=decided.fault)
        if decided.fault.startswith("unrouted") and terms.own_worker:
            plan = plan_in(own_plan(terms, rationale="the coordinator did not route"), terms)
            assert isinstance(plan, Plan), plan
            return await self._planned(plan)
        return await self._answer(self._held(decided.text), decided.stop, fault=decided.fault)

    async def _planned(self, plan: Plan) -> AgentAnswer | None:
        """Begin a plan, unless no further round is allowed."""
        board, settings = self._board, self._means.settings
        await self._routed(PLAN, rationale=plan.rationale, mode=plan.mode)
        if board.plan is not None:
            if board.iteration >= max(1, settings.max_planning_cycles):
                return await self._raw(REPLAN_OVER, Stop.TURNS)
            if self._left_s() < max(1, settings.timeouts.per_call_timeout_secs):
                return await self._raw(TIME_OVER, Stop.TIME)
            await self._round_ended(will_replan=True, reasoning=plan.rationale)
            board.past, board.iteration = (*board.past, board.plan), board.iteration + 1
            await self._emit("agent.replanned", iteration=board.iteration)
        board.plan, board.phase = plan, "working"
        await self._emit(
            "agent.plan_made",
            goal=plan.goal,
            tasks=[msgspec.to_builtins(task) for task in plan.tasks],
            mode=plan.mode,
            rationale=plan.rationale,
            summary=plan.summary,
            iteration=board.iteration,
        )
        return None

    # -- carrying out -------------------------------------------------------------------------------------------------

    async def _carry_out_plan(self) -> tuple[Parked, ...]:
        """Carry the plan out as far as it goes: what is ready runs, so many at once; return what waits for people."""
        board, began_s = self._board, self._means.monotonic()
        plan = board.plan
        assert plan is not None
        running: dict[asyncio.Task[tuple[Parked, ...]], Task] = {}
        parked: list[Parked] = []
        begun: set[int] = set()
        try:
            while True:
                await self._fail_dependants(plan)
                for task in plan.tasks:
                    if (
                        len(running) < max(1, self._means.parallel_max)
                        and task.number not in begun
                        and self._is_ready(task)
                    ):
                        begun.add(task.number)
                        running[asyncio.create_task(self._carry_out(plan, task))] = task
                if not running:
                    break
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    running.pop(each)
                    parked += each.result()
        finally:
            for each in running:
                each.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        elapsed_ms = (self._means.monotonic() - began_s) * 1000
        board.timing = replace(board.timing, execution_ms=board.timing.execution_ms + elapsed_ms)
        return tuple(parked)

    def _is_ready(self, task: Task) -> bool:
        ends = self._board.ends
        return task.number not in ends and all(need in ends and ends[need].is_done for need in task.needs)

    async def _fail_dependants(self, plan: Plan) -> None:
        """Fail what waits for something that failed; tasks stand in the plan after those that they wait for."""
        ends = self._board.ends
        for task in plan.tasks:
            lost = [f"t{need}" for need in task.needs if need in ends and not ends[need].is_done]
            if task.number not in ends and lost:
                error = f"it waits for {', '.join(lost)}, which failed"
                await self._task_ended(
                    task, TaskEnd(is_done=False, category=Category.DEPENDENCY, error=error, attempts=0)
                )

    async def _carry_out(self, plan: Plan, task: Task) -> tuple[Parked, ...]:
        board, context = self._board, self._context
        before = {f"t{need}": self._shown(board.ends[need]) for need in task.needs}
        prompt = prompt_of(task, goal=plan.goal, before=before)
        going = board.going.pop(task.number, None)
        if going is None:
            talk = Talk(messages=(Message(role="user", text=prompt),), is_tainted=bool(before), fence=board.fence)
            going = Going(talk=talk)
        await context.emit(
            "agent.task_started",
            key=f"{task.tag}.started",
            task=task.tag,
            iteration=board.iteration,
            worker=task.worker,
            description=task.text,
            attempt=going.attempt,
        )
        given = tuple(exhibit for need in task.needs for exhibit in board.ends[need].exhibits)
        bench = Bench(means=self._means, task=task, iteration=board.iteration, files=self._files, given=given)
        try:
            session = self._means.session or context.run.id
            with genai.invoke_agent(task.worker, run=context.run.id, session=session, question=going.talk.messages):
                ended = await carry_out(context, bench, going, caller=self._caller, left_s=self._left_s())
        except StepError as error:
            ended = TaskEnd(
                is_done=False, category=Category.ERROR, error=str(error), traces=tuple(bench.traces.values())
            )
        if isinstance(ended, tuple):
            board.going[task.number], parked = ended
            return parked
        await self._task_ended(task, await self._kept(task, ended, prompt=prompt))
        return ()

    async def _kept(self, task: Task, end: TaskEnd, *, prompt: str) -> TaskEnd:
        """Write the files of a task; a long result becomes an artifact."""
        files, board = self._files, self._board
        if files is None:
            return end
        if len(end.result) > self._means.settings.artifacts.result_artifact_threshold:
            name = f"task-{task.number}-{task.worker}-iter-{board.iteration}-result.txt"
            end = replace(end, artifact=await files.keep_artifact(name, end.result))
        for name, text in task_files(task, end, prompt=prompt):
            await files.keep(f"iteration-{board.iteration}/{name}", text)
        return end

    async def _task_ended(self, task: Task, end: TaskEnd) -> None:
        self._board.ends[task.number] = end
        timing = self._board.timing
        self._board.timing = replace(
            timing,
            task_compute_ms=timing.task_compute_ms + end.elapsed_ms,
            tool_ms=timing.tool_ms + sum(trace.elapsed_ms for trace in end.traces),
        )
        await self._context.emit(
            "agent.task_ended",
            key=f"{task.tag}.ended",
            task=task.tag,
            iteration=self._board.iteration,
            worker=task.worker,
            success=end.is_done,
            elapsed_ms=end.elapsed_ms,
            result=(end.result or end.error)[:_TOLD_MAX_CHARS],
            confidence=end.confidence,
            category=end.category.value if end.category else "",
            error=end.error,
            attempts=end.attempts,
        )

    async def _after_work(self) -> AgentAnswer | None:
        """Look at a round that is over: end where nothing can be made of it, else hand it to the coordinator."""
        board = self._board
        assert board.plan is not None
        ends = [board.ends[task.number] for task in board.plan.tasks]
        await self._keep_plan()
        failed = [end.category for end in ends if not end.is_done and end.category is not Category.DEPENDENCY]
        is_lost = bool(failed) and not any(end.is_done for end in board.ends.values())
        if is_lost and all(category is not None and category.is_provider for category in failed):
            return await self._raw("Every task failed at its provider", Stop.MODEL, fault=ends[0].error)
        if self._left_s() <= 0:
            return await self._raw(TIME_OVER, Stop.TIME)
        await self._emit("agent.synthesizing", iteration=board.iteration)
        board.phase = "routing"
        return None

    # -- the end ------------------------------------------------------------------------------------------------------

    def _held(self, text: str) -> Held:
        if self._means.coordinator.evidence == "off":
            return Held(text=text, cited=(), unverified=0, confidence="none")
        return hold(text, self._board.evidence, question=self._board.question, failed=self._failed())

    def _failed(self) -> int:
        """Count what failed: calls, and tasks of the newest plan."""
        board = self._board
        tasks = board.plan.tasks if board.plan else ()
        lost = sum(1 for task in tasks if (end := board.ends.get(task.number)) is not None and not end.is_done)
        return lost + board.failed + sum(end.failed for end in board.ends.values())

    async def _raw(self, note: str, stop: Stop, *, fault: str = "") -> AgentAnswer:
        """End with what the workers brought, as it is, and say why."""
        board = self._board
        parts = [f"[{note}: these are the workers' own results, which nobody has put together.]"]
        for task in board.tasks():
            if (end := board.ends.get(task.number)) is not None:
                state = "" if end.is_done else f" (failed: {end.category.value if end.category else 'agent_error'})"
                parts.append(f"{task.worker}{state}, {task.text}:\n{self._shown(end) or end.error}")
        await self._round_ended(will_replan=False, reasoning=note)
        return await self._answer(self._held("\n\n".join(parts)), stop, fault=fault)

    async def _answer(self, held: Held, stop: Stop, *, fault: str = "") -> AgentAnswer:
        board = self._board
        ends = board.ends.values()
        usage = board.usage
        for end in ends:
            usage = usage + end.usage
        done = [end for end in ends if end.is_done]
        confidence = held.confidence
        if confidence in {"high", "medium"} and done and all(end.confidence in {"low", "none"} for end in done):
            confidence = "low"
        answer = AgentAnswer(
            text=labelled(held.text, stop),
            stop=stop,
            usage=usage,
            is_usage_told=board.is_usage_told and all(end.is_usage_told for end in ends),
            turns=board.turns + sum(end.turns for end in ends),
            calls=board.calls + sum(end.calls for end in ends),
            failed=board.failed + sum(end.failed for end in ends),
            cited=held.cited,
            unverified=held.unverified,
            invented=held.invented,
            confidence=confidence,
            fault=fault,
            model=f"{self._means.model.provider}/{self._means.model.name}",
        )
        if self._files is not None:
            outcome = Outcome(answer=answer, run=self._files.run, session=self._means.session)
            await self._files.keep(MANIFEST, manifest_of(board, outcome))
        await self._context.emit("agent.answered", key="answered", **msgspec.to_builtins(answer))
        return answer

    async def _round_ended(self, *, will_replan: bool, reasoning: str) -> None:
        """Tell that a round is over, if there was one."""
        board = self._board
        if board.plan is None:
            return
        times = msgspec.to_builtins(board.timing)
        await self._emit(
            "agent.round_ended",
            iteration=board.iteration,
            will_replan=will_replan,
            reasoning=reasoning,
            gaps=gaps_of(board),
            **{name: round(value, 1) for name, value in times.items()},
        )
        board.timings, board.timing = (*board.timings, board.timing), Timing()

    async def _wait(self, parked: Sequence[Parked]) -> Ended:
        self._board.spent_s = self._means.monotonic() - self._began_s
        return await wait_of(self._context, parked, state=state_of_board(self._board))

    async def _keep_planning(self, kind: str, text: str) -> None:
        if self._files is not None:
            await self._files.keep(f"iteration-{int(self._board.chair[1:])}/planning.{kind}.txt", text)

    async def _keep_plan(self) -> None:
        if self._files is not None and self._board.plan is not None:
            plan = json.dumps(msgspec.to_builtins(self._board.plan), indent=2, ensure_ascii=False)
            await self._files.keep(f"iteration-{self._board.iteration}/plan.json", plan)

    async def _routed(self, decision: str, **body: object) -> None:
        name = self._means.coordinator.name
        await self._context.emit(
            "agent.routed", key=f"routed.{self._board.chair}", agent=name, decision=decision, **body
        )

    async def _emit(self, name: str, *, iteration: int, **body: object) -> None:
        """Tell what happens once in a round."""
        agent = self._means.coordinator.name
        await self._context.emit(name, key=f"{name}.{iteration}", agent=agent, iteration=iteration, **body)

    def _left_s(self) -> float:
        spent_s = self._means.monotonic() - self._began_s
        return self._means.coordinator.minutes_max * 60 - spent_s


def _unrouted(halt: Halt) -> _Unrouted:
    if halt.stop in {Stop.MODEL, Stop.SPENT}:
        return _Unrouted(stop=halt.stop, fault=halt.fault)
    text = halt.text if halt.held is None else halt.held.text
    if halt.stop is Stop.TIME:
        return _Unrouted(stop=Stop.TIME, fault="time: the coordinator took too long", text=text)
    return _Unrouted(stop=Stop.MODEL, fault="unrouted: the coordinator called none of its routing tools", text=text)


def _words(given: Mapping[str, object]) -> dict[str, object]:
    """Return what a decision says to the person."""
    names = ("response", "question", "options", "summary")
    return {name: given[name] for name in names if given.get(name)}


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else ()
