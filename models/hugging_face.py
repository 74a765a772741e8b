"""GPT-2-style Hugging Face checkpoints, in local folders: read as models of ours, and written.

found = load_hugging_face("gpt2")           # .model, .codec
save_hugging_face(model, "folder", codec)   # for `GPT2LMHeadModel.from_pretrained("folder")`
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .codec import Codec
from .config import TransformerConfig
from .errors import InputError
from .gpt2 import LM, architecture_of, from_gpt2, to_gpt2
from .hugging_face_files import CODEC, Checkpoint, read_folder, write_folder
from .transformer import Transformer
from .values import Value

PLAIN_LABEL = re.compile(r"LABEL_\d+")


@dataclass(frozen=True, eq=False)
class HuggingFaceModel:
    """A checkpoint's model, with its weights exactly, and what its tokens and outputs are.

    `codec`: that of certiformer.json; else the tokens of vocab.json (ids that it leaves out are `<id 7>`), else the ids
    themselves. A language model outputs tokens, a classifier the labels of config.json, or their numbers. Text is not
    split into tokens here. `GPT2ForSequenceClassification` is read out at the last position: of words that do not end
    with the padding token.
    """

    model: Transformer
    codec: Codec


def load_hugging_face(path: str | Path, *, upcast: bool = False) -> HuggingFaceModel:
    """The model in a local folder: config.json; model.safetensors or pytorch_model.bin, also sharded.

    `upcast`: take float16 and bfloat16 weights, each exactly, as float32. No code is run: folders that bring some are
    refused, and pytorch_model.bin is read with `weights_only`. Raises `InputError` for these, for damaged files, and
    for settings or weights that models here do not have, all listed.
    """
    checkpoint = read_folder(path)
    try:
        model = from_gpt2(checkpoint.weights, checkpoint.config, upcast=upcast)
        return HuggingFaceModel(model, _codec(checkpoint, model.config))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def save_hugging_face(model: Transformer, path: str | Path, codec: Codec | None = None) -> None:
    """Writes a new folder with config.json and model.safetensors, as a whole or not at all.

    `codec` goes into certiformer.json, which `load_hugging_face` reads. Raises `InputError` listing all that GPT-2
    cannot express, and if there is something at `path`.
    """
    model.require_float32()
    state, settings = to_gpt2(model)
    write_folder(path, settings, state, None if codec is None else codec.to_json())


def _codec(checkpoint: Checkpoint, config: TransformerConfig) -> Codec:
    if checkpoint.codec is not None:
        codec = Codec.from_json(checkpoint.codec)
        outputs = len(codec.outputs) if codec.kind == "categorical" else 1
        if len(codec.vocab) + codec.bos > config.d_vocab or outputs != config.d_vocab_out:
            raise InputError(
                f"{CODEC} is another model's: it has {len(codec.vocab) + codec.bos} tokens and {outputs} logits, "
                f"the model {config.d_vocab} and {config.d_vocab_out}"
            )
        return codec
    vocab = _vocab(checkpoint.tokens, config.d_vocab)
    outputs_ = vocab
    if architecture_of(checkpoint.config, checkpoint.weights) != LM:
        outputs_ = _labels(checkpoint.config.get("id2label"), config.d_vocab_out)
    return Codec(vocab, False, "categorical", outputs_, max_len=config.n_ctx)


def _vocab(tokens: Mapping[str, Any] | None, size: int) -> tuple[Value, ...]:
    """The token of each id."""
    if tokens is None:
        return tuple(range(size))
    by_id: dict[int, str] = {}
    for token, number in tokens.items():
        if type(number) is not int or not 0 <= number < size or number in by_id:
            raise InputError(
                f"vocab.json: token {token!r} has the id {number!r}; ids are 0 to {size - 1} (vocab_size), each once"
            )
        by_id[number] = token
    return tuple(by_id.get(number, f"<id {number}>") for number in range(size))


def _labels(names: object, count: int) -> tuple[Value, ...]:
    """What a classifier outputs: the names of labels, if they were given any."""
    if not isinstance(names, Mapping):
        return tuple(range(count))
    found = [names.get(str(number)) for number in range(count)]
    if len(names) != count or not all(isinstance(name, str) for name in found):
        raise InputError(f"config.json: id2label must name the labels 0 to {count - 1}, got {str(dict(names))[:200]}")
    if all(PLAIN_LABEL.fullmatch(str(name)) for name in found):
        return tuple(range(count))
    return tuple(map(str, found))
