"""Print the table of promises: `python -m proofs [--full] [--seed N] [NAME ...]`; `--write` makes PROMISES.md of it."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import secrets
import sys
import time

import proofs
from proofs._document import DOCUMENT, keep, write
from proofs._proof import Promise, Scale


def promises() -> list[Promise]:
    """Return every promise of the modules beside this one, in the order of their names."""
    found: list[Promise] = []
    for module in pkgutil.iter_modules(proofs.__path__):
        if not module.name.startswith("_"):
            found += importlib.import_module(f"proofs.{module.name}").PROMISES
    return found


def main(arguments: list[str]) -> int:
    """Try the promises that were named, or all; exit 1 when one was broken."""
    parser = argparse.ArgumentParser(prog="python -m proofs", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--full", action="store_true", help="the sizes that PROMISES.md states; CI tries fewer")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--list", action="store_true", help="name the promises and try none")
    parser.add_argument("--write", action="store_true", help="write PROMISES.md from the last full runs, and stop")
    told = parser.parse_args(arguments)
    known = {promise.name: promise for promise in promises()}
    if told.list:
        for promise in known.values():
            print(f"{promise.name:24} {promise.promise}")
        return 0
    if told.write:
        missing = write(known.values())
        print(f"written: {DOCUMENT}" + (f"; without a full run: {', '.join(missing)}" if missing else ""))
        return 0
    unknown = [name for name in told.names if name not in known]
    if unknown:
        parser.error(f"no such proof: {', '.join(unknown)}; known: {', '.join(known)}")
    scale: Scale = "full" if told.full else "ci"
    print(f"seed {told.seed}, scale {scale}")
    print(f"{'promise':24} {'cases':>9} {'violations':>10}  {'kind':10} {'seconds':>7}  note")
    broken = 0
    for name in told.names or known:
        began = time.monotonic()
        result = known[name].try_it(scale, told.seed)
        kind = "exhaustive" if result.is_exhaustive else "sampled"
        spent_s = time.monotonic() - began
        print(
            f"{name:24} {result.cases:>9,} {result.violations:>10,}  {kind:10} {spent_s:>7.1f}  {result.note}",
            flush=True,
        )
        for failure in result.failures:
            print(f"{'':24} violated: {failure}")
        broken += result.violations
        keep(name, result, scale=scale, seed=told.seed)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
