"""What operators teach an agent: skills to follow, documents to look things up in, and where each came from.

Owns:  skills and their digests, the store of documents, its ingestion and its permissions, ways to other stores.
Never: runs what it reads, shows a document to who may not see it, takes a document's words for the system's.

The door is lazy (PEP 562): who only reads skills loads no store.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from quell.memory._bedrock import BedrockStore as BedrockStore
    from quell.memory._library import Library as Library
    from quell.memory._library import Source as Source
    from quell.memory._passage import Audience as Audience
    from quell.memory._passage import DocumentStore as DocumentStore
    from quell.memory._passage import Embed as Embed
    from quell.memory._passage import Passage as Passage
    from quell.memory._qdrant import QdrantStore as QdrantStore
    from quell.memory._shelf import Shelf as Shelf
    from quell.memory._skills import Skill as Skill
    from quell.memory._skills import Skills as Skills
    from quell.memory._walk import Step as Step

_DOOR = {
    "Audience": "_passage",
    "BedrockStore": "_bedrock",
    "DocumentStore": "_passage",
    "Embed": "_passage",
    "Library": "_library",
    "Passage": "_passage",
    "QdrantStore": "_qdrant",
    "Shelf": "_shelf",
    "Skill": "_skills",
    "Skills": "_skills",
    "Source": "_library",
    "Step": "_walk",
}


def __getattr__(name: str) -> object:
    """Load a name when it is asked for."""
    if name not in _DOOR:
        raise AttributeError(f"module 'quell.memory' has no attribute {name!r}")
    return getattr(importlib.import_module(f"quell.memory.{_DOOR[name]}"), name)
