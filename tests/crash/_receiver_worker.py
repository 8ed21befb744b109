"""A process that receives numbered log lines and says which are acknowledged; made to be killed."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from quell.config import StoreSettings
from quell.runs import system_clock
from quell.signals import Receiver, Store
from tests._otlp_requests import PROTOBUF, logs

LINES = 20
SERVICE = "numbered"


async def main(state_dir: Path, first: int) -> None:
    store = await Store.open(StoreSettings(), state_dir=state_dir, clock=system_clock)
    receiver = await Receiver.open(store, state_dir=state_dir, clock=system_clock, entropy=os.urandom)
    number = first
    while True:
        request = logs(SERVICE, [f"line {number}.{line}" for line in range(LINES)], of_record={"request": number})
        await receiver.receive("logs", request.SerializeToString(), content_type=PROTOBUF)
        print(number, flush=True)
        number += 1
        await asyncio.sleep(0.005)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
