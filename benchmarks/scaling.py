"""Efficiency of several ranks: GPT-2 124M on N ranks against one, with the same work for each rank.

Three contestants step in turn: one rank; N ranks; and N processes of one rank that do not communicate, the most that
the machine can do. On CPUs each rank has one thread. With several micro-steps the ranks communicate once for all of
them. A profiled step measures the share of communication. Needs the GPT-2 vocabulary.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import ROOT, arguments, report, rounds_of, spread

CPU = ["device=cpu", "cluster.threads=1", "model.seq_len=256", "batch.micro_batch_size=2"]
GPU = ["device=cuda", "precision=bf16", "compile=true", "batch.micro_batch_size=16"]


def serve(world, config, train, val, run_dir: Path) -> None:
    """Run a rank: one step for every line of the pipe, which rank 0 reads and answers."""
    import torch

    from gpt.debug.profile import communication_share
    from gpt.device import cpu_threads, pick_device
    from gpt.distributed import process_group
    from gpt.trainer import Trainer

    device = pick_device(config.device, world.local_rank)
    with process_group(world, device, config.cluster.timeout), cpu_threads(config.cluster.threads):
        trainer = Trainer(config, train, val, run_dir, world)
        batches = trainer.stepper.batches()

        def step() -> float:
            begun = time.perf_counter()
            trainer.stepper.train_step(batches)
            if device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - begun

        # The ranks agree on every question, which only rank 0 can read.
        questions = open(run_dir / "questions") if world.is_main else None
        while True:
            question = questions.readline().strip() if world.is_main else ""
            if world.any(question == "step"):
                answer = step()
            elif world.any(question == "profile"):
                with torch.profiler.profile() as profiler, torch.profiler.record_function("ProfilerStep#0"):
                    step()
                answer = communication_share(profiler.events())
            else:
                return
            if world.is_main:
                print(json.dumps(answer), flush=True)


def run_contestant(run_dir: str, overrides: list[str]) -> None:
    """Start the ranks of a contestant, in a process of its own."""
    from gpt.cluster.environment import set_environment

    set_environment()
    from data.preparation import prepare
    from gpt.cli.compose import compose
    from gpt.cluster.launch import launch

    config = compose(overrides)
    launch(config.cluster, serve, config, *prepare(config.data), Path(run_dir))


class Process:
    """The ranks of a contestant, at the other end of a pipe."""

    def __init__(self, directory: Path, overrides: list[str], gpus: str):
        directory.mkdir()
        os.mkfifo(directory / "questions")
        command = [sys.executable, __file__, "--contestant", str(directory), *overrides]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpus}
        self.process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, env=environment)
        self.questions = os.open(directory / "questions", os.O_RDWR)  # does not wait for the other end

    def ask(self, question: str) -> None:
        """Send a line."""
        os.write(self.questions, f"{question}\n".encode())

    def answer(self) -> float:
        """Read the answer."""
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a contestant ended with {self.process.wait()}")
        return float(line)

    def end(self) -> None:
        """Let the ranks end by themselves, as those of an elastic agent must."""
        self.ask("end")
        self.process.wait(timeout=60)


def compare(ranks: int, micro_steps: int, common: list[str], rounds: int) -> tuple[dict[str, list[float]], float]:
    """Return the tokens per second of every round, and the share of communication."""
    from data.preparation import prepare
    from gpt.cli.compose import compose

    config = compose(common)
    prepare(config.data)  # once, before several contestants read it
    tokens = micro_steps * config.batch.micro_batch_size * config.model.seq_len
    one = [*common, f"batch.global_tokens={tokens}"]
    many = [*common, f"batch.global_tokens={tokens * ranks}", "cluster=ddp", f"cluster.nproc={ranks}"]
    with tempfile.TemporaryDirectory() as directory:
        alone = [Process(Path(directory) / f"alone{i}", one, gpus=str(i)) for i in range(ranks)]
        together = Process(Path(directory) / "together", many, gpus=",".join(map(str, range(ranks))))

        def step(processes: list[Process], tokens: int) -> float:
            for process in processes:
                process.ask("step")
            return tokens / max(process.answer() for process in processes)

        contestants = {
            "1 rank": lambda: step(alone[:1], tokens),
            f"{ranks} ranks": lambda: step([together], tokens * ranks),
            f"{ranks} × 1 rank": lambda: step(alone, tokens * ranks),
        }
        try:
            figures = rounds_of(contestants, rounds)
            together.ask("profile")
            return figures, together.answer()
        finally:
            for process in [*alone, together]:
                process.end()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=8, help="steps per contestant that are counted")
    parser.add_argument("--micro-steps", type=int, nargs="+", default=[1, 4], help="per optimizer step")
    options = parser.parse_args()
    import torch

    # All GPUs, or else two ranks on the CPU.
    gpus = torch.cuda.device_count()
    ranks = gpus if gpus > 1 else 2
    data = ["data=stdlib", "data.tokenizer=gpt2", "trainer.max_steps=1000", "trainer.max_tokens=null"]
    common = ["model=gpt2_124m", *(GPU if gpus > 1 else CPU), *data, "trainer.eval_every=1_000_000_000"]
    figures = {}
    ratios = {"efficiency": {}, "efficiency_of_the_machine": {}, "communication_share": {}}
    for micro_steps in options.micro_steps:
        name = f"micro-steps {micro_steps}"
        speeds, share = compare(ranks, micro_steps, common, options.rounds)
        for contestant, values in speeds.items():
            figures[f"{name}, {contestant}"] = spread(values)

        # Rounds are compared with rounds, because the machine's speed drifts.
        one, together, apart = speeds.values()
        for ratio, many in (("efficiency", together), ("efficiency_of_the_machine", apart)):
            of_rounds = [all_ranks / (ranks * one_rank) for one_rank, all_ranks in zip(one, many, strict=True)]
            ratios[ratio][name] = spread(of_rounds)["median"]
        ratios["communication_share"][name] = share
    report(figures, ratios, "tokens per second", options.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contestant"]:
        run_contestant(sys.argv[2], sys.argv[3:])
    else:
        main()
