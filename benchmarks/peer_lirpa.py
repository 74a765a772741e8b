"""Measure auto_LiRPA on the models and regions of the benchmark `affine`; written to peer_lirpa.json.

    python -m benchmarks.peer_lirpa [--only MODEL ...] [--limit SECONDS] [--output FILE]

Needs an importable `auto_LiRPA` (Verified-Intelligence/auto_LiRPA). The model is rebuilt from torch's own layers on
embeddings (a ball) or on one-hot rows (token regions, relaxed to the box [0, 1]); its logits are compared with ours
first. Both of its softmax relaxations are measured: `complex` (of exp, sum and reciprocal; its default) and `lse`.
Every case runs in a process of its own on one thread. CPU seconds are of `compute_bounds` alone, without building the
graph: the median of up to five runs (alpha-CROWN, 20 iterations: one). float32, as it is used.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import statistics
import time
import warnings
from datetime import date
from pathlib import Path
from typing import Any

from .affine_models import CONFIGS, LENGTH, VOCAB, WIDTH, trained

RECORD = Path(__file__).parent / "peer_lirpa.json"
WORD = (3, 1, 4, 1, 5, 0)
REGIONS = ("ball .01", "ball .1", "one free", "all free")
METHODS = ("IBP", "CROWN-IBP", "CROWN", "CROWN-Optimized")
SOFTMAX = ("complex", "lse")
LIMIT = 240.0
REPEATS = 5
ITERATIONS = 20


def network(name: str) -> Any:
    """Our model as a torch module on embeddings [1, pos, d_model]."""
    import torch
    from torch import Tensor, nn

    model = trained(name)
    layers, heads, neurons, norm = CONFIGS[name]
    d_head = WIDTH // heads
    get = model.parameter

    def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
        made = nn.Linear(*weight.shape)
        made.weight.data, made.bias.data = weight.detach().T.contiguous(), bias.detach().clone()
        return made

    def layer_norm(prefix: str) -> nn.Module:
        if not norm:
            return nn.Identity()
        made = nn.LayerNorm(WIDTH, eps=model.config.layer_norm)  # type: ignore[arg-type]
        made.weight.data, made.bias.data = get(f"{prefix}.w").detach().clone(), get(f"{prefix}.b").detach().clone()
        return made

    class Block(nn.Module):
        def __init__(self, number: int) -> None:
            super().__init__()
            p = f"blocks.{number}"
            self.n1, self.n2 = layer_norm(f"{p}.ln1"), layer_norm(f"{p}.ln2") if neurons else None
            for x in "QKV":
                weight = get(f"{p}.attn.W_{x}").permute(1, 0, 2).reshape(WIDTH, WIDTH)
                setattr(self, x, linear(weight, get(f"{p}.attn.b_{x}").reshape(-1)))
            self.O = linear(get(f"{p}.attn.W_O").reshape(WIDTH, WIDTH), get(f"{p}.attn.b_O"))
            if neurons:
                self.f1 = linear(get(f"{p}.mlp.W_in"), get(f"{p}.mlp.b_in"))
                self.f2 = linear(get(f"{p}.mlp.W_out"), get(f"{p}.mlp.b_out"))

        def split(self, x: Tensor) -> Tensor:
            return x.reshape(-1, LENGTH, heads, d_head).transpose(1, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.n1(x)
            q, k, v = self.split(self.Q(y)), self.split(self.K(y)), self.split(self.V(y))
            pattern = torch.softmax(torch.matmul(q, k.transpose(-1, -2)) / d_head**0.5, dim=-1)
            x = x + self.O(torch.matmul(pattern, v).transpose(1, 2).reshape(-1, LENGTH, WIDTH))
            if self.n2 is not None:
                x = x + self.f2(torch.relu(self.f1(self.n2(x))))
            return x

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Block(number) for number in range(layers)])
            self.last, self.U = layer_norm("ln_final"), linear(get("unembed.W_U"), get("unembed.b_U"))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return self.U(self.last(x))  # type: ignore[no-any-return]

    class OneHot(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net
            self.table, self.positions = get("embed.W_E").detach().clone(), get("pos_embed.W_pos").detach().clone()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(torch.matmul(x, self.table) + self.positions)  # type: ignore[no-any-return]

    return model, Net().eval(), OneHot


def measure(name: str, region: str, softmax: str, method: str) -> dict[str, Any]:
    """One case, in this process."""
    import auto_LiRPA
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(1)
    model, net, one_hot = network(name)
    tokens = torch.tensor([WORD])
    embedded = (model.parameter("embed.W_E")[tokens] + model.parameter("pos_embed.W_pos")).detach()
    with torch.no_grad():
        assert float((net(embedded) - model(tokens)).abs().max()) < 1e-3, "the rebuilt model differs"
    if region.startswith("ball"):
        x = embedded
        around = auto_LiRPA.PerturbationLpNorm(norm=float("inf"), eps=float(region.split()[1]))
    else:
        net, x = one_hot(net), F.one_hot(tokens, VOCAB).float()
        low, high, free = x.clone(), x.clone(), LENGTH if region == "all free" else 1
        low[:, :free], high[:, :free] = 0.0, 1.0
        around = auto_LiRPA.PerturbationLpNorm(norm=float("inf"), x_L=low, x_U=high)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    options = {"optimize_bound_args": {"iteration": ITERATIONS, "lr_alpha": 0.1}, "sparse_intermediate_bounds": False}
    options |= {"softmax": softmax} | ({"fixed_reducemax_index": True} if softmax == "complex" else {})
    optimised = method == "CROWN-Optimized"
    cpu = []
    with contextlib.redirect_stdout(io.StringIO()), torch.enable_grad() if optimised else torch.no_grad():
        bounded = auto_LiRPA.BoundedModule(net, x, bound_opts=options, verbose=False)
        for _ in range(1 if optimised else REPEATS):
            start = time.process_time()
            low, high = bounded.compute_bounds(x=(auto_LiRPA.BoundedTensor(x, around),), method=method)
            cpu.append(time.process_time() - start)
    width = (high - low).detach()[0].double()
    finite = bool(torch.isfinite(width).all())
    return {"cpu_s": round(statistics.median(cpu), 5), "width": float(width.mean()) if finite else None}


def _child(pipe: Any, case: tuple[str, str, str, str]) -> None:
    warnings.simplefilter("ignore")
    try:
        pipe.send(measure(*case))
    except Exception as error:  # what it cannot do is recorded
        pipe.send({"error": f"{type(error).__name__}: {error}"[:200]})


def apart(case: tuple[str, str, str, str], limit: float) -> dict[str, Any]:
    """One case in a process of its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, case))
    process.start()
    sender.close()
    try:
        found: dict[str, Any] = receiver.recv() if receiver.poll(limit) else {"error": f"stopped after {limit:g} s"}
    except EOFError:
        found = {"error": "the process died"}
    process.kill()
    process.join()
    return found


def main() -> None:
    """Every model, region, relaxation and method."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--limit", type=float, default=LIMIT)
    parser.add_argument("--output", type=Path, default=RECORD)
    args = parser.parse_args()
    import auto_LiRPA
    import torch

    torch.set_num_threads(1)
    data: dict[str, Any] = json.loads(args.output.read_text()) if args.output.exists() else {"cases": []}
    data |= {"peer": "auto_LiRPA", "version": auto_LiRPA.__version__, "date": date.today().isoformat()}
    data |= {"torch": torch.__version__, "iterations": ITERATIONS}
    for name in args.only:
        data["cases"] = [case for case in data["cases"] if case["model"] != name]
        sha = trained(name).weights_sha256()
        for region in REGIONS:
            for softmax in SOFTMAX:
                for method in METHODS:
                    found = apart((name, region, softmax, method), args.limit)
                    row = {"model": name, "weights": sha, "region": region, "softmax": softmax, "method": method}
                    data["cases"].append(row | found)
                    print(row["model"], region, softmax, method, found, flush=True)
        args.output.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
