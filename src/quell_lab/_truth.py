"""What the lab did on purpose: the truth that an investigation is measured against."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """One fault as it was put in."""

    name: str
    category: str
    """A name of the categories that incidents can have; empty for a healthy disturbance."""
    kind: str
    """What sort of object is at fault: service, edge, database, queue or flag."""
    subject: str
    """The object at fault; `caller->callee` for an edge."""
    since: datetime
    seed: int
    detail: str
    """One line: what was really done."""

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong and nothing may be blamed."""
        return not self.category

    def encode(self) -> dict[str, object]:
        return {**asdict(self), "since": self.since.isoformat()}


def decode_truth(fields: dict[str, object]) -> Truth:
    """Parse what `Truth.encode` made."""
    return Truth(
        name=str(fields["name"]),
        category=str(fields["category"]),
        kind=str(fields["kind"]),
        subject=str(fields["subject"]),
        since=datetime.fromisoformat(str(fields["since"])),
        seed=int(str(fields["seed"])),
        detail=str(fields["detail"]),
    )


def write_truth(path: Path, truth: Truth | None) -> None:
    """Write the truth that holds now; nothing when all is healed."""
    path.write_text(json.dumps(truth.encode() if truth else {}, indent=1))
