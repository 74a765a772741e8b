"""A model with its codec and nothing else known of it, as another tool's checkpoints are: in memory and as a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .codec import Codec
from .config import TransformerConfig
from .errors import InputError
from .files import parse_json
from .hugging_face import load_hugging_face
from .hugging_face_files import is_checkpoint
from .transformer import Transformer

METADATA_KEY = "certiformer.codec"


@dataclass(frozen=True, eq=False)
class CodedModel:
    """`model`, and the `codec` that says what its tokens and outputs are."""

    model: Transformer
    codec: Codec

    def save(self, path: str | Path) -> None:
        """One safetensors file with both, written atomically."""
        text = json.dumps(self.codec.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        self.model.save(path, extra={METADATA_KEY: text})

    @staticmethod
    def load(path: str | Path) -> CodedModel:
        """What `save` wrote, or a Hugging Face checkpoint's folder. Raises `InputError` for anything else."""
        if is_checkpoint(path):
            found = load_hugging_face(path)
            return CodedModel(found.model, found.codec)
        model, metadata = Transformer.load_with_metadata(path)
        if METADATA_KEY not in metadata:
            raise InputError(f"{path} holds a model without a codec; use Transformer.load for bare models")
        try:
            return CodedModel(model, Codec.from_json(parse_json(metadata[METADATA_KEY])))
        except (ValueError, TypeError) as error:
            raise InputError(f"the codec in {path} is damaged: {error}; import the model again") from None


def is_coded(path: str | Path) -> bool:
    """Whether `CodedModel.load` is for this path. Raises `InputError` for what is no model's file at all."""
    return is_checkpoint(path) or METADATA_KEY in Transformer.load_with_metadata(path)[1]


def ids_codec(config: TransformerConfig) -> Codec:
    """Token ids as tokens, and numbers of logits as outputs."""
    return Codec(
        tuple(range(config.d_vocab)), False, "categorical", tuple(range(config.d_vocab_out)), max_len=config.n_ctx
    )
