"""What a machine can do to a process: burning threads, memory and descriptors that are not given back."""

from __future__ import annotations

import os
import threading
import time

LEAK_STEP_S = 0.25


class Strain:
    """Follows the conditions of the machine; everything here really consumes the resource."""

    def __init__(self) -> None:
        self._burning: list[threading.Event] = []
        self._memory: list[bytearray] = []
        self._descriptors: list[int] = []
        self._last_s = time.monotonic()

    def follow(self, conditions: dict[str, object]) -> None:
        """Start or stop burning so that it is as the conditions say."""
        wanted = int(str(conditions.get("burn_threads", 0)))
        while len(self._burning) < wanted:
            stop = threading.Event()
            threading.Thread(target=_burn, args=(stop,), daemon=True, name="compaction").start()
            self._burning.append(stop)
        while len(self._burning) > wanted:
            self._burning.pop().set()
        if "leak_mb_per_s" not in conditions:
            self._memory.clear()
        if "leak_descriptors_per_s" not in conditions:
            while self._descriptors:
                os.close(self._descriptors.pop())

    def step(self, conditions: dict[str, object]) -> None:
        """Leak what is due since the last step."""
        now_s = time.monotonic()
        passed_s, self._last_s = min(now_s - self._last_s, 1.0), now_s
        megabytes = float(str(conditions.get("leak_mb_per_s", 0))) * passed_s
        if megabytes > 0:
            block = bytearray(int(megabytes * 1_048_576))
            block[::4096] = b"\1" * len(block[::4096])
            self._memory.append(block)
        count = round(float(str(conditions.get("leak_descriptors_per_s", 0))) * passed_s)
        for _ in range(count):
            try:
                self._descriptors.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                return


def _burn(stop: threading.Event) -> None:
    value = 1
    while not stop.is_set():
        for _ in range(20_000):
            value = (value * 1_103_515_245 + 12_345) % 2_147_483_648
