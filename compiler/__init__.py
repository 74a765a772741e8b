"""RASP programs, and the transformers they are compiled to. The compiler itself: `certiformer.compile`."""

from __future__ import annotations

from .alignment import Alignment as Alignment
from .analysis import Analysis as Analysis
from .analysis import analyse as analyse
from .compiled import Compiled as Compiled
from .core import CoreProgram as CoreProgram
from .interpreter import EvaluationError as EvaluationError
from .interpreter import evaluate as evaluate
from .lower import CompileError as CompileError
from .lower import lower as lower
from .rasp import Selector as Selector
from .rasp import SOp as SOp
