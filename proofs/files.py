"""Files that hold no certificate or no model at all, told from certificates that prove nothing."""

from __future__ import annotations

from os import PathLike

from .check import Invalid
from .format import FORMAT, MAX_BYTES, Rejected, parse_json, record, require, show

PARTS = ("format", "theorem", "proof", "seal")
CERTIFICATE_REMEDY = "it may be cut short: copy it again, or make one with `certiformer prove MODEL -o CERT`"
MODEL_REMEDY = "give the model's file, as `certiformer compile -o` or `Compiled.save` wrote it"


def read_bytes(path: str | PathLike[str]) -> bytes:
    """The contents of a certificate's file, or so many that they exceed the limit. Raises `Rejected`."""
    try:
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Rejected(
            f"cannot read the certificate: {reason}; {CERTIFICATE_REMEDY}", "certificate", "format"
        ) from None


def objection(outcome: Invalid, certificate: bytes) -> str | None:
    """Why there was nothing to check, and what to do about it; None if there was.

    A file of another kind, cut short or of another version is no certificate. One with a broken seal, or with other
    bytes than the canonical ones, is: it is invalid.
    """
    if outcome.step == "model" and outcome.rule == "model":
        return f"the model cannot be read: {outcome.why}; {MODEL_REMEDY}"
    if outcome.step != "certificate":
        return None
    try:
        require(len(certificate) <= MAX_BYTES, outcome.why)
        require(certificate, "it is empty")
        data = record(parse_json(certificate), "it", PARTS)
        require(data["format"] == FORMAT, f"its format is {show(data['format'])}; this checker reads {FORMAT!r}")
    except Rejected as error:
        return f"no certificate: {error.why}; {CERTIFICATE_REMEDY}"
    return None
