"""How many tokens the first request has that an agent with eleven tools sends: prompt, schemas, and the envelope on the wire.

python -m bench.bench_serve_prompt

Seven senses and four tools of a server, of ordinary size; counted by OpenAI's own vocabulary, offline.
"""

from __future__ import annotations

import bpe_openai
import msgspec
from tests.doors.test_agent_context import SERVED, _served

from quell.agent._context import request_of
from quell.agent._route import offered
from quell.agent._talk import Role, Talk
from quell.app._senses_tools import sense_tools
from quell.domain import Message
from quell.models._openai import Endpoint, body_of


def measure() -> dict[str, float]:
    """Return how many tokens the request has, and how many tools are in it."""
    tools = [*sense_tools(), *(_served(name, about) for name, about in SERVED)]
    talk = Talk(messages=(Message(role="user", text="Why is checkout slow?"),), fence="5f2a91c0")
    role = Role(name="sre", preamble="You are the on-call engineer of a web shop. " * 5)
    request = request_of(talk, role, tools=offered(talk, role, tools))
    endpoint = Endpoint(provider="openai", base_url="http://x", headers={})
    wire = msgspec.json.encode(body_of(request, name="gpt-4o", endpoint=endpoint))
    tokens = len(bpe_openai.get_encoding("o200k_base").encode_ordinary(wire.decode()))
    return {"tokens": tokens, "tools": len(tools), "bytes": len(wire)}


if __name__ == "__main__":
    print(measure())
