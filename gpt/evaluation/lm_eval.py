"""Any task of lm-evaluation-harness (Gao et al. 2021), by its name."""

import math
from dataclasses import dataclass
from typing import Any, Self

import tiktoken
import torch
from jinja2 import TemplateError
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from gpt.config.schema import LmEvalConfig
from gpt.config.values import did_you_mean
from gpt.device import Compute
from gpt.errors import InputError
from gpt.evaluation.likelihood import Question, log_likelihoods
from gpt.evaluation.task import Measurement, Subject, Task
from gpt.generate.decode import generate
from gpt.model import GPT
from gpt.signals import Stopped
from gpt.tokens.tokenizer import END_OF_TEXT, encode, prompt_ids

MAX_TOKENS = 256  # of an answer, where its task does not say


@dataclass
class LmEval(Task):
    """The metrics of the tasks in ``lm_eval.tasks``, as lm-evaluation-harness computes them."""

    config: LmEvalConfig
    manager: TaskManager
    tokenizer: tiktoken.Encoding
    batch_tokens: int
    every: int

    @classmethod
    def build(cls, subject: Subject) -> Self:
        """Return the task. Raises InputError for a name that lm-evaluation-harness does not know."""
        config = subject.config
        batch_tokens = config.micro_batch_size * config.model.seq_len
        return cls(config.lm_eval, _manager(config.lm_eval), subject.tokenizer, batch_tokens, config.tasks_every)

    def measure(self, model: GPT, step: int, compute: Compute) -> Measurement:
        """Evaluate on all ranks; each runs the harness, and they share the forward passes.

        Raises InputError where a task or its data cannot be loaded.
        """
        harnessed = HarnessModel(model, self.tokenizer, compute, self.batch_tokens)
        try:
            found = simple_evaluate(
                harnessed,
                tasks=list(self.config.tasks),
                limit=self.config.limit,
                task_manager=self.manager,
                bootstrap_iters=0,
                log_samples=False,
            )
        except (OSError, ValueError, TemplateError) as error:  # of the hub, or of a task's text
            raise InputError(
                f"lm_eval.tasks={self.config.tasks}: they cannot be loaded: {error}".splitlines()[0],
                "connect once, if the hub has their data, or take tasks whose data is here (lm_eval.include_path)",
            ) from error

        # Only the first rank of a machine gets results.
        metrics = _metrics(found["results"]) if found else {}
        return Measurement(compute.world.gather(metrics)[0])


def _metrics(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return the numbers that the harness found, by our keys."""
    # It names a metric with its filter ("none" is none), and has standard errors and texts among them.
    metrics = {}
    for task, values in results.items():
        for name, value in values.items():
            metric, _, filtered_by = name.partition(",")
            is_number = isinstance(value, int | float) and math.isfinite(value)
            if not is_number or not filtered_by or metric.endswith("_stderr"):
                continue
            suffix = "" if filtered_by == "none" else f"_{filtered_by}"
            metrics[f"val/{task}_{metric}{suffix}"] = float(value)
    return metrics


def _manager(config: LmEvalConfig) -> TaskManager:
    """Return the index of the tasks. Raises InputError for a name that it does not have."""
    # The index of the harness's own tasks takes seconds, which tasks of the user alone do not need.
    if config.include_path is not None:
        manager = TaskManager(include_path=config.include_path, include_defaults=False)
        if set(config.tasks) <= set(manager.all_tasks):
            return manager
    manager = TaskManager(include_path=config.include_path)
    for name in config.tasks:
        if name not in manager.all_tasks:
            raise InputError(
                f"lm_eval.tasks={config.tasks}: {name} is not known",
                f"a task of lm-evaluation-harness: lm-eval ls tasks{did_you_mean(name, manager.all_tasks)}",
            )
    return manager


class HarnessModel(TemplateLM):
    """A model of ours as lm-evaluation-harness sees one."""

    def __init__(self, model: GPT, tokenizer: tiktoken.Encoding, compute: Compute, batch_tokens: int):
        super().__init__()
        self.model = model
        self.encoding = tokenizer
        self.compute = compute
        self.batch_tokens = batch_tokens

    @property
    def eot_token_id(self) -> int:
        """The token ahead of a text without a context: end-of-text, or what stands for it."""
        return prompt_ids(self.encoding, None)[0]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return encode(self.encoding, string).tolist()

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str] | None, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        # Requests with the same context come one after the other: its continuations are read together.
        questions: list[Question] = []
        for _texts, context, continuation in requests:
            if not questions or questions[-1].context != context:
                questions.append(Question(context, []))
            questions[-1].continuations.append(continuation)
        answers = log_likelihoods(questions, self.model, self.compute, self.batch_tokens)
        return [(one.log_probability, one.is_greedy) for several in answers for one in several]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each text, in windows of the model's context that do not overlap."""
        totals = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.model.config.seq_len,
                context_len=1,
            )
            pairs = [(None, *make_disjoint_window(window)) for window in windows]
            totals.append(sum(log_p for log_p, _ in self._loglikelihood_tokens(pairs)))
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the greedy continuation of each text, up to end-of-text or the first of the texts that end it."""
        answers = []
        for request in requests:
            context, options = request.args
            # All ranks agree on whether to stop: they take the same forward passes.
            if self.compute.world.any(self.compute.stop()):
                raise Stopped
            ids = self.tok_encode(context) or [self.eot_token_id]
            prompt = torch.tensor([ids], device=self.compute.device)
            tokens = options.get("max_gen_toks", MAX_TOKENS)
            written = generate(self.model, prompt, tokens, temperature=1.0, top_k=1, seed=0)
            answer = self.encoding.decode(written[0, len(ids) :].tolist())
            until = options.get("until") or []
            for end in [END_OF_TEXT, *([until] if isinstance(until, str) else until)]:
                answer = answer.partition(end)[0]
            answers.append(answer)
        return answers
