"""Laws of generation, on one compiled random model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import planish
from planish.codegen.runtime.caches import FIRST_CAPACITY
from planish.ir import InputError

pytestmark = pytest.mark.full
NONE: tuple[int, ...] = ()
"""No stop tokens: a random model's end token means nothing."""


def greedy(program: Any, prompt: list[int], count: int) -> list[int]:
    """The likeliest token after the whole sequence, read afresh for each step."""
    grown = list(prompt)
    for _ in range(count):
        grown.append(int(program.logits(grown)[-1].argmax()))
    return grown[len(prompt) :]


def test_logits_are_those_of_transformers(
    program: Any, reference: transformers.PreTrainedModel, ids: list[list[int]]
) -> None:
    for prompt in ids:
        with torch.no_grad():
            single = reference.float()(torch.tensor([prompt])).logits[0]
            double = reference.double()(torch.tensor([prompt])).logits[0]
        reference.float()
        error = (torch.from_numpy(program.logits(prompt)).double() - double).abs().max()
        assert error <= 4 * (single.double() - double).abs().max()


def test_greedy_is_the_likeliest_token_step_by_step(program: Any, ids: list[list[int]]) -> None:
    for prompt in ids:
        assert program.generate_ids(prompt, max_new_tokens=7, stop_tokens=NONE) == greedy(program, prompt, 7)


def test_a_ragged_batch_is_its_rows_one_by_one(program: Any, ids: list[list[int]]) -> None:
    together = program.generate_ids(ids, max_new_tokens=9, stop_tokens=NONE)
    assert together == [program.generate_ids(p, max_new_tokens=9, stop_tokens=NONE) for p in ids]
    assert program.generate_ids(ids[::-1], max_new_tokens=9, stop_tokens=NONE) == together[::-1]


def test_rows_that_end_early_leave_the_others_alone(program: Any, ids: list[list[int]]) -> None:
    whole = program.generate_ids(ids, max_new_tokens=9, stop_tokens=NONE)
    ends = [whole[0][2]]

    def cut(row: list[int]) -> list[int]:
        return row[: next((n for n, token in enumerate(row) if token in ends), len(row))]

    assert program.generate_ids(ids, max_new_tokens=9, stop_tokens=ends) == [cut(row) for row in whole]
    assert len(cut(whole[0])) <= 2


def test_padding_of_forward_does_not_show(program: Any, ids: list[list[int]]) -> None:
    """`forward` with padding on the left gives each row the logits that the row has alone."""
    longest = max(map(len, ids))
    padded = torch.tensor([[0] * (longest - len(p)) + p for p in ids])
    real = torch.tensor([[False] * (longest - len(p)) + [True] * len(p) for p in ids])
    logits = program(padded, real)
    for row, prompt in enumerate(ids):
        alone = program(torch.tensor([prompt]), torch.ones(1, len(prompt), dtype=torch.bool))[0]
        assert torch.equal(logits[row, real[row]].argmax(-1), alone.argmax(-1))
        torch.testing.assert_close(logits[row, real[row]], alone, rtol=0, atol=1e-4)


def test_caches_grow_without_changing_anything(program: Any, ids: list[list[int]]) -> None:
    count = FIRST_CAPACITY + 5
    tokens = program.generate_ids(ids, max_new_tokens=count, stop_tokens=NONE)
    for prompt, new in zip(ids, tokens):
        # One pass over the whole sequence, whose caches are large from the start, chooses the same tokens.
        logits = program.logits([*prompt, *new])[len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == new


def test_any_split_of_a_prompt_gives_the_same_logits(program: Any, ids: list[list[int]]) -> None:
    prompt = ids[0]
    whole = program.logits(prompt)[-1]
    for cut in range(1, len(prompt)):
        session = program.session()
        session.read([prompt[:cut]])
        np.testing.assert_allclose(session.read([prompt[cut:]])[0], whole, rtol=0, atol=1e-4)


def test_pieces_join_to_the_text(program: Any) -> None:
    pieces = list(program.stream("a few", max_new_tokens=12, stop_tokens=NONE))
    assert "".join(pieces) == program.generate("a few", max_new_tokens=12, stop_tokens=NONE)
    assert len(pieces) > 1
    prompts = ["a few", "z", "some more"]
    alone = [program.generate(p, max_new_tokens=12, stop_tokens=NONE) for p in prompts]
    assert program.generate(prompts, max_new_tokens=12, stop_tokens=NONE) == alone


def test_stop_strings_end_the_text_before_them(program: Any) -> None:
    text = program.generate("a few", max_new_tokens=12, stop_tokens=NONE)
    for start in range(len(text) - 2):
        # Three characters are three tokens.
        stop = text[start : start + 3]
        pieces = list(program.stream("a few", max_new_tokens=12, stop_tokens=NONE, stop=stop))
        assert "".join(pieces) == text[: text.find(stop)]
    assert program.generate("a few", max_new_tokens=12, stop_tokens=NONE, stop=["\n", text[3:5]]) == text[:3]


def test_the_end_token_of_the_model_stops(program: Any) -> None:
    assert program.metadata["eos_token_ids"] == [2]
    ends = program.generate_ids([5], max_new_tokens=200)
    assert 2 not in ends


def test_a_seed_decides(program: Any, ids: list[list[int]]) -> None:
    options = {"max_new_tokens": 16, "stop_tokens": NONE, "temperature": 5.0}
    first = program.generate_ids(ids[0], seed=1, **options)
    assert program.generate_ids(ids[0], seed=1, **options) == first
    assert program.generate_ids(ids[0], seed=2, **options) != first
    # The first row of a batch draws what it draws alone.
    assert program.generate_ids(ids, seed=1, **options)[0] == first


def test_a_narrow_choice_is_greedy(program: Any, ids: list[list[int]]) -> None:
    want = program.generate_ids(ids[0], max_new_tokens=8, stop_tokens=NONE)
    for options in ({"temperature": 1.0, "top_p": 1e-9}, {"temperature": 1e-300}):
        assert program.generate_ids(ids[0], max_new_tokens=8, stop_tokens=NONE, **options) == want


def test_threads_do_not_change_a_bit(artifact: Path, program: Any, ids: list[list[int]]) -> None:
    want = program.logits(ids[0])
    try:
        assert np.array_equal(planish.load(artifact, threads=1).logits(ids[0]), want)
    finally:
        planish.load(artifact)
    with pytest.raises(InputError, match="at least one thread, not 0"):
        planish.load(artifact, threads=0)


def test_no_new_tokens_is_no_text(program: Any, ids: list[list[int]]) -> None:
    assert program.generate_ids(ids[0], max_new_tokens=0) == []
    assert program.generate_ids(ids, max_new_tokens=0) == [[], [], []]
    assert program.generate("a", max_new_tokens=0) == ""


def test_the_chat_template_wraps_the_prompt(program: Any) -> None:
    tokens = program.tokenizer.encode("<s>[user] hi", special=False)
    want = program.generate_ids(tokens, max_new_tokens=6, stop_tokens=NONE)
    got = program.generate("hi", chat=True, max_new_tokens=6, stop_tokens=NONE)
    assert got == program.tokenizer.decode(want)


def test_generation_stops_at_the_end_of_the_context(program: Any) -> None:
    context = program.metadata["context_length"]
    tokens = program.generate_ids([7] * (context - 3), max_new_tokens=9, stop_tokens=NONE)
    # The last token needs no place: nothing is read after it.
    assert len(tokens) == 4


@pytest.mark.parametrize(
    ("prompt", "options", "sentence"),
    [
        ("", {}, "the prompt is empty"),
        ([], {}, "the list of prompts is empty"),
        ("a" * 300, {}, "row 0 would have 301 tokens, but the context of this model holds 256"),
        ("a", {"max_new_tokens": -1}, "max_new_tokens must be at least 0, got -1"),
        ("a", {"temperature": -0.5}, "the temperature must be a number of at least 0, got -0.5"),
        ("a", {"temperature": float("nan")}, "the temperature must be"),
        ("a", {"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ("a", {"stop": [""]}, "a stop string must not be empty"),
        ("a", {"seed": -1}, "the seed must be at least 0"),
    ],
)
def test_refused(program: Any, prompt: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        program.generate(prompt, **options)


def test_refused_tokens(program: Any) -> None:
    for ids, sentence in (([], "prompt 0 is empty"), ([3, 97], "token 97 of prompt 0 is outside the vocabulary of 97")):
        with pytest.raises(InputError, match=sentence):
            program.generate_ids(ids)


def test_modules_of_other_kinds_are_called(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3)).eval()
    x = torch.randn(4, 7)
    called = planish.build(planish.trace(module, (x,))).load()
    with torch.no_grad():
        exact = module.double()(x.double())
        rounded = module.float()(x)
    assert (called(x).double() - exact).abs().max() <= 4 * (rounded.double() - exact).abs().max() + 1e-7
    with pytest.raises(InputError, match="takes 1 tensors"):
        called(x, x)
    with pytest.raises(InputError, match=r"is f64, but f32 was declared"):
        called(x.double())
