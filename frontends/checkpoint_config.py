"""What the config of a checkpoint folder says: which model to build, and what its users need to know."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from planish.ir import InputError, UnsupportedError
from planish.ir.attributes import Attribute


def read_config(folder: Path) -> Any:
    """The folder's config. Raises InputError when the folder or its config is missing or not understood."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder of a checkpoint")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json; give the folder of a transformers checkpoint")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{folder / 'config.json'} is not a config that transformers accepts: {reason}") from error
    return config


def model_class(folder: Path, config: Any) -> Any:
    """The class of the model. Raises InputError for an unknown one, UnsupportedError for one that reads no tokens."""
    named = list(config.architectures or [])
    name = named[0] if named else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    found: Any = getattr(transformers, str(name), None)
    if found is None:
        raise InputError(f"{folder / 'config.json'} names the architecture {name!r}, which transformers does not have")
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise InputError(f"{folder / 'config.json'} names the architecture {name!r}, which is not a model")
    if getattr(config, "is_encoder_decoder", False) and kind(found) != "seq2seq_lm":
        raise UnsupportedError(
            f"{name} has an encoder and a decoder but no head over tokens; give a checkpoint of a model that generates"
        )
    reads = getattr(found, "main_input_name", "input_ids")
    if reads != "input_ids":
        raise UnsupportedError(f"{name} reads {reads}, not tokens; import it as a module instead")
    return found


def kind(found: Any) -> str:
    """What a class of model is for: "causal_lm", "seq2seq_lm", which reads a source through an encoder, or "encoder"."""
    if found.__name__ in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values():
        return "seq2seq_lm"
    return "causal_lm" if found.__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() else "encoder"


def context_length(config: Any) -> int | None:
    """The longest sequence the model was made for; None when its config sets no limit."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) else None


def metadata(folder: Path, config: Any, found: Any) -> dict[str, Attribute]:
    """Facts for users of the module: its kind and architecture, vocabulary, context length and special tokens.

    Token ids come from generation_config.json where there is one, which overrides the config in transformers too.
    `eos_token_ids` is a tuple, the others are an int or None.
    """
    text = config.get_text_config()
    generation: Any = None
    if (folder / "generation_config.json").is_file():
        try:
            generation = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            raise InputError(f"{folder / 'generation_config.json'} cannot be read: {error}") from error
    ends = _first(generation, text, "eos_token_id")
    start = {"decoder_start_token_id": _first(generation, text, "decoder_start_token_id")}
    return {
        "kind": kind(found),
        "architecture": found.__name__,
        "vocab_size": getattr(text, "vocab_size", None),
        "context_length": context_length(config),
        "bos_token_id": _first(generation, text, "bos_token_id"),
        "eos_token_ids": tuple(ends) if isinstance(ends, Iterable) else () if ends is None else (ends,),
        "pad_token_id": _first(generation, text, "pad_token_id"),
        **(start if kind(found) == "seq2seq_lm" else {}),
    }


def _first(generation: Any, config: Any, name: str) -> Any:
    value = getattr(generation, name, None)
    return getattr(config, name, None) if value is None else value
