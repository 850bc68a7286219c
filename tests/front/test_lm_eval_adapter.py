"""An artifact behind lm-evaluation-harness: beside the model in transformers, and on a task of our own."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from planish.cli.app import run
from planish.ir import InputError

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.full

CONTEXT = 256
LONG = "many words " * 40
# Context, continuation, and what is read and what is scored of them.
PAIRS = [
    ("a few", " words", "a few", " words"),
    ("a few", " w", "a few", " w"),
    ("a few", " v", "a few", " v"),
    ("", "words", "", "words"),
    ("trailing  ", "space", "trailing", "  space"),
    ("x" * 300, "yz", "x" * 300, "yz"),
]
TASK = """
task: own_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["a", "b"]
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


def requests(arguments: list[tuple[Any, ...]]) -> list[Any]:
    return [SimpleNamespace(args=given) for given in arguments]


@pytest.fixture(scope="module")
def adapter(program: Any) -> Any:
    from planish.lm_eval_adapter import ArtifactModel

    return ArtifactModel(program)


class Oracle:
    """Logarithms of probabilities by transformers, in float64."""

    def __init__(self, reference: transformers.PreTrainedModel, checkpoint: Path) -> None:
        self._exact = copy.deepcopy(reference).double()
        self._tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(checkpoint)
        ids = torch.arange(CONTEXT).remainder(90).add(3)[None]
        with torch.no_grad():
            rounding = float((reference(ids).logits - self._exact(ids).logits).abs().max())
        # A compiled logit is off by four times what rounding to float32 does to one, a logarithm by twice that.
        self.off = 2 * 4 * rounding

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def score(self, read: list[int], after: list[int]) -> tuple[float, bool]:
        """Of the tokens `after`, which follow what is read but for its last tokens."""
        with torch.no_grad():
            found = torch.log_softmax(self._exact(torch.tensor([read])).logits[0], -1)[-len(after) :]
        return float(found.gather(1, torch.tensor(after)[:, None]).sum()), found.argmax(-1).tolist() == after


@pytest.fixture(scope="module")
def oracle(reference: transformers.PreTrainedModel, checkpoint: Path) -> Oracle:
    return Oracle(reference, checkpoint)


def test_likelihoods(adapter: Any, oracle: Oracle) -> None:
    """Spaces at the end of a context belong to what follows; a context too long is cut on its left."""
    asked = [(context, after) for context, after, *_ in PAIRS]
    for (context, after, before, scored), ours in zip(PAIRS, adapter.loglikelihood(requests(asked)), strict=True):
        tokens = oracle.encode(scored)
        read = [1, *oracle.encode(before), *tokens][-CONTEXT - 1 : -1]
        expected, greedy = oracle.score(read, tokens)
        assert abs(ours[0] - expected) <= oracle.off * len(tokens), (context, after)
        assert ours[1] == greedy, (context, after)


def test_what_would_be_written_is_greedy(adapter: Any, program: Any) -> None:
    written = program.generate("a few", max_new_tokens=3)
    ((_, greedy),) = adapter.loglikelihood(requests([("a few", written)]))
    assert greedy


def test_likelihoods_of_whole_texts(adapter: Any, oracle: Oracle) -> None:
    """The first window is led by one beginning, the last one is as long as the context allows."""
    long = oracle.encode(LONG)
    last = len(long) - CONTEXT
    assert 0 < last < CONTEXT
    first, rest = [1, *long[: CONTEXT - 1]], long[last - 1 : -1]
    whole = oracle.score(first, long[:CONTEXT])[0] + oracle.score(rest, long[CONTEXT:])[0]
    short = oracle.encode("a few words")
    expected = [0.0, oracle.score([1, *short[:-1]], short)[0], whole]
    found = adapter.loglikelihood_rolling(requests([("",), ("a few words",), (LONG,)]))
    for ours, theirs, count in zip(found, expected, (0, len(short), len(long)), strict=True):
        assert abs(ours - theirs) <= oracle.off * count


def test_greedy_continuations_are_those_of_the_program(adapter: Any, program: Any) -> None:
    options = {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False}
    (found,) = adapter.generate_until(requests([("a few words", options)]))
    assert found == program.generate("a few words", max_new_tokens=6)
    stop = found[2]
    (cut,) = adapter.generate_until(requests([("a few words", {**options, "until": stop})]))
    assert cut == found[: found.find(stop)]
    # What does not fit the context is cut on its left, with room for what is new.
    long = "words " * 60
    kept = program.tokenizer.encode(long)[-250:]
    (new,) = adapter.generate_until(requests([(long, options)]))
    assert new == program.tokenizer.decode(program.generate_ids(kept, max_new_tokens=6))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_gen_toks": 256}, "leave no room in the model's context of 256 tokens"),
        ({"max_gen_toks": 6, "num_beams": 4}, "the option 'num_beams', which is not supported"),
    ],
)
def test_continuations_refused(adapter: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        adapter.generate_until(requests([("a", options)]))


def test_a_continuation_longer_than_the_context(adapter: Any) -> None:
    with pytest.raises(InputError, match="a continuation has 300 tokens, but one of 1 to 256"):
        adapter.loglikelihood(requests([("a", "x" * 300)]))


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one task of two choices of a letter over three questions."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data.jsonl"
    documents = [{"question": question, "answer": n % 2} for n, question in enumerate(("one", "two", "three"))]
    data.write_text("\n".join(map(json.dumps, documents)), encoding="utf-8")
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "own.yaml").write_text(TASK.format(data=data), encoding="utf-8")
    return folder


def test_scores_on_a_task(capsys: pytest.CaptureFixture[str], tasks: Path, artifact: Path, program: Any) -> None:
    """The accuracy is that of choosing the likelier letter by the program's own logits."""
    letters = [program.tokenizer.encode(f" {letter}", special=False)[-1] for letter in "ab"]
    space = program.tokenizer.encode(" ", special=False)
    right = 0
    for number, question in enumerate(("one", "two")):
        last = program.logits([*program.tokenizer.encode(question), *space])[-1]
        right += int(int(last[letters[1]] > last[letters[0]]) == number % 2)
    assert run(["eval", str(artifact), "--tasks", "own_choice", "--include", str(tasks), "--limit", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["tasks"]["own_choice"]
    assert found["acc,none"] == right / 2
    assert run(["eval", str(artifact), "--tasks", "own_choice", "--include", str(tasks), "--limit", "2"]) == 0
    assert "own_choice" in capsys.readouterr().err
    for arguments, sentence in (
        (("--tasks", "own_choyce", "--include", str(tasks)), "lm-eval knows no task 'own_choyce'"),
        (("--tasks", "own_choice", "--limit", "0"), "0 documents score nothing"),
        (("--tasks", "own_choice", "--include", "nowhere"), "nowhere is no folder of tasks"),
    ):
        assert run(["eval", str(artifact), *arguments]) == 1
        assert sentence in capsys.readouterr().err
