"""`decompile`: the program of a model, read off its weights, with the verdict on it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import inputs
from .claims import Wanted
from .commands import compiled_domain, not_proved
from .output import BadInput, ExitCode, Screen, facts

if TYPE_CHECKING:
    from ..explanations import Decompiled


@dataclass(frozen=True)
class Decompiling:
    """The options as typed; None: not given."""

    source: str | None = None
    output: Path | None = None
    certificate: Path | None = None
    lengths: str | None = None
    vocab: str | None = None
    seconds: float = 60.0

    def check(self, model: Path) -> None:
        """Raises `BadInput` before any work is done."""
        if not self.seconds > 0:
            raise BadInput(f"--seconds must be above 0, got {self.seconds:g}")
        if self.output is not None and self.output.suffix not in (".py", ".json"):
            raise BadInput(f"-o takes a file that ends in .py or .json, got {self.output}")
        for target in (self.output, self.certificate):
            if target is None:
                continue
            if not target.parent.is_dir():
                raise BadInput(f"cannot write {target}: there is no folder {target.parent}")
            if target.exists() and model.exists() and target.samefile(model):
                raise BadInput(f"{target} is the input, which would be lost; choose another file")


def decompile_model(path: Path, asked: Decompiling, as_json: bool) -> int:
    """Shows the program; the exit code is that of the verdict on whether the model computes it."""
    from .. import decompile
    from ..compiler.compiled import Compiled
    from ..verifier.verdicts import Proved

    file = inputs.model_file(path)
    asked.check(file)
    if inputs.is_trained(path):
        return _trained(path, asked, as_json)
    source = inputs.load_program(asked.source).program if asked.source is not None else None
    compiled = Compiled.load(file)
    domain = compiled_domain(compiled, Wanted("computes", lengths=asked.lengths, vocab=asked.vocab))
    screen = Screen(as_json)
    started = time.perf_counter()
    with screen.progress("decompiling") as tell:
        found = decompile(
            compiled,
            source=source,
            domain=domain,
            name=f"recovered_{compiled.core.name}",
            seconds=asked.seconds,
            progress=tell,
        )
    data = {**found.to_json(), "seconds": round(time.perf_counter() - started, 3)}
    _write(found, asked, data)
    if not isinstance(found.verdict, Proved):
        screen.say(found.text)
        return not_proved(found.verdict, data, screen)
    rows: dict[str, object] = {"functions": f"{found.formulas} formulas, {found.left_as_tables} left as tables"}
    if asked.output is not None:
        rows["saved"] = asked.output
    if asked.certificate is not None:
        rows["certificate"] = asked.certificate
    parts = [found.text, facts(rows), str(found.verdict)]
    if found.equivalence is not None:
        parts.append(str(found.equivalence))
    data |= {"verdict": "proved", "certificate": str(asked.certificate) if asked.certificate else None}
    screen.show(data, *parts)
    return ExitCode.OK


def _trained(path: Path, asked: Decompiling, as_json: bool) -> int:
    """A program for a trained model, the share of the inputs on which it is proved right, and some where it is not."""
    from .. import decompile_trained
    from ..models.files import write_atomically

    given = [f"--{name}" for name in ("source", "lengths", "vocab") if getattr(asked, name) is not None]
    if given:
        raise BadInput(f"{path} is a trained model, whose task says what its inputs are: it takes no {given[0]}")
    trained = inputs.load_trained_model(path)
    screen = Screen(as_json)
    with screen.progress("decompiling") as tell:
        found = decompile_trained(trained.model, trained.task, seconds=asked.seconds, progress=tell)
    data = found.to_json()
    if asked.output is not None:
        text = found.text if asked.output.suffix == ".py" else json.dumps(data, indent=2, default=str) + "\n"
        write_atomically(asked.output, text.encode())
    if asked.certificate is not None and found.agreement is not None:
        found.agreement.certificate.save(asked.certificate)
    shown = found.text if found.program is not None else found.text.partition("\n")[0].strip('"')
    rows: dict[str, object] = {
        "program agrees": found.agreement if found.agreement is not None else f"not proved: {found.reason}",
        "compared": f"{found.differing} of {found.compared} inputs differ",
    }
    if asked.output is not None:
        rows["saved"] = asked.output
    screen.show(data, shown, facts(rows), *(f"  {one}" for one in found.disagreements))
    return ExitCode.OK if found.agreement is not None else ExitCode.OPEN


def _write(found: Decompiled, asked: Decompiling, data: dict[str, Any]) -> None:
    from ..models.files import write_atomically
    from ..verifier.verdicts import Proved

    if asked.output is not None:
        text = found.text if asked.output.suffix == ".py" else json.dumps(data, indent=2, default=str) + "\n"
        write_atomically(asked.output, text.encode())
    if asked.certificate is not None and isinstance(found.verdict, Proved):
        found.verdict.certificate.save(asked.certificate)
