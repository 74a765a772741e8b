"""`python -m certiformer.proofs CERTIFICATE MODEL`: exit status 0 valid, 1 invalid, 2 holey, 3 wrong usage."""

from __future__ import annotations

import sys

from . import Invalid, Valid, check, describe


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m certiformer.proofs CERTIFICATE MODEL", file=sys.stderr)
        return 3
    outcome = check(arguments[0], arguments[1])
    if isinstance(outcome, Valid):
        print("valid\n" + describe(outcome.theorem))
        return 0
    if isinstance(outcome, Invalid):
        print(f"invalid: {outcome.step} ({outcome.rule}): {outcome.why}")
        return 1
    print("holey: " + "; ".join(outcome.which))
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
