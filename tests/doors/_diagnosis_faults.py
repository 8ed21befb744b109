"""Every kind of fault, told as a story with its truth, its noise, and its victims two hops away."""

from __future__ import annotations

from collections.abc import Callable

from quell.domain import Category, ChangeKind
from tests.doors._diagnosis_story import Story

Teller = Callable[[Story], None]


def crash_loop(s: Story) -> None:
    s.fail_into("stock", 0.5, "connection_refused", "connection_reset")
    for n in range(4):
        s.exit("stock", "crashed (1)", at_s=n * 18)
        s.start("stock", at_s=n * 18 + 6)
    s.log("stock", "unhandled exception in worker <*>, exiting", severity="fatal", count=4)
    s.log("api", "connection refused by stock:<*>")


def release_with_errors(s: Story) -> None:
    s.now.own_errors["bill"] = 0.3
    s.change(ChangeKind.DEPLOY, "bill", at_s=-4, before="v3", after="v4")
    s.exit("bill", "stopped (0)", at_s=-6)
    s.start("bill", at_s=-5)
    s.change(ChangeKind.DEPLOY, "bill", at_s=-3, after="v4", subject="service.version")
    s.log("bill", "KeyError: <*> in charge()")
    s.diff("bill", "service.version", "v4")


def release_with_latency(s: Story) -> None:
    s.now.own_ms["search"] = 160
    s.change(ChangeKind.DEPLOY, "search", at_s=-2, before="v7", after="v8")
    s.metric("search", "process.cpu.utilization", 0.1, 0.97)


def release_with_more_queries(s: Story) -> None:
    s.now.fanout["stock", "maindb"] = 30.0
    s.change(ChangeKind.DEPLOY, "stock", at_s=-5, before="a1", after="a2")


def release_that_crashes(s: Story) -> None:
    crash_loop(s)
    s.change(ChangeKind.DEPLOY, "stock", at_s=-8, before="a1", after="a2")


def wrong_address(s: Story) -> None:
    s.now.lost["api", "stock"] = 0.999
    s.now.loss_ms = 3
    s.types["api", "stock"] = ("connection_refused",)
    s.change(ChangeKind.CONFIG, "api", at_s=-3, subject="stock_url", before="http://stock:80", after="http://stokc:80")


def wrong_value(s: Story) -> None:
    s.now.own_errors["bill"] = 0.6
    s.change(ChangeKind.CONFIG, "bill", at_s=-6, subject="currency", before="EUR", after="EURO")
    s.log("bill", "invalid configuration value for currency: <*>")


def flag_for_one(s: Story) -> None:
    s.now.own_errors["search"] = 0.4
    s.change(ChangeKind.FLAG, "search", at_s=-2, subject="new-ranking", before="off", after="on")
    s.flow("search", "rank", "respond")


def flag_for_all(s: Story) -> None:
    s.now.own_ms["bill"] = 300
    s.change(ChangeKind.FLAG, "", at_s=-3, subject="new-ledger", before="off", after="on")


def service_down(s: Story) -> None:
    s.fail_into("stock", 0.95, "connection_refused")
    s.exit("stock", "stopped (0)", at_s=-1)
    s.metric("stock", "process.cpu.utilization", 0.2, 0.0, shape="gone")
    s.log("search", "ConnectError: all connection attempts failed")


def database_down(s: Story) -> None:
    s.fail_into("maindb", 0.97, "connection_refused")
    s.log("stock", "OperationalError: connection refused")


def third_party_down(s: Story) -> None:
    s.fail_into("bank", 0.9, "503", "timeout", wait_ms=2000)


def latency_between(s: Story) -> None:
    s.now.gap_ms["api", "bill"] = 250


def latency_to_database(s: Story) -> None:
    s.now.gap_ms["bill", "maindb"] = 120
    s.statement("bill", "SELECT invoices", 2.5, 121)
    s.statement("bill", "INSERT invoices", 3.0, 124, share=0.3)


def partition(s: Story) -> None:
    s.now.lost["search", "stock"] = 0.98
    s.types["search", "stock"] = ("timeout",)


def packet_loss_to_only_callee(s: Story) -> None:
    s.now.lost["api", "bill"] = 0.25
    s.types["api", "bill"] = ("timeout", "connection_reset")
    s.log("api", "ReadTimeout calling bill after <*> ms")


def cpu_hog(s: Story) -> None:
    s.now.own_ms["stock"] = 90
    s.now.gap_ms["api", "stock"] = s.now.gap_ms["search", "stock"] = 40
    s.metric("stock", "process.cpu.utilization", 0.2, 0.99)
    s.metric("stock", "http.server.active_requests", 1, 9)


def memory_leak(s: Story) -> None:
    s.fail_into("bill", 0.3, "connection_reset", "connection_refused")
    s.metric("bill", "process.memory.usage", 90e6, 185e6, limit=190e6, unit="By", shape="trend", at_s=-5)
    s.exit("bill", "oom_killed (137)", at_s=40)
    s.start("bill", at_s=46)
    s.exit("bill", "oom_killed (137)", at_s=70)


def pool_exhausted(s: Story) -> None:
    s.now.own_ms["stock"] = 400
    s.metric("stock", "db.client.connection.count", 1, 4, limit=4, state="used")
    s.metric("stock", "db.client.connection.pending_requests", 0, 12)
    s.metric("stock", "db.client.connection.wait_time", 0.1, 380, unit="ms")
    s.log("stock", "PoolTimeout: could not acquire a connection within <*> s")


def slow_query(s: Story) -> None:
    for caller in ("search", "stock", "bill", "worker"):
        s.now.gap_ms[caller, "maindb"] = 60
    s.metric("maindb", "postgresql.query.duration", 2, 70, unit="ms")
    s.metric("maindb", "postgresql.rows_scanned", 500, 240_000, unit="{row}/s")
    s.metric("stock", "db.client.connection.count", 1, 4, limit=4, state="used")
    s.metric("stock", "db.client.connection.pending_requests", 0, 3)


def slow_query_of_one(s: Story) -> None:
    s.now.gap_ms["search", "maindb"] = 300
    s.statement("search", "SELECT items by name", 2.5, 590, share=0.5)
    s.statement("search", "SELECT item", 2.4, 2.6, share=0.5)


def lock_contention(s: Story) -> None:
    s.now.gap_ms["stock", "maindb"] = 400
    s.now.gap_ms["bill", "maindb"] = 350
    s.statement("stock", "UPDATE stock", 3, 1500, share=0.5)
    s.statement("stock", "SELECT stock", 2, 2.1, share=1.5)
    s.metric("maindb", "postgresql.locks.waiting", 0, 7)
    s.metric("maindb", "postgresql.query.duration", 2, 300, unit="ms")
    s.log("stock", "canceling statement due to lock timeout")


def disk_full(s: Story) -> None:
    s.now.own_errors["bill"] = 0.9
    s.metric("bill", "system.filesystem.usage", 2e6, 8.38e6, limit=8.4e6, unit="By", shape="trend", at_s=-10)
    s.log("bill", "OSError: [Errno 28] No space left on device")


def descriptors_used_up(s: Story) -> None:
    s.now.own_errors["stock"] = 0.2
    s.now.lost["stock", "maindb"] = 0.3
    s.types["stock", "maindb"] = ("OSError",)
    s.now.loss_ms = 2
    s.metric("stock", "process.open_file_descriptor.count", 30, 160, limit=160, shape="trend", at_s=-8)
    s.log("stock", "OSError: [Errno 24] Too many open files")


def traffic_spike(s: Story) -> None:
    s.now.rate = 48
    s.now.own_ms["api"] = 140
    s.now.own_ms["web"] = 60
    s.metric("api", "process.cpu.utilization", 0.3, 0.99, at_s=4)


def certificate(s: Story) -> None:
    s.fail_into("bill", 0.999, "certificate_expired")
    s.metric("bill", "tls.certificate.expiry", 86_400 * 30, -60, unit="s")
    s.log("api", "ssl.SSLCertVerificationError: certificate verify failed: certificate has expired")


def clock(s: Story) -> None:
    s.now.own_errors["bill"] = 0.8
    s.metric("bill", "process.clock.offset", 0.001, 900, unit="s")
    s.log("bill", "token not yet valid, issued in the future")


def backlog(s: Story) -> None:
    s.now.own_ms["worker"] = 900
    s.now.worker_rate = 1.0
    s.metric("api", "queue.depth", 2, 160, shape="trend", messaging__destination__name="parcels")
    s.metric("api", "queue.oldest_age", 0.3, 55, unit="s", shape="trend", messaging__destination__name="parcels")


def crash_loop_behind_a_proxy(s: Story) -> None:
    s.fail_into("bill", 0.7, "connection_reset")
    for n in range(5):
        s.exit("bill", "crashed (1)", at_s=n * 9)
        s.start("bill", at_s=n * 9 + 3)


def service_down_behind_a_proxy(s: Story) -> None:
    s.fail_into("bill", 1.0, "connection_reset")
    s.exit("bill", "stopped (0)", at_s=-1)


def database_down_behind_a_proxy(s: Story) -> None:
    s.fail_into("maindb", 0.98, "connection_reset", "pool_timeout")
    s.exit("maindb", "stopped (0)", at_s=-1)
    s.metric("maindb", "postgresql.backends", 12, 0, shape="gone")
    s.metric("stock", "db.client.connection.pending_requests", 0, 2)


def deadline_too_short(s: Story) -> None:
    s.now.rejected["api", "bill"] = 0.99
    s.types["api", "bill"] = ("timeout",)
    s.change(ChangeKind.CONFIG, "api", at_s=-2, subject="bill_timeout_s", before="2.5", after="0.001")
    s.log("api", "POST /charges failed: bill cannot be reached: no answer within <*> s")


def clock_that_refuses_tokens(s: Story) -> None:
    s.now.rejected["api", "stock"] = s.now.rejected["search", "stock"] = 0.95
    s.types["api", "stock"] = s.types["search", "stock"] = ("401",)
    s.metric("stock", "process.clock.offset", 0.0, -400, unit="s")
    s.log("stock", "token rejected: not yet valid", severity="warn")


def pool_leak_counted_into_statements(s: Story) -> None:
    s.now.gap_ms["stock", "maindb"] = 1200
    s.now.rejected["stock", "maindb"] = 0.8
    s.types["stock", "maindb"] = ("pool_timeout",)
    s.statement("stock", "SELECT stock", 3, 1203)
    s.statement("stock", "UPDATE stock", 3, 1199, share=0.3)
    s.metric("stock", "db.client.connection.count", 1, 4, limit=4, state="used")
    s.metric("stock", "db.client.connection.pending_requests", 0, 6)
    s.metric("stock", "db.client.connection.wait_time", 0.0001, 1.2, unit="s")


def lossy_wire_that_fills_a_pool(s: Story) -> None:
    s.now.lost["bill", "maindb"] = 0.4
    s.now.loss_ms = 3000
    s.types["bill", "maindb"] = ("pool_timeout", "timeout")
    s.metric("bill", "db.client.connection.count", 1, 4, limit=4, state="used")
    s.metric("bill", "db.client.connection.pending_requests", 0, 6)
    s.metric("bill", "db.client.connection.wait_time", 0.0001, 1.1, unit="s")


def locked_table_that_fills_pools(s: Story) -> None:
    s.now.gap_ms["stock", "maindb"] = 700
    s.now.rejected["stock", "maindb"] = 0.5
    s.types["stock", "maindb"] = ("pool_timeout", "lock_timeout")
    s.statement("stock", "SELECT stock", 3, 1500)
    s.metric("maindb", "postgresql.locks.waiting", 0, 4)
    s.metric("stock", "db.client.connection.count", 1, 4, limit=4, state="used")
    s.metric("stock", "db.client.connection.pending_requests", 0, 6)


def missing_index(s: Story) -> None:
    s.now.gap_ms["search", "maindb"] = 900
    s.now.rejected["search", "maindb"] = 0.2
    s.types["search", "maindb"] = ("statement_timeout",)
    s.statement("search", "SELECT items by word", 4, 1800)
    s.statement("search", "SELECT item", 2, 3)
    s.now.gap_ms |= dict.fromkeys((("stock", "maindb"), ("bill", "maindb")), 4.0)
    s.metric("maindb", "postgresql.rows_scanned", 3000, 900_000, unit="{row}/s")
    s.metric("maindb", "postgresql.query.duration", 0.01, 1.4, unit="s")
    s.metric("maindb", "process.cpu.utilization", 0.2, 1.6)
    s.metric("search", "db.client.connection.count", 1, 4, limit=4, state="used")


def cpu_hog_with_slow_neighbours(s: Story) -> None:
    for service in s.now.own_ms:
        s.now.own_ms[service] *= 1.35
    s.now.own_ms["bill"] = 150
    s.now.gap_ms[("bill", "maindb")] = 60
    s.now.gap_ms[("bill", "bank")] = 70
    s.now.gap_ms[("api", "bill")] = 80
    s.metric("bill", "process.cpu.utilization", 0.1, 1.02)
    s.metric("stock", "process.cpu.utilization", 0.2, 0.3)


def killed_for_memory_again_and_again(s: Story) -> None:
    s.fail_into("search", 0.4, "connection_reset")
    s.metric("search", "process.memory.usage", 80e6, 150e6, limit=190e6, unit="By", shape="trend", at_s=1, peak=189e6)
    for n in range(4):
        s.exit("search", "oom_killed (137)", at_s=6 + n * 15)
        s.start("search", at_s=9 + n * 15)


def descriptors_seen_by_callers_only(s: Story) -> None:
    s.now.lost["api", "bill"] = 0.6
    s.types["api", "bill"] = ("timeout",)
    s.metric("bill", "process.open_file_descriptor.count", 25, 160, limit=160, shape="trend", at_s=-3)
    # It cannot export any more: a series that ended at zero says nothing about what it measured.
    s.metric("bill", "tls.certificate.expiry", 7e6, 0, unit="s", shape="gone", at_s=10)
    s.metric("bill", "process.cpu.utilization", 0.02, 0, shape="gone", at_s=10)
    s.log("bill", "accept failed: [Errno 24] Too many open files")


def blocked_queue_that_pushes_back(s: Story) -> None:
    s.now.own_errors["worker"] = 1.0
    s.now.own_errors["api"] = 0.25
    s.metric("worker", "queue.depth", 0, 40, shape="trend", at_s=5, messaging__destination__name="parcels")
    s.metric("worker", "queue.oldest_age", 0.2, 60, unit="s", shape="trend", messaging__destination__name="parcels")
    s.log("worker", "parcel <*> not booked, will try again: invalid literal", severity="warn")
    s.log("api", "intake paused: <*> parcels wait")


def spike_on_one_route(s: Story) -> None:
    s.now.rate = 66
    s.now.fanout[("web", "search")] = 0.95
    s.now.fanout[("web", "api")] = 0.18
    s.now.own_ms["search"] = 300
    s.metric("search", "process.cpu.utilization", 0.2, 0.98, at_s=3)
    s.metric("search", "db.client.connection.count", 1, 4, limit=4, state="used")


FAULTS: dict[str, tuple[Teller, Category, tuple[str, str]]] = {
    teller.__name__: (teller, category, subject)
    for teller, category, subject in (
        (crash_loop, Category.CRASH_LOOP, ("service", "stock")),
        (release_with_errors, Category.BAD_RELEASE, ("service", "bill")),
        (release_with_latency, Category.BAD_RELEASE, ("service", "search")),
        (release_with_more_queries, Category.BAD_RELEASE, ("service", "stock")),
        (release_that_crashes, Category.BAD_RELEASE, ("service", "stock")),
        (wrong_address, Category.BAD_CONFIG, ("service", "api")),
        (wrong_value, Category.BAD_CONFIG, ("service", "bill")),
        (flag_for_one, Category.BAD_FLAG, ("flag", "new-ranking")),
        (flag_for_all, Category.BAD_FLAG, ("flag", "new-ledger")),
        (service_down, Category.DEPENDENCY_DOWN, ("service", "stock")),
        (database_down, Category.DEPENDENCY_DOWN, ("database", "maindb")),
        (third_party_down, Category.DEPENDENCY_DOWN, ("external", "bank")),
        (latency_between, Category.NETWORK_LATENCY, ("edge", "api->bill")),
        (latency_to_database, Category.NETWORK_LATENCY, ("edge", "bill->maindb")),
        (partition, Category.NETWORK_LOSS, ("edge", "search->stock")),
        (packet_loss_to_only_callee, Category.NETWORK_LOSS, ("edge", "api->bill")),
        (cpu_hog, Category.CPU_SATURATION, ("service", "stock")),
        (memory_leak, Category.MEMORY_EXHAUSTION, ("service", "bill")),
        (pool_exhausted, Category.POOL_EXHAUSTION, ("service", "stock")),
        (slow_query, Category.SLOW_QUERY, ("database", "maindb")),
        (slow_query_of_one, Category.SLOW_QUERY, ("database", "maindb")),
        (lock_contention, Category.LOCK_CONTENTION, ("database", "maindb")),
        (disk_full, Category.DISK_FULL, ("service", "bill")),
        (descriptors_used_up, Category.DESCRIPTOR_EXHAUSTION, ("service", "stock")),
        (traffic_spike, Category.TRAFFIC_SPIKE, ("service", "web")),
        (certificate, Category.CERTIFICATE_EXPIRED, ("service", "bill")),
        (clock, Category.CLOCK_SKEW, ("service", "bill")),
        (backlog, Category.QUEUE_BACKLOG, ("queue", "parcels")),
        (crash_loop_behind_a_proxy, Category.CRASH_LOOP, ("service", "bill")),
        (service_down_behind_a_proxy, Category.DEPENDENCY_DOWN, ("service", "bill")),
        (database_down_behind_a_proxy, Category.DEPENDENCY_DOWN, ("database", "maindb")),
        (deadline_too_short, Category.BAD_CONFIG, ("service", "api")),
        (clock_that_refuses_tokens, Category.CLOCK_SKEW, ("service", "stock")),
        (pool_leak_counted_into_statements, Category.POOL_EXHAUSTION, ("service", "stock")),
        (lossy_wire_that_fills_a_pool, Category.NETWORK_LOSS, ("edge", "bill->maindb")),
        (locked_table_that_fills_pools, Category.LOCK_CONTENTION, ("database", "maindb")),
        (missing_index, Category.SLOW_QUERY, ("database", "maindb")),
        (cpu_hog_with_slow_neighbours, Category.CPU_SATURATION, ("service", "bill")),
        (killed_for_memory_again_and_again, Category.MEMORY_EXHAUSTION, ("service", "search")),
        (descriptors_seen_by_callers_only, Category.DESCRIPTOR_EXHAUSTION, ("service", "bill")),
        (blocked_queue_that_pushes_back, Category.QUEUE_BACKLOG, ("queue", "parcels")),
        (spike_on_one_route, Category.TRAFFIC_SPIKE, ("service", "web")),
    )
}
"""Name -> (story, category, (kind, name) of the object at fault)."""


def tell(name: str, *, seed: int = 1) -> Story:
    """Tell a fault amid noise."""
    story = Story(seed)
    story.noise()
    FAULTS[name][0](story)
    return story
