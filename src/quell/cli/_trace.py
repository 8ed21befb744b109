"""A run as a tree, in words: the same from the journal here and from a server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from quell.cli._values import length_text, took_text

if TYPE_CHECKING:
    from quell.domain import RunTrace, TraceNode


def trace_text(trace: RunTrace) -> str:
    """Return the tree with what each part of it took, and what the whole did."""
    run, rows = trace.run, list(_below(trace.tree.children, ""))
    branches = [f"{branch}  {told}" if told else branch for branch, told in rows] or ["nothing was done yet"]
    return "\n".join([f"{run.id} {run.kind} {run.status.value}: {run.subject}", *branches, _total_text(trace)])


def _below(nodes: Iterable[TraceNode], indent: str) -> Iterator[tuple[str, str]]:
    listed = list(nodes)
    for number, node in enumerate(listed):
        is_last = number == len(listed) - 1
        yield indent + ("└─ " if is_last else "├─ ") + ("· " if node.kind == "mark" else "") + node.name, _told(node)
        yield from _below(node.children, indent + ("   " if is_last else "│  "))


def _told(node: TraceNode) -> str:
    parts = [] if node.took_s is None else [length_text(node.took_s)]
    if node.input_tokens or node.output_tokens:
        parts.append(f"{node.input_tokens}+{node.output_tokens} tokens")
    if node.micro_usd:
        parts.append(_usd_text(node.micro_usd))
    if node.tries > 1:
        parts.append(f"{node.tries} tries")
    parts += [each for each in (node.model, node.outcome, node.detail) if each and each not in {"done", "stop"}]
    return ", ".join(parts)


def _total_text(trace: RunTrace) -> str:
    run, whole = trace.run, trace.totals
    money = "price unknown" if whole.micro_usd is None else _usd_text(whole.micro_usd)
    is_partly = whole.unpriced_turns and whole.micro_usd is not None
    parts = [
        took_text(run.created_at, run.updated_at),
        f"{whole.turns} model {'turn' if whole.turns == 1 else 'turns'}",
        f"{whole.calls} tool {'call' if whole.calls == 1 else 'calls'}"
        + (f" ({whole.failed_calls} without a result)" if whole.failed_calls else ""),
        f"{whole.input_tokens}+{whole.output_tokens} tokens",
        money + (f" and {whole.unpriced_turns} turns whose price nobody knows" if is_partly else ""),
        f"{run.attempts} {'try' if run.attempts == 1 else 'tries'}",
    ]
    return "total: " + ", ".join(parts)


def _usd_text(micro_usd: int) -> str:
    """Write money so that a small amount does not look like none."""
    if not micro_usd:
        return "0 USD"
    return f"{micro_usd / 1e6:.2f} USD" if micro_usd >= 10_000 else f"{micro_usd / 1e6:.6f} USD".rstrip("0")
