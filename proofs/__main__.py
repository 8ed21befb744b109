"""Print the table of promises: `python -m proofs [--full] [--seed N] [NAME ...]`; `--write` makes PROMISES.md of it."""

from __future__ import annotations

import argparse
import secrets
import sys

from proofs._document import DOCUMENT, keep, write
from proofs._proof import Scale
from proofs._run import Tried, promises, try_all


def main(arguments: list[str]) -> int:
    """Try the promises that were named, or all; exit 1 when one was broken, 130 when it was interrupted."""
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
    names, broken, tried = list(told.names or known), 0, set[str]()
    try:
        for each in try_all(names, scale=scale, seed=told.seed):
            tried.add(each.name)
            broken += each.result.violations
            _print(each)
            keep(each.name, each.result, scale=scale, seed=told.seed)
    except KeyboardInterrupt:
        left = [name for name in names if name not in tried]
        print(f"interrupted; not tried to the end: {', '.join(left)}", flush=True)
        return 130
    return 1 if broken else 0


def _print(tried: Tried) -> None:
    """Print the line of a promise, and what reproduces the first violations."""
    result = tried.result
    kind = "exhaustive" if result.is_exhaustive else "sampled"
    print(
        f"{tried.name:24} {result.cases:>9,} {result.violations:>10,}  {kind:10} {tried.spent_s:>7.1f}  {result.note}",
        flush=True,
    )
    for failure in result.failures:
        print(f"{'':24} violated: {failure}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
