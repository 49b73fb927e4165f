"""Compare an optimizer step of GPT-2 124M with Hugging Face's GPT-2: tokens per second and peak memory.

Each contestant of each mode runs in its own process, so that its peak memory is its own. The two contestants of a mode
alternate, one step at a time. Both start from the same weights, read the same batch and use the same optimizer. The
benchmark fails if they do not agree on the loss and the gradient norm.
"""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness import ROOT, arguments, report, rounds_of, spread

MODES = ["fp32 eager", "fp32 compiled", "bf16 eager", "bf16 compiled"]
CONTESTANTS = ["gptlab", "hugging face"]
TOLERANCE = {"fp32": (1e-5, 1e-4), "bf16": (1e-3, 2e-2)}  # relative, of the loss and of the gradient norm
MODULES = "torch gpt.cli.compose gpt.loss gpt.model gpt.optimizer.build gpt.parallelize gpt.precision".split()
VOCAB_SIZE = 50_257
BYTES_PER_PARAMETER = 16  # in fp32: the weight, its gradient and AdamW's two averages
ON_CPU = (4, 512)  # sequences per step, tokens per sequence
ON_GPU = (16, 1024)


def resident_bytes(field: str) -> int:
    """Return VmRSS (now) or VmHWM (the peak) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {field}")


def hugging_face(config, ours):
    """Return Hugging Face's GPT-2 with the weights of our model."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    # No dropout, so that both compute the same.
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=ours.vocab_size,
            use_cache=False,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_positions=config.seq_len,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    ).train()

    # Their linear weights are (in, out), ours are (out, in). Our embedding has padded rows.
    weights = dict(ours.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            source = weights[name.removeprefix("transformer.")]
            is_linear = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
            parameter.copy_(source.T if is_linear else source[: parameter.size(0)])
    return theirs


def load_modules(name: str, mode: str) -> None:
    """Import all that a contestant needs."""
    if name == "gptlab":
        from gpt.cluster.environment import set_environment

        set_environment()  # as train.py does, before torch is imported
    for module in MODULES:
        importlib.import_module(module)
    if mode.endswith("compiled"):
        importlib.import_module("torch._inductor.compile_fx")
    if name == "hugging face":
        importlib.import_module("transformers.models.gpt2.modeling_gpt2")


class Contestant:
    """A model with its optimizer and a batch, which trains one step at a time."""

    def __init__(self, name: str, mode: str, batch: int, seq_len: int):
        import torch

        from gpt.cli.compose import compose
        from gpt.optimizer.build import build_optimizers

        self.is_ours = name == "gptlab"
        self.precision, compilation = mode.split()
        is_compiled = compilation == "compiled"
        self.floor = resident_bytes("VmRSS")
        # The same model, optimizer and arithmetic for both.
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_float32_matmul_precision("highest")
        config = compose(["model=gpt2_124m", f"model.seq_len={seq_len}"])
        self.model = self._build_model(config.model, is_compiled)
        (self.optimizer,) = build_optimizers(config.optimizer, self.model)  # matrices decay, vectors do not

        # One batch, again and again.
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(VOCAB_SIZE, (batch, seq_len + 1), generator=generator).to(self.device)
        self.inputs = ids[:, :-1].contiguous()  # (batch, seq_len)
        self.targets = ids[:, 1:].contiguous()  # (batch, seq_len)

    def _build_model(self, config, is_compiled: bool):
        """Return the model on its device. Both contestants start from the weights of ours."""
        from gpt.model import GPT, init_weights
        from gpt.parallelize import compile_blocks

        model = GPT(config, VOCAB_SIZE)
        init_weights(model, seed=1)
        if not self.is_ours:
            model = hugging_face(config, model)
        model.to(self.device)
        if is_compiled and self.is_ours:
            compile_blocks(model)
        elif is_compiled:
            model.compile()
        return model

    def _loss(self):
        """Return the mean loss of the batch."""
        from gpt.loss import loss_sum

        if self.is_ours:
            return loss_sum(self.model, self.inputs, self.targets) / self.targets.numel()
        return self.model(self.inputs, labels=self.inputs, shift_labels=self.targets).loss

    def step(self) -> dict[str, float]:
        """Train one step; return its loss, gradient norm and seconds."""
        import torch

        from gpt.precision import autocast

        # Forward and backward pass, and the update.
        start = time.perf_counter()
        with autocast(self.precision, self.device):
            loss = self._loss()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

        # On cuda, reading the figures waits for the end of the step.
        answer = {"loss": loss.item(), "norm": norm.item()}
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return answer | {"seconds": time.perf_counter() - start}

    def megabytes(self) -> float:
        """Return the peak memory beyond imports, parameters, gradients and the optimizer's averages."""
        import torch

        is_cuda = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if is_cuda else resident_bytes("VmHWM") - self.floor
        n_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return (peak - BYTES_PER_PARAMETER * n_parameters) / 1e6


def serve(name: str, mode: str, batch: int, seq_len: int) -> None:
    """Be the process of a contestant: answer every line of stdin with a step, or with the peak memory."""
    load_modules(name, mode)  # first, so that the memory of modules does not count
    contestant = Contestant(name, mode, batch, seq_len)
    for line in sys.stdin:
        answer = contestant.step() if line == "step\n" else {"megabytes": contestant.megabytes()}
        print(json.dumps(answer), flush=True)


class Process:
    """The other end of the pipe to a contestant."""

    def __init__(self, name: str, mode: str, batch: int, seq_len: int):
        self.command = [sys.executable, __file__, "--contestant", name, mode, str(batch), str(seq_len)]
        self.process = subprocess.Popen(
            self.command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.tokens = batch * seq_len
        self.first: dict[str, float] = {}

    def ask(self, question: str) -> dict[str, float]:
        """Send a line, and return the answer."""
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()

        # A contestant that is gone has said why on stderr.
        if not answer:
            raise SystemExit(f"ended with {self.process.wait()}: {' '.join(self.command)}")
        return json.loads(answer)

    def step(self) -> float:
        """Train one step; return its tokens per second."""
        answer = self.ask("step")
        self.first = self.first or answer
        return self.tokens / answer["seconds"]

    def end(self) -> None:
        """Kill the contestant, and wait until it is gone."""
        self.process.kill()
        self.process.wait()


def check_same(mode: str, ours: dict[str, float], theirs: dict[str, float]) -> None:
    """Check that the first steps agree on the loss and the gradient norm."""
    precision = mode.split()[0]
    for key, tolerance in zip(("loss", "norm"), TOLERANCE[precision], strict=True):
        difference = abs(ours[key] / theirs[key] - 1)
        print(f"{mode}: {key} {ours[key]:.6f} and {theirs[key]:.6f}, relative difference {difference:.1e}")
        if not difference <= tolerance:  # also if it is not a number
            raise SystemExit(f"{mode}: the contestants do not compute the same {key}")


def compare(mode: str, batch: int, seq_len: int, rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return the tokens per second of every round, and the peak memory in megabytes, of each contestant."""
    processes = {name: Process(name, mode, batch, seq_len) for name in CONTESTANTS}
    # They alternate step by step, and end whatever happens.
    try:
        steps = {name: process.step for name, process in processes.items()}
        speeds = rounds_of(steps, rounds)
        ours, theirs = processes.values()
        check_same(mode, ours.first, theirs.first)
        megabytes = {name: process.ask("memory")["megabytes"] for name, process in processes.items()}
        return speeds, megabytes
    finally:
        for process in processes.values():
            process.end()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="steps per contestant that are counted")
    parser.add_argument("--batch", type=int, help="sequences per step: 4, on a GPU 16")
    parser.add_argument("--seq-len", type=int, help="tokens per sequence: 512, on a GPU 1024")
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    args = parser.parse_args()
    import torch

    default_batch, default_length = ON_GPU if torch.cuda.is_available() else ON_CPU
    batch = args.batch or default_batch
    seq_len = args.seq_len or default_length

    figures: dict[str, Any] = {}
    speed_ratios: dict[str, float] = {}
    memory_ratios: dict[str, float] = {}
    for mode in args.modes:
        speeds, megabytes = compare(mode, batch, seq_len, args.rounds)

        # Steps are compared pair by pair, because the speed of the machine drifts.
        ours, theirs = (speeds[name] for name in CONTESTANTS)
        paired = spread([a / b for a, b in zip(ours, theirs, strict=True)])
        speed_ratios[mode] = paired["median"]
        memory_ratios[mode] = megabytes["gptlab"] / megabytes["hugging face"]

        for name in CONTESTANTS:
            figures[f"{mode}, {name}"] = spread(speeds[name])
        figures[f"{mode}, adjacent steps"] = paired
        for name in CONTESTANTS:
            figures[f"{mode}, {name}, MB"] = spread([megabytes[name]])
    ratios = {"tokens_per_sec_over_hf": speed_ratios, "memory_over_hf": memory_ratios}
    report(figures, ratios, "tokens per second; MB over parameters, gradients, moments and imports", args.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contestant"]:
        name, mode, batch, seq_len = sys.argv[2:]
        serve(name, mode, int(batch), int(seq_len))
    else:
        main()
