"""Bits where they matter: the choice against all choices, and the measurement against the network itself."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.ir import Dense, GroupedInt, InputError, Interpreter
from planish.passes.bit_allocation import Offer, allocate, choose
from planish.passes.calibration import Calibration
from planish.passes.checking.compare import measure
from planish.passes.pass_base import Context
from planish.passes.quantize import Quantize
from planish.passes.selection import Rule
from planish.testing.tiny_decoder import tiny_decoder

OFFERS = st.dictionaries(
    st.sampled_from("abcd"),
    st.dictionaries(
        st.integers(0, 4), st.builds(Offer, st.integers(1, 20), st.integers(0, 50).map(float)), min_size=1, max_size=4
    ),
    min_size=1,
    max_size=4,
)


@given(offers=OFFERS, room=st.integers(0, 60))
def test_the_choice_fits_and_is_within_one_step_of_the_best(offers: dict[str, dict[int, Offer]], room: int) -> None:
    least = sum(min(o.nbytes for o in choices.values()) for choices in offers.values())
    limit = least + room
    chosen = choose(offers, limit)
    assert chosen.keys() == offers.keys()
    assert sum(offers[n][f].nbytes for n, f in chosen.items()) <= limit
    loss = sum(offers[n][f].loss for n, f in chosen.items())
    every = itertools.product(*(choices.values() for choices in offers.values()))
    best = min(sum(o.loss for o in combination) for combination in every if sum(o.nbytes for o in combination) <= limit)
    step = max(max(o.loss for o in choices.values()) for choices in offers.values())
    assert best <= loss <= best + step


@given(offers=OFFERS)
def test_with_room_for_everything_the_best_of_each_is_taken(offers: dict[str, dict[int, Offer]]) -> None:
    chosen = choose(offers, 10**6)
    for name, choices in offers.items():
        assert choices[chosen[name]].loss == min(o.loss for o in choices.values())


def test_too_little_room_is_refused() -> None:
    with pytest.raises(
        InputError, match="the cheapest formats already take 12 bytes, and the average of bits allows 11"
    ):
        choose({"a": {2: Offer(5, 1.0), 3: Offer(9, 0.0)}, "b": {2: Offer(7, 1.0)}}, 11)


def calibration() -> Calibration:
    ids = torch.randint(0, 11, (3, 12), generator=torch.Generator().manual_seed(1))
    return Calibration(({"input_ids": ids, "attention_mask": torch.ones(3, 12, dtype=torch.bool)},))


def test_bits_go_where_they_matter() -> None:
    module = tiny_decoder(hidden=32, size=8, inner=48)
    small = Quantize(
        group=16, average_bits=4.2, choices=(2, 4, 8), rules=(Rule(match="embedding", format=8),), budget=10.0
    ).apply(module, Context(calibration=calibration()))
    bits = {n: p.encoding.bits for n, p in small.module.params.items() if isinstance(p.encoding, GroupedInt)}
    assert bits["embedding"] == 8 and set(bits.values()) == {2, 4, 8}
    free = [p for n, p in small.module.params.items() if n != "embedding" and not isinstance(p.encoding, Dense)]
    average = 8 * sum(p.nbytes for p in free) / sum(p.elements for p in free)
    assert average <= 4.2

    # Three bits everywhere take 4 with their scales.
    uniform = Quantize(group=16, format=3, rules=(Rule(match="embedding", format=8),)).apply(module, Context())
    (batch,) = calibration().batches
    exact = Interpreter(module).run("forward", batch)[0]
    losses = [measure("kl_divergence", exact, Interpreter(m.module).run("forward", batch)[0]) for m in (small, uniform)]
    assert losses[0] < losses[1]


def test_the_loss_of_an_offer_is_measured_on_the_network() -> None:
    module = tiny_decoder(hidden=32, size=8, inner=48)
    phrases: list[str] = []
    offers = {"0.v": {2: GroupedInt(2, 16), 8: GroupedInt(8, 16)}}
    batches = calibration().batches
    found = allocate(module, offers, 3.0, batches, "relative_error", lambda _, phrase: phrases.append(phrase))
    assert found == {"0.v": 2}
    exact = Interpreter(module).run("forward", batches[0])[0]
    for phrase, bits in zip(phrases, (2, 8), strict=True):
        rule = Rule(match=r"^0\.v$", format=bits, group=16)  # type: ignore[arg-type]
        alone = Quantize(format=None, rules=(rule,)).apply(module, Context()).module
        loss = measure("relative_error", exact, Interpreter(alone).run("forward", batches[0])[0])
        assert phrase.endswith(f"loss {loss:.3g}")
