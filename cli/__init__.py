"""The command line. `main` is the console script; `execute` is the same as a function from arguments to exit code."""

from __future__ import annotations

from . import decompile_command as decompile_command
from . import explain_command as explain_command
from . import formats_command as formats_command
from . import program_command as program_command
from .app import execute as execute
from .app import main as main
