"""HellaSwag with GPT-2 124M: our task against one example at a time, as the lecture's hellaswag.py computes it.

The weights are drawn from a fixed seed. Both must give the same predictions wherever the plain losses of the two best
endings are further apart than 1e-4; the benchmark fails where they do not.
"""

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from harness import alternate, arguments, report

MARGIN = 1e-4  # nats between the best and the second best ending
SEED = 1337


class Contest:
    """A model, some examples, and the losses that each contestant last found, example by example."""

    def __init__(self, path: Path, examples: int, precision: str):
        import torch

        from gpt.cli.compose import compose
        from gpt.device import Compute, pick_device
        from gpt.evaluation.hellaswag import HellaSwag
        from gpt.evaluation.task import Subject
        from gpt.model import GPT, init_weights
        from gpt.precision import autocast, set_matmul_precision
        from gpt.tokens.tokenizer import get_tokenizer

        keys = ["model=gpt2_124m", f"precision={precision}", "batch.micro_batch_size=4", "batch.global_tokens=4096"]
        config = compose([*keys, f"hellaswag.path={path}"])
        device = pick_device("auto")
        set_matmul_precision(precision)
        self.model = GPT(config.model, 50_257)
        init_weights(self.model, SEED)
        self.model.to(device).eval()
        self.compute = Compute(device, autocast(precision, device))
        self.task = HellaSwag.build(Subject(config, get_tokenizer("gpt2"), None))
        # Spread over the file, which begins with the short ones.
        step = max(1, len(self.task.questions) // examples)
        self.task.questions = self.task.questions[::step][:examples]
        self.torch = torch
        self.losses: dict[str, list[Any]] = {}

    def ours(self) -> float:
        """Return the examples per second of our task."""
        from gpt.evaluation.likelihood import log_likelihoods

        begun = time.perf_counter()
        found = log_likelihoods(self.task.questions, self.model, self.compute, self.task.batch_tokens)
        seconds = time.perf_counter() - begun
        self.losses["ours"] = [self.torch.tensor([-one.log_probability for one in several]) for several in found]
        return len(found) / seconds

    def plain(self, autocast: AbstractContextManager) -> float:
        """Return the examples per second one at a time."""
        begun = time.perf_counter()
        with self.torch.no_grad(), autocast:
            self.losses["plain"] = [self._plain_losses(question) for question in self.task.questions]
        return len(self.task.questions) / (time.perf_counter() - begun)

    def _plain_losses(self, question: Any) -> Any:
        """Return the summed loss of each ending: the context in front of each, padded to one length."""
        torch = self.torch
        context = question.context
        width = len(context) + max(map(len, question.continuations))
        tokens = torch.zeros(len(question.continuations), width, dtype=torch.long)
        mask = torch.zeros(len(question.continuations), width)
        for row, ids in enumerate(question.continuations):
            end = len(context) + len(ids)
            tokens[row, :end] = torch.tensor(context + ids)
            mask[row, len(context) : end] = 1
        tokens = tokens.to(self.compute.device)
        logits = self.model.logits(self.model(tokens))[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        return (losses.view(len(mask), -1).cpu() * mask[:, 1:]).sum(1)

    def disagreements(self) -> int:
        """Return how many predictions differ, of acc and of acc_norm, where the plain losses have a margin."""
        n = 0
        for question, ours, plain in zip(self.task.questions, self.losses["ours"], self.losses["plain"], strict=True):
            lengths = self.torch.tensor([len(ids) for ids in question.continuations])
            for mine, theirs in ((ours, plain), (ours / lengths, plain / lengths)):
                best, second = theirs.sort().values[:2].tolist()
                n += second - best > MARGIN and int(mine.argmin()) != int(theirs.argmin())
        return n


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="hellaswag_val.jsonl")
    parser.add_argument("--examples", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    options = parser.parse_args()
    contest = Contest(options.path.resolve(), options.examples, options.precision)
    contestants = {"ours": contest.ours, "one at a time": lambda: contest.plain(contest.compute.autocast)}
    if options.precision != "fp32":
        # First, because predictions are compared with those of the last that ran one at a time.
        contestants = {"one at a time in fp32": lambda: contest.plain(nullcontext()), **contestants}
    figures = alternate(contestants, options.rounds)
    n = contest.disagreements()
    ratios = {}
    for name in contestants:
        if name != "ours":
            ratios[f"ours over {name}"] = figures["ours"]["median"] / figures[name]["median"]
    report(figures, ratios, "examples/s", options.json)
    print(f"{n} of {2 * options.examples} predictions differ where the margin exceeds {MARGIN:g}")
    if n and options.precision == "fp32":
        sys.exit(1)


if __name__ == "__main__":
    main()
