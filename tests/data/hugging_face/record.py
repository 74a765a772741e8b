"""Makes the checkpoints and recorded.json of this folder; needs transformers: python record.py FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2ForTokenClassification, GPT2LMHeadModel

SHAPE = {"vocab_size": 11, "n_positions": 7, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_inner": 10}
LABELS = {0: "a", 1: "b", 2: "c", 3: "d"}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "lm": (GPT2LMHeadModel, {"activation_function": "gelu_new", "scale_attn_by_inverse_layer_idx": True}),
    "tokens": (
        GPT2ForTokenClassification,
        {"activation_function": "gelu", "scale_attn_weights": False, "num_labels": 3},
    ),
    "sequence": (
        GPT2ForSequenceClassification,
        {"activation_function": "silu", "pad_token_id": 10, "id2label": LABELS, "layer_norm_epsilon": 1e-3},
    ),
}


def main(folder: Path) -> None:
    torch.manual_seed(7)
    cases = {}
    for name, (kind, settings) in CASES.items():
        model = kind(GPT2Config(**SHAPE, bos_token_id=None, eos_token_id=None, **settings)).eval()
        with torch.no_grad():
            for weight, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape)
                parameter.copy_(1 + 0.3 * noise if "ln_" in weight and weight.endswith("weight") else 0.5 * noise)
            tokens = torch.randint(0, 10, (5, 7))
            logits, short = (model(input_ids=part).logits.double().tolist() for part in (tokens, tokens[:, :3]))
        model.save_pretrained(folder / name)
        cases[name] = {"tokens": tokens.tolist(), "logits": logits, "short": short}
    (folder / "recorded.json").write_text(json.dumps({"transformers": transformers.__version__, "cases": cases}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
