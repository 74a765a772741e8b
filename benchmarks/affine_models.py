"""The trained models of the benchmark `affine`: small transformers that count equal tokens.

python -m benchmarks.affine_models: train them anew (two minutes on one core) into benchmarks/data. The task: at each
position, how many positions hold the same token, 7 at most. Vocabulary 8, length 6, d_model 32, bidirectional,
ReLU MLPs of 64 neurons; LayerNorm before each part and before the unembedding. 1500 steps of AdamW, batches of 128.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from certiformer.models import Transformer

VOCAB, LENGTH, WIDTH, STEPS, BATCH = 8, 6, 32, 1500, 128
CONFIGS: dict[str, tuple[int, int, int, bool]] = {
    "L1H1": (1, 1, 0, False),
    "L1H4": (1, 4, 0, False),
    "L1H4M": (1, 4, 64, False),
    "L2H1": (2, 1, 0, False),
    "L2H4M": (2, 4, 64, False),
    "L1H4M_LN": (1, 4, 64, True),
    "L2H4M_LN": (2, 4, 64, True),
}
"""Name -> layers, heads, neurons, LayerNorm."""
FOLDER = Path(__file__).parent / "data"


def labels(tokens: Tensor) -> Tensor:
    """[batch, pos]: at how many positions the same token stands, 7 at most."""
    return (tokens[:, :, None] == tokens[:, None, :]).sum(-1).clamp(max=VOCAB - 1)


def trained(name: str) -> Transformer:
    """A model of `CONFIGS`, from benchmarks/data."""
    from certiformer.models import Transformer

    return Transformer.load(FOLDER / f"counting-{name}.safetensors")


def train(name: str) -> Transformer:
    """The same, trained with seed 0."""
    import torch
    import torch.nn.functional as F

    from certiformer.models import LayerConfig, Transformer, TransformerConfig

    layers, heads, neurons, norm = CONFIGS[name]
    block = LayerConfig(heads, WIDTH // heads, neurons)
    config = TransformerConfig(
        WIDTH, LENGTH, VOCAB, VOCAB, (block,) * layers, layer_norm=1e-5 if norm else None, readout="each"
    )
    model = Transformer.initialised(config, seed=0)
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, STEPS)
    for _ in range(STEPS):
        tokens = torch.randint(VOCAB, (BATCH, LENGTH), generator=generator)
        loss = F.cross_entropy(model(tokens).reshape(-1, VOCAB), labels(tokens).reshape(-1))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return model


def main() -> None:
    """Trains all of them."""
    import torch

    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for name in CONFIGS:
        model = train(name)
        tokens = torch.randint(VOCAB, (4096, LENGTH), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            right = (model(tokens).argmax(-1) == labels(tokens)).double().mean()
        model.save(FOLDER / f"counting-{name}.safetensors")
        print(f"{name}: {100 * float(right):.2f} % of the labels right", flush=True)


if __name__ == "__main__":
    main()
