"""The process of one service: load the release, serve, leave gracefully."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import uvicorn

from quell_lab._child import die_with_parent
from quell_lab.kit._errors import ShopError
from quell_lab.kit._service import Service
from quell_lab.kit._spec import SPEC_VARIABLE, ProcessSpec, decode_spec
from quell_lab.kit._telemetry import open_signals

TICK_S = 0.25
RULES_EVERY_S = 1.5
DRAIN_S = 3


class _Server(uvicorn.Server):
    """A server that leaves signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main() -> None:
    """Run one service until it is told to stop."""
    die_with_parent()
    spec = decode_spec(os.environ[SPEC_VARIABLE])
    resource.setrlimit(resource.RLIMIT_NOFILE, (spec.descriptor_limit, spec.descriptor_limit))
    sys.exit(asyncio.run(_run(spec)))


async def _run(spec: ProcessSpec) -> int:
    signals = open_signals(
        service=spec.service,
        version=spec.version,
        instance=spec.instance,
        host=spec.host,
        endpoint=spec.endpoint,
    )
    service = Service(spec, signals)
    service.spool.limit_files()
    _load(spec.release).build(service)
    server = _Server(_server_config(service))
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: setattr(server, "should_exit", True))
    try:
        await _load_rules_first(service)
        await _serve(service, server)
    except ValueError as error:
        signals.report.fatal(f"cannot parse business rules of {spec.service}: {error}", cause=error)
        signals.flush()
        return 1
    await asyncio.to_thread(signals.close)
    return 0


async def _serve(service: Service, server: _Server) -> None:
    listener = socket.socket(fileno=service.spec.descriptor)
    listener.listen(128)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    tls = server.config.ssl
    print("ready", flush=True)
    service.report.info(f"{service.spec.service} {service.spec.version} is serving")
    work = [
        asyncio.create_task(_tick(service, tls is not None, server)),
        asyncio.create_task(_refresh_rules(service)),
        *(asyncio.create_task(item()) for item in service.background),
    ]
    done, _ = await asyncio.wait([serving, *work], return_when=asyncio.FIRST_COMPLETED)
    for task in work:
        task.cancel()
    await asyncio.gather(*work, return_exceptions=True)
    for task in done:
        task.result()
    await serving
    if service.database is not None:
        await service.database.pool.close()


async def _tick(service: Service, has_tls: bool, server: _Server) -> None:  # noqa: FBT001 - private
    certificate = Path(service.spec.certificate) if has_tls else None
    stamp = certificate.stat().st_mtime_ns if certificate else 0
    while True:
        await asyncio.sleep(TICK_S)
        service.tick()
        if certificate and certificate.stat().st_mtime_ns != stamp:
            stamp = certificate.stat().st_mtime_ns
            assert server.config.ssl is not None
            server.config.ssl.load_cert_chain(service.spec.certificate, service.spec.certificate_key)
            service.report.info("certificate reloaded")


async def _load_rules_first(service: Service) -> None:
    while True:
        try:
            return await service.load_rules()
        except ShopError as error:
            service.report.warn(f"business rules not loaded yet: {error}")
            await asyncio.sleep(0.5)


async def _refresh_rules(service: Service) -> None:
    while True:
        await asyncio.sleep(RULES_EVERY_S)
        try:
            await service.load_rules()
        except ShopError as error:
            service.report.warn(f"business rules not refreshed: {error}")


def _load(path: str) -> ModuleType:
    found = importlib.util.spec_from_file_location("release", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _server_config(service: Service) -> uvicorn.Config:
    spec = service.spec
    return uvicorn.Config(
        service.asgi(),
        http="httptools",
        loop="none",
        lifespan="off",
        ws="none",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=DRAIN_S,
        ssl_certfile=spec.certificate or None,
        ssl_keyfile=spec.certificate_key if spec.certificate else None,
        server_header=False,
        date_header=False,
    )


if __name__ == "__main__":
    main()
