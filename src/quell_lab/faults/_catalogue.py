"""The catalogue."""

from __future__ import annotations

from typing import Final

from quell_lab.faults import _between, _code, _machines
from quell_lab.faults._kind import Fault

_ALL = (
    Fault(name="crash_loop", category="crash_loop", title="a service dies again and again", deed=_machines.crash_loop),
    Fault(name="bad_release_errors", category="bad_release", title="a release raises", deed=_code.release_with_errors),
    Fault(
        name="bad_release_latency", category="bad_release", title="a release is slow", deed=_code.release_with_latency
    ),
    Fault(name="bad_config", category="bad_config", title="a setting is wrong", deed=_code.wrong_setting),
    Fault(name="bad_flag", category="bad_flag", title="a flag turns on bad code", deed=_code.flag_on),
    Fault(
        name="dependency_down",
        category="dependency_down",
        title="a dependency is stopped",
        deed=_machines.dependency_down,
    ),
    Fault(name="network_latency", category="network_latency", title="an edge gets slow", deed=_between.added_latency),
    Fault(name="network_loss", category="network_loss", title="an edge loses segments", deed=_between.packet_loss),
    Fault(name="cpu_saturation", category="cpu_saturation", title="something burns CPU", deed=_machines.cpu_hog),
    Fault(name="memory_exhaustion", category="memory_exhaustion", title="a leak up to OOM", deed=_machines.memory_leak),
    Fault(name="pool_exhaustion", category="pool_exhaustion", title="connections leak", deed=_machines.connection_leak),
    Fault(name="slow_query", category="slow_query", title="an index is gone", deed=_between.slow_query),
    Fault(name="lock_contention", category="lock_contention", title="a table is locked", deed=_between.table_lock),
    Fault(name="disk_full", category="disk_full", title="a volume is full", deed=_machines.disk_full),
    Fault(
        name="descriptor_exhaustion",
        category="descriptor_exhaustion",
        title="descriptors leak",
        deed=_machines.descriptor_leak,
    ),
    Fault(name="traffic_spike", category="traffic_spike", title="far too many users", deed=_between.traffic_spike),
    Fault(
        name="certificate_expired",
        category="certificate_expired",
        title="a certificate has expired",
        deed=_machines.certificate_expired,
    ),
    Fault(name="clock_skew", category="clock_skew", title="a clock is wrong", deed=_machines.clock_skew),
    Fault(name="queue_backlog", category="queue_backlog", title="a queue backs up", deed=_between.queue_backlog),
    Fault(name="planned_deploy", category="", title="a good release", deed=_code.good_release),
    Fault(name="load_change", category="", title="load within the daily shape", deed=_between.hour_of_day),
    Fault(name="noisy_log", category="", title="a new, harmless warning", deed=_machines.chatter),
    Fault(name="config_reload", category="", title="a reload that changes nothing", deed=_code.reload_without_change),
    Fault(name="harmless_setting", category="", title="a setting that does no harm", deed=_code.harmless_setting),
)

FAULTS: Final = {fault.name: fault for fault in _ALL if fault.category}
"""What is really broken when it is put in."""

DISTURBANCES: Final = {fault.name: fault for fault in _ALL if not fault.category}
"""What changes something and breaks nothing."""
