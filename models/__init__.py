"""Models, the operations they are made of, and the data types that every other package shares."""

from __future__ import annotations

from .circuits import Circuit as Circuit
from .circuits import Edge as Edge
from .circuits import full_circuit as full_circuit
from .codec import Codec as Codec
from .config import LayerConfig as LayerConfig
from .config import TransformerConfig as TransformerConfig
from .config import parameter_shapes as parameter_shapes
from .edits import Ablate as Ablate
from .edits import Edited as Edited
from .edits import Given as Given
from .edits import Interchange as Interchange
from .edits import Mean as Mean
from .edits import Resample as Resample
from .edits import Subspace as Subspace
from .edits import Zero as Zero
from .edits import change_weight as change_weight
from .edits import edit as edit
from .edits import outside as outside
from .errors import CertiformerError as CertiformerError
from .errors import InputError as InputError
from .errors import InternalError as InternalError
from .languages import balanced as balanced
from .languages import distinct as distinct
from .languages import exactly_one as exactly_one
from .languages import occurrences as occurrences
from .languages import regular as regular
from .languages import sequences as sequences
from .languages import sorted_sequences as sorted_sequences
from .patterns import Pattern as Pattern
from .patterns import any_token as any_token
from .patterns import concat as concat
from .patterns import repeat as repeat
from .patterns import star as star
from .patterns import token as token
from .patterns import union as union
from .program import Operation as Operation
from .program import Program as Program
from .program import model_program as model_program
from .sites import Site as Site
from .sites import sites as sites
from .token_language import Language as Language
from .transformer import Transformer as Transformer
from .values import Value as Value
