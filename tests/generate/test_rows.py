"""Several prompts at once, and the order in which their texts are printed."""

import pytest
import torch
from test_decode import SEQ_LEN, built, ids

from gpt.config.schema import SampleConfig
from gpt.generate.decode import generate
from gpt.generate.rows import MOST_ROWS, Row, decode_rows, in_order

SAMPLE = SampleConfig(tokens=50, prompt=None, temperature=1.0, top_k=60, top_p=0.95)


def texts(model, rows):
    """The ids that each row gets."""
    drawn = [[] for _ in rows]
    for index, token in decode_rows(model, rows, SAMPLE):
        drawn[index].append(token)
    return drawn


def alone(model, row):
    """The ids that it gets by itself."""
    prompt = torch.tensor([row.ids])
    choice = {"temperature": SAMPLE.temperature, "top_k": SAMPLE.top_k, "top_p": SAMPLE.top_p}
    return generate(model, prompt, SAMPLE.tokens, **choice, seed=row.seed)[0, len(row.ids) :].tolist()


def test_prompts_of_unequal_length_get_the_ids_that_they_get_alone():
    model = built("model.vocab_multiple=128")
    lengths = [5, 1, SEQ_LEN, 5, 2, 70, 1, 5]  # one is longer than the context
    rows = [Row(ids(length, seed=length + i).tolist(), seed=i) for i, length in enumerate(lengths)]
    together = texts(model, rows)
    assert together == [alone(model, row) for row in rows]
    # Whatever else is there.
    assert texts(model, rows[2:5]) == together[2:5]


def test_more_rows_than_are_decoded_at_a_time():
    model = built()
    sizes = []
    model.h[0].register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].size(0)))
    rows = [Row([1, 2, 3], seed) for seed in range(MOST_ROWS + 3)]
    drawn = texts(model, rows)
    assert sizes == [MOST_ROWS] * SAMPLE.tokens + [3] * SAMPLE.tokens
    assert drawn[-1] == alone(model, rows[-1])
    assert {len(row) for row in drawn} == {SAMPLE.tokens}


@pytest.mark.parametrize(
    "pairs",
    [
        [(0, 1), (1, 3), (0, 2), (1, 4), (2, 5), (2, 6)],  # rows 0 and 1 together
        [(0, 1), (2, 5), (0, 2), (2, 6), (1, 3), (1, 4)],  # row 1 has another length
    ],
)
def test_rows_come_one_after_the_other_and_the_first_at_once(pairs):
    taken = []

    def source():
        for pair in pairs:
            taken.append(pair)
            yield pair

    ordered = in_order(source(), tokens=2)
    assert next(ordered) == (0, 1)
    assert len(taken) == 1  # it did not wait for the others
    assert list(ordered) == [(0, 2), (1, 3), (1, 4), (2, 5), (2, 6)]
