"""Evaluation on text that the model was not trained on."""

import pytest

from data.preparation import prepare
from gpt.cli import evaluation
from gpt.cli.compose import compose
from gpt.cli.run_checks import check_run
from gpt.errors import InputError
from gpt.interop.pretrained import Header

CHARS = "\n abcdeé"


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """A function from overrides to the data that a checkpoint with this alphabet is evaluated on."""
    monkeypatch.chdir(tmp_path)

    def prepared(*overrides: str, name: str = "chars", size: int = len(CHARS), chars: str | None = CHARS):
        given = [*overrides, f"data.cache_dir={tmp_path}/cache"]
        config = compose(given)
        header = Header(
            source="last", format="gptlab", model=config.model, vocab_size=size, tokenizer=name, chars=chars
        )
        return evaluation.prepare_data(config, header, given)

    return prepared


def text_of(file) -> str:
    return "".join(file.chars[i] for i in file.reader()(0, file.n_tokens).tolist())


def test_other_text_is_encoded_with_the_alphabet_of_the_model_and_evaluated_whole(evaluate, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("bad cab\n" * 5)
    train, val = evaluate("data=text", "data.files=[a.txt]")
    assert train is None
    assert (val.chars, text_of(val)) == (CHARS, "bad cab\n" * 5)
    said = capsys.readouterr().out
    assert "tokenizer   chars, with which the model was trained; data=text has bytes" in said
    assert "all of it is evaluated" in said
    assert [path.name.rsplit("-", 1)[0] for path in (tmp_path / "cache").glob("text-*")] == ["text-chars"]

    # With another alphabet, the same text is other data; with the same, it is there already.
    _, other = evaluate("data=text", "data.files=[a.txt]", chars="abcd\n ", size=6)
    assert (other.chars, text_of(other)) == ("abcd\n ", "bad cab\n" * 5)
    capsys.readouterr()
    assert evaluate("data=text", "data.files=[a.txt]")[1] == val
    assert "preparing" not in capsys.readouterr().out

    # A part of it, if asked for.
    train, val = evaluate("data=text", "data.files=[a.txt]", "data.val_fraction=0.1", "data.documents=separate")
    assert (text_of(train), text_of(val)) == ("bad cab\n" * 4 + "bad ", "cab\n")


def test_characters_that_the_model_does_not_read_are_named_before_anything_is_prepared(evaluate, tmp_path):
    (tmp_path / "a.txt").write_text("bad!" * 9 + "ü" + "a" * 3)
    with pytest.raises(InputError) as caught:
        evaluate("data=text", "data.files=[a.txt]")
    assert "2 characters, 25.00% of the text, are none of the model's alphabet: '!' 9 times, 'ü' 1 times" in str(
        caught.value
    )
    assert list((tmp_path / "cache").iterdir()) == []


def test_data_that_has_the_alphabet_of_the_model_is_not_prepared_again(evaluate, tmp_path, capsys):
    (tmp_path / "a.txt").write_text(CHARS * 9)
    given = ["data=text", "data.files=[a.txt]", "data.tokenizer=chars", "data.val_fraction=0.5"]
    prepared = prepare(compose([*given, f"data.cache_dir={tmp_path}/cache"]).data)
    assert evaluate(*given) == prepared
    assert capsys.readouterr().out.count("preparing") == 1


def test_the_tokenizer_of_the_model_reads_every_kind_of_text(evaluate, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "ab"}\n{"text": "é"}\n')
    train, val = evaluate("data=jsonl", "data.files=[a.jsonl]", name="bytes", size=257, chars=None)
    assert train is None
    assert val.reader()(0, val.n_tokens).tolist() == [256, 97, 98, 256, *"é".encode()]


@pytest.mark.parametrize("option", [["data=text", "data.tokenizer=bytes"], ["data=bin"]])
def test_data_with_another_tokenizer_is_refused_before_anything_is_prepared(evaluate, tmp_path, option):
    (tmp_path / "a.bin").write_bytes(b"ab" * 90)
    with pytest.raises(InputError, match="was trained with chars"):
        evaluate(*option, "data.files=[a.bin]")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("more", [[], ["plan=true"]])
def test_a_run_needs_a_part_to_train_on(tmp_path, more):
    (tmp_path / "a.txt").write_text("ab" * 9)
    overrides = [
        "data=text",
        f"data.files=[{tmp_path}/a.txt]",
        "data.val_fraction=1",
        f"data.cache_dir={tmp_path}/cache",
    ]
    with pytest.raises(InputError, match=r"data\.val_fraction=1 leaves nothing to train on"):
        check_run(compose([*overrides, *more]), None)
    assert not (tmp_path / "cache").exists()
