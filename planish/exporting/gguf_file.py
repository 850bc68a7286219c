"""A GGUF file of llama.cpp: settings, tokenizer and weights of a decoder in one file, by the package gguf.

Weights are written one at a time. See `gguf_blocks` for the types that hold encodings, `gguf_architectures` for the models
and `gguf_tokenizer` for the tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planish.exporting.gguf_architectures import Architecture, architecture, paired_rows, settings
from planish.exporting.gguf_blocks import Blocks, blocks
from planish.exporting.gguf_tokenizer import Vocabulary, read_vocabulary
from planish.exporting.source import Source, source_of
from planish.exporting.whole import write_whole
from planish.ir import InputError
from planish.model import Model


def write(model: Model, target: Path) -> None:
    """See `planish.exporting.export`."""
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise InputError(f"writing GGUF files needs {error.name}; pip install 'planish[interchange]'") from error
    source = source_of(model)
    if source.kind != "causal_lm":
        raise InputError(
            f"GGUF files hold decoders with a head over tokens, and {source.folder} is a model of another kind"
        )
    known, made = architecture(source.settings), settings(source.settings)
    vocabulary = read_vocabulary(source.folder, int(made["vocab_size"]))
    tensors = _tensors(source, known, made)

    def fill(path: Path) -> None:
        writer = gguf.GGUFWriter(path, known.name)
        try:
            writer.add_name(source.folder.name)
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            for name, value in made.items():
                add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
                add(f"{known.name}.{name}", value)
            _add_tokenizer(writer, source, vocabulary)
            _write_tensors(writer, tensors)
        finally:
            writer.close()

    write_whole(target, fill)


def _tensors(source: Source, known: Architecture, made: Mapping[str, Any]) -> dict[str, tuple[Blocks, tuple[int, ...]]]:
    """Every tensor by its name in GGUF, with the shape of the weight."""
    import gguf

    kind = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == known.name)
    names = gguf.get_tensor_name_map(kind, int(made["block_count"]))
    tensors = {}
    for key, param in source.weights.items():
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise InputError(f"GGUF has no name for the tensor {key!r} of a {known.name}")
        rows = paired_rows(key, made) if known.paired else None
        tensors[name] = blocks(key, param, rows), tuple(param.type.concrete({}))
    return tensors


def _add_tokenizer(writer: Any, source: Source, vocabulary: Vocabulary) -> None:
    import gguf

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.splitting)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([int(gguf.TokenType[name]) for name in vocabulary.types])
    special = gguf.SpecialVocab(source.folder, load_merges=True, n_vocab=len(vocabulary.tokens))
    special.add_to_gguf(writer, quiet=True)


def _write_tensors(writer: Any, tensors: Mapping[str, tuple[Blocks, tuple[int, ...]]]) -> None:
    """All headers, then the data of one tensor after the other."""
    import gguf
    import numpy as np

    planned = []
    for name, (made, shape) in tensors.items():
        wide = (*shape[:-1], shape[-1] // made.size * made.bytes)
        # For types of blocks the package takes shapes in bytes.
        kind = gguf.GGMLQuantizationType[made.name]
        writer.add_tensor_info(name, wide, np.dtype(np.uint8), int(np.prod(wide)), raw_dtype=kind)
        planned.append(made.make)
        if made.whole is not None:
            scale = name.removesuffix("weight") + "scale"
            writer.add_tensor_info(scale, (1,), np.dtype(np.float32), 4)
            planned.append(made.whole)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for make in planned:
        writer.write_tensor_data(make().numpy())
