"""``init_from=``: the model of the weights that a run starts from, and checks before it starts. Needs no torch."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gpt.cli.arguments import parse
from gpt.cli.resume_checks import check_same_vocabulary
from gpt.config.groups import options
from gpt.config.layouts import as_override
from gpt.config.load import model_option
from gpt.config.schema import Config, ModelConfig
from gpt.console import say
from gpt.errors import InputError

if TYPE_CHECKING:
    from gpt.interop.pretrained import Header

KEY = "init_from"


def with_init_from(argv: list[str]) -> list[str]:
    """Return the arguments; with ``init_from=`` among them, and no model, that of the weights comes first.

    The model is then in the run's config as if it had been typed; keys that are typed still win. Raises InputError.
    """
    # A run that goes on has its model already.
    is_asked = any(argument.startswith(f"{KEY}=") for argument in argv)
    if not is_asked or any(argument.startswith("resume=") for argument in argv):
        return argv
    overrides = [argument for argument in argv if not argument.startswith("-")]
    given = {override.key_or_group: override for override in parse(overrides)}

    # Several sources are jobs of a sweep, each of which is checked against the model that the command has.
    source = given[KEY]
    if source.is_sweep_override() or source.value() is None or "model" in given:
        return argv
    from gpt.interop.read import read_header

    return [*overrides_of(read_header(str(source.value())).model), *argv]


def overrides_of(model: ModelConfig) -> list[str]:
    """Return the overrides that make a model that of some weights: an option, and keys that differ from it."""
    from gpt.interop.pretrained import ARCHITECTURE, architecture_of

    if model.name not in options("model"):
        keys = {"name": model.name, "peak_lr": model.peak_lr, **architecture_of(model)}
        return [as_override(f"model.{key}", value) for key, value in keys.items()]
    overrides = [f"model={model.name}"]
    option = asdict(model_option(model.name))
    for key in ARCHITECTURE:
        value = getattr(model, key)
        if value != option[key]:
            overrides.append(as_override(f"model.{key}", value))
    return overrides


def check_init_from(config: Config) -> "Header | None":
    """Check the weights that a run starts from against its model and tokenizer; return what they say of themselves.

    None where it draws its weights. Raises InputError.
    """
    if config.init_from is None:
        return None
    from gpt.interop.pretrained import check_same_model
    from gpt.interop.read import read_header

    header = read_header(config.init_from)
    check_same_model(config.model, header)

    # Text is still to be tokenized; data that is prepared already says itself what made it.
    data = config.data
    if not header.knows_tokens:
        say(f"weights     {config.init_from} does not say what its tokens are: taken to be those of the data")
    elif not data.dir and data.tokenizer != header.tokenizer:
        raise InputError(
            f"data.tokenizer={data.tokenizer}, and the weights of init_from={config.init_from} have {header.tokenizer}",
            f"give text and data.tokenizer={header.tokenizer}",
        )
    return header


def alphabet_of(config: Config, header: "Header | None", state: dict[str, Any] | None) -> str | None:
    """Return the alphabet that text is prepared with, that of the weights; None: its own, or that of the tokenizer.

    ``state`` is that of the checkpoint from which a run goes on.
    """
    if config.init_from is None:
        return None
    return header.chars if state is None else state["tokenizer"]["chars"]


def check_start(header: "Header", vocabulary: dict[str, Any]) -> None:
    """Check that prepared data has the tokenizer of the weights, and fetch them if need be. Raises InputError."""
    from gpt.interop.read import fetch

    # Tokens that are not known are taken to be those of the data, if there are as many.
    expected = header.vocabulary if header.knows_tokens else vocabulary | {"vocab_size": header.vocab_size}
    check_same_vocabulary(f"{KEY}={header.source}", expected, vocabulary)
    fetch(header.source)
