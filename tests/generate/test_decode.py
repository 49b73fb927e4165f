"""Decoding with the cache: against the model without one, beyond the context, in batches."""

import pytest
import torch
import torch.nn.functional as F

from gpt.cli.compose import compose
from gpt.generate.decode import generate, stream
from gpt.generate.sampling import Sampler, row_seed
from gpt.model import GPT, init_weights
from gpt.signals import Stopped
from gpt.tokens.order import derive_seed

SEQ_LEN = 32
# Positions, norms and attention of every kind, and a padded head.
SWITCHES = ["seed=1", "model.position=none", "model.position=sinusoidal", "model.norm=post", "model.attention=naive",
            "model.vocab_multiple=128", "model.tie_head=false"]  # fmt: skip


def built(*overrides, vocab_size=257):
    shape = ["model.n_layer=2", "model.n_head=4", "model.n_embd=64", f"model.seq_len={SEQ_LEN}"]
    model = GPT(compose([*shape, *overrides]).model, vocab_size)
    init_weights(model, seed=1)
    with torch.no_grad():
        for p in model.h.parameters():
            if p.dim() == 2:
                p.mul_(8)  # so that attention is far from uniform, and an error shows
    return model


def ids(*shape, vocab_size=257, seed=0):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def without_a_cache(model, prompt, tokens, temperature, top_k, seed):
    """One row, decoded as the first version drew it, reading the whole text again for every token."""
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(tokens):
        logits = model.logits(model(prompt))[:, -1] / temperature
        if top_k is not None:
            logits[logits < logits.topk(top_k).values[:, -1:]] = float("-inf")
        drawn = torch.multinomial(F.softmax(logits, dim=-1), 1, generator=generator)
        prompt = torch.cat([prompt, drawn], dim=1)
    return prompt


@pytest.mark.parametrize("top_k", [None, 20])
@pytest.mark.parametrize("switch", SWITCHES)
def test_within_the_context_every_token_is_that_of_the_model_without_a_cache(switch, top_k):
    model = built(switch)
    prompt = ids(1, 4)
    choice = {"temperature": 0.9, "top_k": top_k, "seed": 3}
    drawn = generate(model, prompt, SEQ_LEN - 4, **choice)
    assert torch.equal(drawn, without_a_cache(model, prompt, SEQ_LEN - 4, **choice))
    assert len(drawn.unique()) > 10  # it does not repeat itself, which would hide an error


@pytest.mark.parametrize("n_layer", [0, 2])
def test_generation_beyond_the_context_is_reproducible_and_restores_the_mode(n_layer):
    model = built(f"model.n_layer={n_layer}").train()
    choice = {"temperature": 1.0, "top_k": None, "seed": 5}
    first = generate(model, ids(2, 3), 80, **choice)
    assert first.shape == (2, 83)
    assert torch.equal(first[:, :3], ids(2, 3))
    assert torch.equal(first, generate(model, ids(2, 3), 80, **choice))
    assert not torch.equal(first, generate(model, ids(2, 3), 80, **choice | {"seed": 6}))
    assert model.training


def test_beyond_the_context_the_model_reads_its_newer_half_again():
    model = built()
    drawn = generate(model, ids(1, SEQ_LEN), 40, temperature=1.0, top_k=1, seed=0)
    # The prompt fills the context of 32. The next token is predicted from 16, and so on up to 32 again.
    for end in range(SEQ_LEN, SEQ_LEN + 40):
        begin = 0 if end == SEQ_LEN else 17 * ((end - 33) // 17 + 1)
        context = drawn[:, begin:end]
        assert context.size(1) in range(16, 33)
        assert drawn[0, end] == model.logits(model(context))[0, -1].argmax(), end


def test_the_work_per_token_does_not_grow_with_the_text():
    model = built()
    read = []
    model.h[0].register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].size(1)))
    sampler = Sampler(1.0, None, None, seeds=[1])
    for _ in stream(model, ids(1, 8), 1000, sampler):
        pass
    assert len(read) == 1000
    assert max(read) == SEQ_LEN // 2
    blocks = [sum(read[first : first + 100]) for first in range(0, 1000, 100)]
    assert max(blocks) < 2.1 * min(blocks[1:])  # tokens read to write 100
    assert sum(read) < 2 * 1000


def test_of_a_prompt_that_is_longer_than_the_context_the_end_is_read():
    model = built()
    prompt = ids(1, 100)
    choice = {"temperature": 1.0, "top_k": None, "seed": 2}
    drawn = generate(model, prompt, 20, **choice)
    assert torch.equal(drawn[:, :100], prompt)
    assert torch.equal(drawn[:, 100:], generate(model, prompt[:, -SEQ_LEN:], 20, **choice)[:, SEQ_LEN:])


def test_top_1_is_greedy():
    model = built().eval()
    drawn = generate(model, ids(1, 4), 10, temperature=1.0, top_k=1, seed=0)
    for end in range(4, 14):
        assert drawn[0, end] == model.logits(model(drawn[:, :end]))[0, -1].argmax()


@pytest.mark.parametrize("top_p", [None, 0.9999])
def test_a_padded_id_is_never_sampled(top_p):
    model = built("model.vocab_multiple=128", vocab_size=5)
    with torch.no_grad():
        model.wte.weight[:5] = 0  # every real token equally likely: 123 padded ones would show at once
    for rows in (1, 64):
        drawn = generate(model, ids(rows, 1, vocab_size=5), 60, temperature=2.0, top_k=None, top_p=top_p, seed=0)
        assert drawn.max() < 5
        assert len(drawn.unique()) == 5


def test_a_row_does_not_depend_on_the_others():
    model = built("model.vocab_multiple=128")
    choice = {"temperature": 1.0, "top_k": 50, "seed": 7}
    batch = generate(model, ids(5, 6), 70, **choice)
    assert torch.equal(batch[:3], generate(model, ids(5, 6)[:3], 70, **choice))
    for index in range(5):
        alone = generate(model, ids(5, 6)[index : index + 1], 70, **choice | {"seed": row_seed(7, index)})
        assert torch.equal(batch[index : index + 1], alone)


def test_the_first_row_has_the_seed_itself_and_the_others_their_own():
    assert [row_seed(7, index) for index in range(3)] == [7, derive_seed("row", 7, 1), derive_seed("row", 7, 2)]


def test_equal_prompts_in_a_batch_get_different_texts():
    model = built()
    drawn = generate(model, ids(1, 4).repeat(8, 1), 20, temperature=1.0, top_k=None, seed=1)
    assert len({tuple(row) for row in drawn.tolist()}) == 8


def test_it_stops_when_it_is_asked_to():
    asked = iter([False, False, True])
    with pytest.raises(Stopped):
        generate(built(), ids(1, 4), 9, temperature=1.0, top_k=None, seed=1, stop=lambda: next(asked))
    assert next(asked, "all asked") == "all asked"
