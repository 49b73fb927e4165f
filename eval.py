"""Evaluate a checkpoint.

    python eval.py DIR [tasks=[val,sample]] [KEY=VALUE] …

The tasks are val, exact_match, sample, hellaswag, perplexity, arithmetic, lm_eval and inspect (docs/evaluation.md).
Without tasks=, those of the run are taken, as far as its data allows.
DIR, or checkpoint=DIR, is the output directory of a run (its last checkpoint is taken), or one of its checkpoints, such
as outputs/…/checkpoints/best. The run's own config is used; what may be changed:

  data=OPTION, data.*           other data: data=text data.files=a.txt, or data.dir=DIR. Text is prepared with the
                                model's tokenizer and alphabet; of files, all is evaluated, unless data.val_fraction
                                is given
  trainer.eval_tokens=N         evaluate on so many tokens, spread over all; null: on all
  sample.prompt=TEXT            what the sample continues; also sample.tokens, sample.temperature, sample.top_k
  seed=N                        another sample
  cluster=ddp                   on all GPUs; cluster.nproc=2 works on a CPU too
  device, compile, precision, batch.micro_batch_size, cluster.threads

Results go to the terminal and to eval-STEP.json beside the checkpoint.
"""

import sys

from gpt.cli import command


def main() -> None:
    from gpt.checkpoint.files import check_whole, find_checkpoint
    from gpt.cli.compose import compose_evaluation, compose_ranks
    from gpt.cli.evaluation import prepare_data, read_arguments
    from gpt.cluster.machine import check_machine, resolve_ranks
    from gpt.evaluation.results import add_results, read_results
    from gpt.evaluation.tasks import TASKS, check_tasks, usual_tasks

    # All that can be wrong is found before torch is imported.
    path, chosen, overrides = read_arguments(sys.argv[1:])
    checkpoint = find_checkpoint(path)
    check_whole(checkpoint)
    read_results(checkpoint)  # so that damage is found before the work
    config = compose_evaluation(checkpoint.parents[1], overrides)
    names = chosen or usual_tasks(config)
    check_tasks(config, names)
    files = None
    if any(TASKS[task].reads_data for task in names):
        files = prepare_data(config, checkpoint, overrides)
    ranks = compose_ranks(overrides, config.device)
    resolve_ranks(ranks)
    check_machine(config)

    from gpt.cluster.launch import launch
    from gpt.evaluation.evaluate import Evaluation, evaluate

    config.cluster = ranks.cluster
    evaluation = Evaluation(config, checkpoint, names, chosen or [], files)
    results = launch(config.cluster, evaluate, evaluation)
    command_line = {"tasks": names, "overrides": overrides}
    print(f"figures     {add_results(checkpoint, command_line, results)}")


if __name__ == "__main__":
    sys.exit(command.script(main, __doc__))
