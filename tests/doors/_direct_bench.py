"""Answers as Anthropic, Gemini and Bedrock write them, byte for byte, for the loopback provider of `_model_bench`."""

from __future__ import annotations

import asyncio
import json
import struct
import zlib
from collections.abc import Sequence

from tests.doors._model_bench import Answer


def _streamed(kind: str, parts: Sequence[bytes], *, cut: bool, headers: Sequence[str] = ()) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        head = ["HTTP/1.1 200 OK", f"Content-Type: {kind}", "Transfer-Encoding: chunked", *headers, "", ""]
        writer.write("\r\n".join(head).encode())
        for part in parts:
            writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            await writer.drain()
        if cut:
            writer.close()
            return
        writer.write(b"0\r\n\r\n")

    return answer


def claude(*events: dict[str, object], cut: bool = False, headers: Sequence[str] = ()) -> Answer:
    """Answer with named events."""
    parts = [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]
    return _streamed("text/event-stream", parts, cut=cut, headers=headers)


def claude_begins(**usage: int) -> dict[str, object]:
    told = {"input_tokens": 10, "output_tokens": 1, **usage}
    message: dict[str, object] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [],
    }
    message |= {"stop_reason": None, "stop_sequence": None, "usage": told}
    return {"type": "message_start", "message": message}


def claude_block(index: int, block: dict[str, object], *deltas: dict[str, object]) -> list[dict[str, object]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": block},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def claude_text(index: int, *texts: str) -> list[dict[str, object]]:
    deltas: list[dict[str, object]] = [{"type": "text_delta", "text": text} for text in texts]
    return claude_block(index, {"type": "text", "text": ""}, *deltas)


def claude_ends(reason: str = "end_turn", **usage: int) -> list[dict[str, object]]:
    told = {"output_tokens": 7, **usage}
    return [
        {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": told},
        {"type": "message_stop"},
    ]


def gemini(*chunks: dict[str, object], cut: bool = False) -> Answer:
    """Answer with chunks as `streamGenerateContent?alt=sse` sends them."""
    parts = [f"data: {json.dumps(chunk)}\r\n\r\n".encode() for chunk in chunks]
    return _streamed("text/event-stream", parts, cut=cut)


def gemini_chunk(*parts: dict[str, object], reason: str = "", **usage: int) -> dict[str, object]:
    candidate: dict[str, object] = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
    if reason:
        candidate["finishReason"] = reason
    chunk: dict[str, object] = {"candidates": [candidate], "modelVersion": "gemini-x", "responseId": "r1"}
    return chunk | ({"usageMetadata": usage} if usage else {})


def bedrock(*events: tuple[str, dict[str, object]], cut: bool = False) -> Answer:
    """Answer with messages of AWS's event stream: lengths, headers, payload, two checksums."""
    parts = [_message({":message-type": "event", ":event-type": name}, body) for name, body in events]
    return _streamed("application/vnd.amazon.eventstream", parts, cut=cut)


def _message(headers: dict[str, str], body: dict[str, object]) -> bytes:
    named = {**headers, ":content-type": "application/json"}
    head = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
        for name, value in named.items()
    )
    payload = json.dumps(body).encode()
    prelude = struct.pack(">II", 16 + len(head) + len(payload), len(head))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + head + payload
    return message + struct.pack(">I", zlib.crc32(message))
