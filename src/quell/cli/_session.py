"""What one invocation knows: environment, shared options, and the settings once somebody needs them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from quell.app import App, Office, Toolset
    from quell.config import Loaded, Settings


class Session:
    """One invocation of `quell`. A plain class: `--help` shall not pay for dataclasses and pathlib."""

    def __init__(self, *, env: dict[str, str], is_json: bool = False) -> None:
        self.env = env
        self.is_json = is_json
        self.is_debug = False
        self.config: Path | None = None
        self.overrides: dict[str, str] = {}
        """Flags that stand for settings, by key."""
        self.command = "quell"
        self.note = ""
        """What an interrupted command wants to have said."""
        self._loaded: Loaded | None = None

    def loaded(self) -> Loaded:
        """Read the configuration once. Raises ConfigError with every mistake."""
        if self._loaded is None:
            from pathlib import Path

            from quell.cli._dotenv import read_dotenv
            from quell.config import load

            # A `.env` may stand beside the configuration and where we were started; it may name the configuration too.
            for directory in dict.fromkeys(((self.config or Path()).parent, Path())):
                for name, value in read_dotenv(directory).items():
                    self.env.setdefault(name, value)
            auras = self.env.get("CONFIG_PATH", "")
            self._loaded = load(self.config or (Path(auras) if auras else None), env=self.env, overrides=self.overrides)
        return self._loaded

    def settings(self) -> Settings:
        """Return the settings, with the MCP servers of agent files among the others."""
        loaded = self.loaded()
        if not loaded.agents:
            return loaded.settings
        from quell.app import merged

        return merged(loaded.settings, loaded.agents)[0]

    def take(self, loaded: Loaded) -> None:
        """Take this for what was read: flags may change more than settings."""
        self._loaded = loaded

    @property
    def known_settings(self) -> Settings | None:
        """Settings, if they were read without a mistake."""
        return self._loaded.settings if self._loaded is not None else None

    def use_colour(self, choice: Literal["auto", "always", "never"]) -> None:
        """Let `--color` win over NO_COLOR and FORCE_COLOR, for everything that reads the environment below."""
        if choice == "auto":
            return
        self.env.pop("FORCE_COLOR" if choice == "never" else "NO_COLOR", None)
        self.env["NO_COLOR" if choice == "never" else "FORCE_COLOR"] = "1"

    def with_app(
        self,
        work: Callable[[App], Awaitable[int]],
        *,
        role: Literal["serve", "command"] = "command",
        agents: Literal["none", "open"] = "none",
    ) -> int:
        """Open the app, let `work` use it, close it; Ctrl-C and SIGTERM cancel the work and still close it.

        `agents`: whether questions can be asked; who asks none need not wait for models to load.
        """
        settings = self.loaded().settings
        known = self.loaded().agents if agents == "open" else None
        import os

        from quell.app import open_app
        from quell.cli._loop import run_until_done
        from quell.runs import system_clock

        async def use() -> int:
            async with open_app(
                settings, role=role, clock=system_clock, entropy=os.urandom, env=self.env, agents=known
            ) as app:
                return await work(app)

        return run_until_done(use, loop="quick" if role == "serve" else "standard")

    def with_office(self, work: Callable[[Office], int | Awaitable[int]]) -> int:
        """Open what people decide with, let `work` use it, close it. It may block: its transactions are short."""
        import inspect

        async def use(office: Office) -> int:
            done = work(office)
            return await done if inspect.isawaitable(done) else done

        return self._with_office(use)

    def with_toolset(self, work: Callable[[Office, Toolset], Awaitable[int]]) -> int:
        """Open the tools beside it; no server is asked before `work` does, and no policy has to be right."""

        async def use(office: Office) -> int:
            from quell.app import Toolset, idle_tools

            idle = idle_tools(office.settings, self.loaded().agents, clock=office.clock)
            toolset = await Toolset.open(office, builtin=idle)
            try:
                return await work(office, toolset)
            finally:
                await toolset.close()

        return self._with_office(use)

    def _with_office(self, work: Callable[[Office], Awaitable[int]]) -> int:
        settings = self.settings()
        import os

        from quell import __version__
        from quell.app import Office
        from quell.audit import Redactor
        from quell.cli._loop import run_until_done
        from quell.config import version_of
        from quell.runs import Runs, system_clock
        from quell.telemetry import open_telemetry

        redactor = Redactor.of(settings, environment=self.env)

        async def use() -> int:
            # Without it, what libraries warn of would go to stderr as it is, secrets included.
            telling = open_telemetry(
                settings,
                role="command",
                service_version=__version__,
                instance=f"{os.uname().nodename}-{os.getpid()}",
                clock=system_clock,
                env=self.env,
                clean=redactor.text,
            )
            try:
                runs = await Runs.open(
                    settings.journal,
                    state_dir=settings.state_dir,
                    clock=system_clock,
                    entropy=os.urandom,
                    version=version_of(settings),
                    clean=redactor.text,
                )
                try:
                    office = await Office.open(
                        runs, settings, clock=system_clock, entropy=os.urandom, env=self.env, redactor=redactor
                    )
                    try:
                        return await work(office)
                    finally:
                        await office.close()
                finally:
                    await runs.close()
            finally:
                await telling.close()

        return run_until_done(use)
