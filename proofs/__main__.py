"""`python -m certiformer.proofs CERTIFICATE MODEL`: is the certificate's theorem true of the model?

Without MODEL: of a theorem about programs.

Exit status: 0 valid, 1 invalid, 2 holey, 3 wrong usage, or a file that cannot be read or holds something else;
141 if nobody reads the output.
"""

from __future__ import annotations

import io
import os
import sys

from . import Invalid, Rejected, Valid, check, describe
from .files import objection, read_bytes


def main(arguments: list[str]) -> int:
    if len(arguments) not in (1, 2):
        print("usage: python -m certiformer.proofs CERTIFICATE [MODEL]", file=sys.stderr)
        return 3
    certificate, model = arguments[0], arguments[1] if len(arguments) == 2 else None
    try:
        content = read_bytes(certificate)
    except Rejected as error:
        return _refuse(f"{certificate}: {error.why}")
    outcome = check(content, model)
    if isinstance(outcome, Valid):
        print("valid\n" + describe(outcome.theorem))
        return 0
    if isinstance(outcome, Invalid):
        if problem := objection(outcome, content):
            return _refuse(f"{model or certificate if outcome.step == 'model' else certificate}: {problem}")
        print(_visible(f"invalid: {outcome.step} ({outcome.rule}): {outcome.why}"))
        return 1
    print(_visible("holey: " + "; ".join(outcome.which)))
    return 2


def _refuse(message: str) -> int:
    print(f"error: {_visible(message)}", file=sys.stderr)
    return 3


def _visible(text: str) -> str:
    """What a file says must not steer the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def run() -> None:
    """`main` as a process: any encoding of the output will do, and nobody has to read it to its end."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # 128 + SIGPIPE; what is still buffered goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    sys.exit(status)


if __name__ == "__main__":
    run()
