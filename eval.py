"""Evaluate a checkpoint.

    python eval.py DIR [tasks=[val,sample]] [KEY=VALUE] …

The tasks are val, exact_match, sample, hellaswag, perplexity, arithmetic, lm_eval and inspect (docs/evaluation.md).
Without tasks=, those of the run are taken, as far as its data allows.
DIR, or checkpoint=DIR, is the output directory of a run (its last checkpoint is taken), or one of its checkpoints, such
as outputs/…/checkpoints/best. It may also be hf:gpt2 (-medium, -large, -xl), a Hugging Face folder of GPT-2, llm.c's
.bin, or nanoGPT's ckpt.pt. The run's own config is used, or else the default one; what may be changed:

  weights=ema                   an average of the weights that the run has kept: ema or average
  data=OPTION, data.*           other data: data=text data.files=a.txt, or data.dir=DIR. Text is prepared with the
                                model's tokenizer and alphabet; of files, all is evaluated, unless data.val_fraction
                                is given
  trainer.eval_tokens=N         evaluate on so many tokens, spread over all; null: on all
  sample.prompt=TEXT            what the sample continues; also sample.tokens, sample.temperature,
                                sample.top_k, sample.top_p
  seed=N                        another sample
  cluster=ddp                   on all GPUs; cluster.nproc=2 works on a CPU too
  device, compile, precision, batch.micro_batch_size, cluster.threads

Results go to the terminal and to eval-NAME.json beside the checkpoint, task by task; those of hf:gpt2 to outputs/.
"""

import sys

from gpt.cli import command


def main() -> None:
    from gpt.cli.compose_evaluation import compose_ranks
    from gpt.cli.evaluation import compose_for, find_model, prepare_data, read_arguments, results_place
    from gpt.cluster.machine import check_machine, resolve_ranks
    from gpt.errors import Interrupted
    from gpt.evaluation.results import read_results
    from gpt.evaluation.tasks import TASKS, check_tasks, usual_tasks

    # All that can be wrong is found before the work begins.
    source, chosen, overrides = read_arguments(sys.argv[1:])
    header = find_model(source)
    place = results_place(header)
    read_results(place)
    config = compose_for(header, overrides)
    names = chosen or usual_tasks(config)
    check_tasks(config, names)
    files = None
    if any(TASKS[task].reads_data for task in names):
        files = prepare_data(config, header, overrides)
    ranks = compose_ranks(overrides, config.device)
    resolve_ranks(ranks)
    check_machine(config)

    from gpt.cluster.launch import launch
    from gpt.evaluation.evaluate import PROMISE, Evaluation, evaluate

    config.cluster = ranks.cluster
    weights = [f"weights={header.average}"] if header.average else []
    evaluation = Evaluation(config, header, place, names, chosen or [], [*overrides, *weights], files)
    if not launch(config.cluster, evaluate, evaluation, promise=PROMISE):
        raise Interrupted("stopped; the same command measures all tasks again")


if __name__ == "__main__":
    sys.exit(command.script(main, __doc__))
