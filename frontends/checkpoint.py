"""From a transformers checkpoint folder to a module.

The model is built without weights, traced once over a whole sequence with symbolic batch and length, and its parameters
are bound to the files lazily. Nothing is downloaded and no code from the folder runs.
"""

from __future__ import annotations

import inspect
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from planish.frontends import custom_ops
from planish.frontends.attention_interface import IMPLEMENTATION, whole_attention
from planish.frontends.checkpoint_config import context_length, kind, metadata, model_class, read_config
from planish.frontends.exported import import_exported
from planish.frontends.quantized import quantization
from planish.frontends.rope import fix_frequencies
from planish.frontends.skeleton import without_weights
from planish.frontends.tracing import export
from planish.frontends.weights import check_finite as check_params_finite
from planish.frontends.weights import checkpoint_params
from planish.ir import InputError, Module, PlanishError, UnsupportedError, dense_param

_ROOT = "model."


def import_checkpoint(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    check_finite: bool = True,
    rope_length: int | None = None,
    ignore_unexpected: bool = False,
) -> Module:
    """The model of a checkpoint folder as a module with the function "forward".

    `forward(input_ids i64[B, S], attention_mask bool[B, S])` (and token_type_ids i64[B, S] where the model has token
    types) gives "logits", or for a model without a head its own outputs. The mask may mark any tokens as padding; the
    positions of a decoder count real tokens only, those of an encoder are what the model makes of the mask itself.

    A sequence-to-sequence model is `forward(input_ids i64[B, T], attention_mask bool[B, T], decoder_input_ids i64[B, S])`.

    Args:
        folder: a folder with config.json and safetensors weights. Weights quantised by a known method (see
            `frontends.quantized`) keep their codes and scales, as the parameter's encoding.
        dtype: the dtype of the computation; weights keep their stored dtype as their encoding.
        check_finite: read every weight once, one at a time, to refuse NaN and infinity.
        rope_length: the length for which to fix rotary frequencies that depend on the length.
        ignore_unexpected: leave out stored weights that the model has no place for, instead of refusing them.

    Raises:
        InputError: for a folder, config or weight that is missing, damaged or does not fit.
        UnsupportedError: for a model that cannot be represented, listing everything that stands in the way.
    """
    path = Path(folder)
    config = read_config(path)
    method = quantization(path, config)
    found = model_class(path, config)
    model, buffers = _build(found, config, dtype, rope_length)
    params = checkpoint_params(path, model, ignore_unexpected, method)
    if check_finite:
        check_params_finite(params)
    wrapper = _SequenceToSequence(model) if kind(found) == "seq2seq_lm" else _Forward(model)
    program, longest = _trace(wrapper, context_length(config))
    params.update({name: dense_param(name, value) for name, value in buffers.items() if name not in params})
    return import_exported(
        program,
        dynamic_shapes=wrapper.dynamic_shapes(longest),
        params=params,
        root=_ROOT,
        metadata={
            **metadata(path, config, found),
            "context_length": longest,
            **({} if method is None else {"quantization": method.name, "quantization_notes": _noted(method.notes)}),
        },
    )


def _noted(notes: tuple[str, ...]) -> tuple[str, ...]:
    """What a quantised checkpoint asks for and does not get: kept with the module, and said aloud."""
    for note in notes:
        warnings.warn(note, UserWarning, stacklevel=2)
    return notes


def _build(found: Any, config: Any, dtype: torch.dtype, rope_length: int | None) -> tuple[Any, dict[str, torch.Tensor]]:
    """The model without its weights, and the values of the buffers that it computes itself."""
    for asked in ("use_cache", "output_hidden_states", "output_attentions"):
        setattr(config, asked, False)
    config.return_dict = True
    config._experts_implementation = "batched_mm"
    config._attn_implementation = IMPLEMENTATION if found._supports_attention_backend else "eager"

    def build() -> torch.nn.Module:
        model: torch.nn.Module = found(config)
        fix_frequencies(model, rope_length)
        return model

    with whole_attention(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return without_weights(build, dtype)
        except PlanishError:
            raise
        except Exception as error:
            raise InputError(f"the config does not describe a {found.__name__}: {error}") from error


def _trace(
    wrapper: _Forward | _SequenceToSequence, longest: int | None
) -> tuple[torch.export.ExportedProgram, int | None]:
    """The traced program and the longest sequence it is for."""

    def trace(longest: int | None) -> torch.export.ExportedProgram:
        shapes = wrapper.dynamic_shapes(longest)
        return export(wrapper, wrapper.example(), dynamic_shapes=shapes, name=type(wrapper.model).__name__)

    with whole_attention():
        try:
            return trace(longest), longest
        except UnsupportedError:
            # A table cut to exactly its whole length traces to another program (the table itself) than any shorter
            # one, and no program is both: such a model is imported for one token less.
            if longest is None:
                raise
            with suppress(UnsupportedError):
                return trace(longest - 1), longest - 1
            raise


class _Forward(torch.nn.Module):
    """The whole-sequence function of a model, from tensors to tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        accepted = inspect.signature(model.forward).parameters
        decoder = kind(type(model)) == "causal_lm" or any(getattr(m, "is_causal", False) for m in model.modules())
        self.with_positions = decoder and "position_ids" in accepted
        self.names = ["input_ids", "attention_mask"]
        if "token_type_ids" in accepted and getattr(model.config, "type_vocab_size", 0) > 1:
            self.names.append("token_type_ids")

    def dynamic_shapes(self, longest: int | None) -> dict[str, Any]:
        """Symbolic batch and length of every input; tables of learned positions hold up to the longest length."""
        batch, tokens = torch.export.Dim("B"), torch.export.Dim("S", max=longest)
        return {name: {0: batch, 1: tokens} for name in self.names}

    def example(self) -> tuple[torch.Tensor, ...]:
        ids = torch.zeros(2, 7, dtype=torch.int64)
        return tuple(ids == 0 if name == "attention_mask" else ids.clone() for name in self.names)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        given: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            given["token_type_ids"] = token_type_ids
        if self.with_positions:
            given["position_ids"] = custom_ops.positions(attention_mask)
        result = self.model(**given)
        return {name: value for name, value in result.items() if isinstance(value, torch.Tensor)}


class _SequenceToSequence(torch.nn.Module):
    """The function of a model that reads a source and the tokens written so far. Those need no mask: they are causal."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def dynamic_shapes(self, longest: int | None) -> dict[str, Any]:
        batch, source = torch.export.Dim("B"), torch.export.Dim("T", max=longest)
        read = {0: batch, 1: source}
        written = {0: batch, 1: torch.export.Dim("S", max=longest)}
        return {"input_ids": read, "attention_mask": read, "decoder_input_ids": written}

    def example(self) -> tuple[torch.Tensor, ...]:
        source = torch.zeros(2, 5, dtype=torch.int64)
        return source, source == 0, torch.zeros(2, 7, dtype=torch.int64)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, decoder_input_ids: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        result = self.model(input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids)
        return {"logits": result.logits}
