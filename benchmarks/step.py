"""One optimizer step of GPT-2 124M against Hugging Face's GPT-2: tokens per second and peak memory.

Each contestant of each mode is a process of its own, so that its peak memory is its own; the two of a mode are asked
for one step at a time in turn. Both start from the same weights, see the same batch and use the same optimizer, and
must agree on loss and gradient norm, or the benchmark fails.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from harness import ROOT, arguments, report, rounds_of, spread

MODES = ["fp32 eager", "fp32 compiled", "bf16 eager", "bf16 compiled"]
CONTESTANTS = ["gptlab", "hugging face"]
TOLERANCE = {"fp32": (1e-5, 1e-4), "bf16": (1e-3, 2e-2)}  # relative, of the loss and of the gradient norm
VOCAB_SIZE = 50_257


def resident_bytes(line: str) -> int:
    """VmRSS (now) or VmHWM (the peak) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(text.split()[1]) * 1024 for text in lines if text.startswith(line))


def hugging_face(config, ours):
    """Their GPT-2 with the weights of ours; they keep linear weights as (in, out), we as (out, in)."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    shape = {"n_embd": config.n_embd, "n_layer": config.n_layer, "n_head": config.n_head, "n_positions": config.seq_len}
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=ours.vocab_size, use_cache=False, **shape, **no_dropout)).train()
    weights = dict(ours.named_parameters())
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            source = weights[name.removeprefix("transformer.")]
            is_linear = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
            p.copy_(source.T if is_linear else source[: p.size(0)])
    return theirs


def contestant(name: str, mode: str, batch: int, seq_len: int) -> None:
    """Run in a process of its own: answer every line of stdin with one step's seconds, loss and gradient norm."""
    if name == "gptlab":
        from gpt.cli.command import use_huge_pages

        use_huge_pages()  # as train.py does
    import torch

    from gpt.cli.compose import compose
    from gpt.loss import loss_sum
    from gpt.model import GPT, init_weights
    from gpt.optim import build_optimizers
    from gpt.parallelize import compile_blocks
    from gpt.precision import autocast

    precision, how = mode.split()
    if how == "compiled":
        import torch._inductor.compile_fx
    if name == "hugging face":
        from transformers import GPT2LMHeadModel  # noqa: F401  likewise
    floor = resident_bytes("VmRSS")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("highest")
    config = compose(["model=gpt2_124m", f"model.seq_len={seq_len}"])
    model = GPT(config.model, VOCAB_SIZE)
    init_weights(model, seed=1)
    if name == "hugging face":
        model = hugging_face(config.model, model)
    model.to(device)
    if how == "compiled":
        compile_blocks(model) if name == "gptlab" else model.compile()
    (optimizer,) = build_optimizers(config.optimizer, model)  # the same groups: matrices decay, vectors do not
    ids = torch.randint(VOCAB_SIZE, (batch, seq_len + 1), generator=torch.Generator().manual_seed(1)).to(device)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def loss() -> torch.Tensor:
        if name == "gptlab":
            return loss_sum(model, inputs, targets) / targets.numel()
        return model(inputs, labels=inputs, shift_labels=targets).loss

    def step() -> dict[str, float]:
        begun = time.perf_counter()
        with autocast(precision, device):
            value = loss()
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        answer = {"loss": value.item(), "norm": norm.item()}  # on cuda, these wait for the step's end
        if device.type == "cuda":
            torch.cuda.synchronize()
        return answer | {"seconds": time.perf_counter() - begun}

    for line in sys.stdin:
        if line == "step\n":
            answer = step()
        else:
            peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident_bytes("VmHWM") - floor
            answer = {"megabytes": (peak - 16 * sum(p.numel() for p in model.parameters())) / 1e6}
        print(json.dumps(answer), flush=True)


class Process:
    """A contestant at the other end of a pipe."""

    def __init__(self, name: str, mode: str, batch: int, seq_len: int):
        self.command = [sys.executable, __file__, "--contestant", name, mode, str(batch), str(seq_len)]
        self.process = subprocess.Popen(
            self.command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.tokens = batch * seq_len
        self.first: dict[str, float] = {}

    def ask(self, question: str) -> dict[str, float]:
        """Send a line, read the answer."""
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"ended with {self.process.wait()}: {' '.join(self.command)}")
        return json.loads(answer)

    def step(self) -> float:
        """One step; its tokens per second."""
        answer = self.ask("step")
        self.first = self.first or answer
        return self.tokens / answer["seconds"]


def same_mathematics(mode: str, ours: dict[str, float], theirs: dict[str, float]) -> None:
    """Loss and gradient norm of the first step agree, or the comparison is none."""
    for key, tolerance in zip(("loss", "norm"), TOLERANCE[mode.split()[0]], strict=True):
        difference = abs(ours[key] / theirs[key] - 1)
        print(f"{mode}: {key} {ours[key]:.6f} and {theirs[key]:.6f}, relative difference {difference:.1e}")
        if not difference <= tolerance:
            raise SystemExit(f"{mode}: the contestants do not compute the same {key}")


def compare(mode: str, batch: int, seq_len: int, rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Tokens per second of every round, and megabytes at the peak over 16 bytes per parameter and the imports."""
    processes = {name: Process(name, mode, batch, seq_len) for name in CONTESTANTS}
    try:
        speeds = rounds_of({name: process.step for name, process in processes.items()}, rounds)
        same_mathematics(mode, *(process.first for process in processes.values()))
        return speeds, {name: process.ask("memory")["megabytes"] for name, process in processes.items()}
    finally:
        for process in processes.values():
            process.process.kill()
            process.process.wait()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="steps per contestant that are counted")
    parser.add_argument("--batch", type=int, help="sequences per step: 4, on a GPU 16")
    parser.add_argument("--seq-len", type=int, help="tokens per sequence: 512, on a GPU 1024")
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    options = parser.parse_args()
    import torch

    default = (16, 1024) if torch.cuda.is_available() else (4, 512)
    batch, seq_len = options.batch or default[0], options.seq_len or default[1]
    figures, ratios = {}, {"tokens_per_sec_over_hf": {}, "memory_over_hf": {}}
    for mode in options.modes:
        speeds, megabytes = compare(mode, batch, seq_len, options.rounds)
        ours, theirs = (speeds[name] for name in CONTESTANTS)
        paired = spread([a / b for a, b in zip(ours, theirs, strict=True)])
        figures |= {f"{mode}, {name}": spread(speeds[name]) for name in CONTESTANTS}
        figures[f"{mode}, adjacent steps"] = paired
        figures |= {f"{mode}, {name}, MB": spread([megabytes[name]]) for name in CONTESTANTS}
        ratios["tokens_per_sec_over_hf"][mode] = paired["median"]
        ratios["memory_over_hf"][mode] = megabytes["gptlab"] / megabytes["hugging face"]
    report(figures, ratios, "tokens per second; MB over parameters, gradients, moments and imports", options.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contestant"]:
        contestant(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
