"""Compare generating with GPT-2 124M with Hugging Face's `generate` and its cache, and time a text beyond the context.

python benchmarks/generate.py [--rounds N] [--rows N] [--tokens N] [--beyond N] [--json FILE]

Both contestants have the same weights and prompts, draw with the same temperature and top-k, and take turns, one text
at a time; the benchmark fails if their likeliest tokens differ. Then ours alone continues a prompt that fills the
context, in turn with the first tokens of other texts, and costs are compared in blocks of 100 tokens. Every 513 tokens
the model reads the newer half of the context again, which is in the cost of its block.
"""

import time

from harness import arguments, report, rounds_of, spread
from step import VOCAB_SIZE, hugging_face, load_modules

PROMPT = 8  # tokens, as many as "Hello, I'm a language model," has
TOP_K = 50
END_OF_TEXT = 50_256
BLOCK = 100


class Models:
    """Our model and Hugging Face's with its weights."""

    def __init__(self):
        import torch

        from gpt.cli.compose import compose
        from gpt.model import GPT, init_weights

        config = compose(["model=gpt2_124m"]).model
        self.ours = GPT(config, VOCAB_SIZE).eval()
        init_weights(self.ours, seed=1)
        self.theirs = hugging_face(config, self.ours).eval()
        self.seq_len = config.seq_len
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.ours.to(device)
        self.theirs.to(device)

    def prompt(self, rows: int, length: int):
        """Return random ids, (rows, length)."""
        import torch

        generator = torch.Generator().manual_seed(1)
        return torch.randint(VOCAB_SIZE, (rows, length), generator=generator).to(self.theirs.device)

    def generate(self, prompt, tokens: int, top_k: int):
        """Continue a prompt with our model."""
        from gpt.generate.decode import generate

        return generate(self.ours, prompt, tokens, temperature=1.0, top_k=top_k, seed=1)

    def generate_theirs(self, prompt, tokens: int, top_k: int):
        """Continue it with Hugging Face's."""
        import torch

        return self.theirs.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=tokens,
            min_new_tokens=tokens,  # an end-of-text does not end it
            do_sample=True,
            temperature=1.0,
            top_k=top_k,
            use_cache=True,
            pad_token_id=END_OF_TEXT,
        )


def compare(models: Models, rows: int, tokens: int, rounds: int) -> dict[str, list[float]]:
    """Return the tokens per second of each contestant in every round."""
    prompt = models.prompt(rows, PROMPT)
    ours = models.generate(prompt, 20, top_k=1)
    theirs = models.generate_theirs(prompt, 20, top_k=1)
    if not ours.equal(theirs):
        raise SystemExit("the contestants do not write the same likeliest tokens")

    def speed_of(generate) -> float:
        begun = time.perf_counter()
        generate(prompt, tokens, TOP_K).cpu()
        return rows * tokens / (time.perf_counter() - begun)

    contestants = {
        "gptlab": lambda: speed_of(models.generate),
        "hugging face": lambda: speed_of(models.generate_theirs),
    }
    return rounds_of(contestants, rounds)


def beyond_the_context(models: Models, tokens: int) -> tuple[list[float], list[float]]:
    """Return the milliseconds per token of each block of tokens that follow a prompt as long as the context.

    And those of the first tokens of other texts: the two texts take turns, token by token.
    """
    from gpt.generate.decode import stream
    from gpt.generate.sampling import Sampler

    def begin(length: int, count: int):
        """Begin a text, and read its prompt."""
        text = stream(models.ours, models.prompt(1, length), count + 1, Sampler(1.0, TOP_K, None, seeds=[1]))
        next(text)
        return text

    def seconds_of_next(text) -> float:
        begun = time.perf_counter()
        next(text)
        return time.perf_counter() - begun

    long_text = begin(models.seq_len, tokens)
    costs_beyond = []
    costs_of_first = []
    for _ in range(tokens // BLOCK):
        short_text = begin(PROMPT, BLOCK)
        beyond = 0.0
        first = 0.0
        for _ in range(BLOCK):
            beyond += seconds_of_next(long_text)
            first += seconds_of_next(short_text)
        costs_beyond.append(1000 * beyond / BLOCK)
        costs_of_first.append(1000 * first / BLOCK)
    return costs_beyond, costs_of_first


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=8, help="texts per contestant that are counted")
    parser.add_argument("--rows", type=int, default=4, help="texts that are written at once")
    parser.add_argument("--tokens", type=int, default=56, help="tokens of each")
    parser.add_argument("--beyond", type=int, default=1000, help="tokens that are written beyond the context; 0: none")
    options = parser.parse_args()
    load_modules("gptlab", "fp32 eager")
    load_modules("hugging face", "fp32 eager")

    # Texts are compared pair by pair, because the speed of the machine drifts.
    models = Models()
    speeds = compare(models, options.rows, options.tokens, options.rounds)
    paired = [a / b for a, b in zip(speeds["gptlab"], speeds["hugging face"], strict=True)]
    figures = {f"{name}, tokens per second": spread(values) for name, values in speeds.items()}
    figures["adjacent texts, gptlab over hugging face"] = spread(paired)
    ratios = {"tokens_per_sec_over_hf": spread(paired)["median"]}

    if options.beyond >= BLOCK:
        beyond, first = beyond_the_context(models, options.beyond)
        figures["beyond the context, ms per token"] = spread(beyond)
        figures[f"first {BLOCK} tokens of a text, ms per token"] = spread(first)
        ratios["cost_beyond_over_first"] = spread([a / b for a, b in zip(beyond, first, strict=True)])
    report(figures, ratios, "of 124M parameters in fp32", options.json)


if __name__ == "__main__":
    main()
