"""ONNX Runtime as a contestant: products with int4 weights (MatMulNBits), and the decode step of a whole model of them.

Accuracy level 4 lets it quantise activations to int8. The decode step is the graph that onnxruntime-genai's builder writes
for a Llama: fused projections of query, key and value, GroupQueryAttention with rotation in it and its cache in place.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from shapes import Shape

Array = np.ndarray[Any, Any]
DOMAIN, BLOCK, BITS, ACCURACY_LEVEL = "com.microsoft", 32, 4, 4
OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]


def session(model: bytes | str, threads: int) -> onnxruntime.InferenceSession:
    """A session on the processor whose threads rest once a run is over, so that whoever comes next has the cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def matrix(name: str, given: str, result: str, codes: Array, scales: Array) -> tuple[Any, list[Any]]:
    """A product's node and its initializers.

    Args:
        name: of the weight.
        given: name of the activations.
        result: name of the product.
        codes: uint8 [out, in / 2], two codes a byte, the first in the lower half, 8 standing for zero.
        scales: float32 [out, in / block].
    """
    outs, ins = codes.shape[0], 2 * codes.shape[1]
    block = ins // scales.shape[1]
    node = helper.make_node(
        "MatMulNBits", [given, f"{name}.codes", f"{name}.scales"], [result], name=name, domain=DOMAIN,
        K=ins, N=outs, bits=BITS, block_size=block, accuracy_level=ACCURACY_LEVEL,
    )  # fmt: skip
    packed = codes.reshape(outs, ins // block, block // 2)
    return node, [
        numpy_helper.from_array(packed, f"{name}.codes"),
        numpy_helper.from_array(scales.reshape(-1), f"{name}.scales"),
    ]


class Product:
    """x [rows, in] times the transpose of int4 weights in groups.

    Args:
        codes: uint8 [out, in], 8 standing for zero.
        scales: float16 [out, in / group].
        x: float32 [rows, in].
        threads: of the processor.
    """

    def __init__(self, codes: Array, scales: Array, x: Array, threads: int) -> None:
        packed = codes[:, 0::2] | (codes[:, 1::2] << 4)
        node, weights = matrix("product", "x", "y", packed, scales.astype(np.float32))
        given, result = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, size])
            for name, size in (("x", codes.shape[1]), ("y", codes.shape[0]))
        )
        graph = helper.make_graph([node], "product", [given], [result], weights)
        self._session = session(
            helper.make_model(graph, opset_imports=OPSETS, ir_version=10).SerializeToString(), threads
        )
        self._x = onnxruntime.OrtValue.ortvalue_from_numpy(x)
        self._y = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((x.shape[0], codes.shape[0]), np.float32))
        self._bound = self._session.io_binding()
        self._bound.bind_ortvalue_input("x", self._x)
        self._bound.bind_ortvalue_output("y", self._y)

    def run(self) -> None:
        self._session.run_with_iobinding(self._bound)

    def result(self) -> Array:
        """float32 [rows, out] of the last run."""
        return np.array(self._y.numpy())


def write_decoder(shape: Shape, folder: Path, seed: int = 0) -> Path:
    """The decode step of a shape with random weights in blocks of 32, unless it is there already; its model file."""
    path = folder / "decode.onnx"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    model = _Decoder(shape, np.random.default_rng(seed)).model()
    (folder / "decode.data").unlink(missing_ok=True)
    partial = folder / "decode.partial"
    onnx.save_model(model, partial, save_as_external_data=True, location="decode.data", size_threshold=1024)
    partial.rename(path)
    return path


class _Decoder:
    """Writes the graph, node by node."""

    def __init__(self, shape: Shape, random: np.random.Generator) -> None:
        self._shape, self._random = shape, random
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def model(self) -> onnx.ModelProto:
        shape = self._shape
        rows = self._random.standard_normal((shape.vocabulary, shape.hidden), dtype=np.float32) * 0.02
        table = self._constant("embedding", rows.astype(np.float16))
        self._node("Gather", [table, "input_ids"], ["row"])
        self._node("Cast", ["row"], ["hidden.0"], to=TensorProto.FLOAT)
        angles = np.outer(np.arange(shape.context), 500000.0 ** (-np.arange(0, shape.head_size, 2) / shape.head_size))
        self._constant("cos", np.cos(angles).astype(np.float32))
        self._constant("sin", np.sin(angles).astype(np.float32))
        self._node(
            "SimplifiedLayerNormalization", ["hidden.0", self._gain("first")], ["normal.0"], epsilon=1e-5, axis=-1
        )
        for layer in range(shape.layers):
            self._layer(layer)
        self._matrix("head", f"normal.{shape.layers}", "logits", shape.vocabulary, shape.hidden)
        cache = [1, shape.kv_heads, None, shape.head_size]
        caches = [f"{kind}.{layer}" for layer in range(shape.layers) for kind in ("key", "value")]
        inputs = [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, 1]),
            helper.make_tensor_value_info("before", TensorProto.INT32, [1]),
            helper.make_tensor_value_info("total", TensorProto.INT32, []),
            *(helper.make_tensor_value_info(f"past.{c}", TensorProto.FLOAT, cache) for c in caches),
        ]
        outputs = [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1, shape.vocabulary]),
            *(helper.make_tensor_value_info(f"present.{c}", TensorProto.FLOAT, cache) for c in caches),
        ]
        graph = helper.make_graph(self._nodes, "decode", inputs, outputs, self._weights)
        return helper.make_model(graph, opset_imports=OPSETS, ir_version=10)

    def _layer(self, n: int) -> None:
        shape, given, name = self._shape, f"normal.{n}", f"layer.{n}"
        attended = shape.heads * shape.head_size
        both = attended + 2 * shape.kv_heads * shape.head_size
        self._matrix(f"{name}.qkv", given, f"{name}.projected", both, shape.hidden)
        self._node(
            "GroupQueryAttention",
            [f"{name}.projected", "", "", f"past.key.{n}", f"past.value.{n}", "before", "total", "cos", "sin"],
            [f"{name}.attended", f"present.key.{n}", f"present.value.{n}"],
            domain=DOMAIN, num_heads=shape.heads, kv_num_heads=shape.kv_heads, do_rotary=1,
        )  # fmt: skip
        self._matrix(f"{name}.out", f"{name}.attended", f"{name}.mixed", shape.hidden, attended)
        self._add_and_normalise(f"hidden.{n}", f"{name}.mixed", f"{name}.normal", f"{name}.sum")
        self._matrix(f"{name}.gate", f"{name}.normal", f"{name}.gated", shape.inner, shape.hidden)
        self._matrix(f"{name}.up", f"{name}.normal", f"{name}.upped", shape.inner, shape.hidden)
        # x sigmoid(x), in one kernel.
        self._node("QuickGelu", [f"{name}.gated"], [f"{name}.silu"], domain=DOMAIN, alpha=1.0)
        self._node("Mul", [f"{name}.silu", f"{name}.upped"], [f"{name}.inner"])
        self._matrix(f"{name}.down", f"{name}.inner", f"{name}.grown", shape.hidden, shape.inner)
        self._add_and_normalise(f"{name}.sum", f"{name}.grown", f"normal.{n + 1}", f"hidden.{n + 1}")

    def _add_and_normalise(self, one: str, other: str, normal: str, total: str) -> None:
        inputs, results = [one, other, self._gain(normal)], [normal, "", "", total]
        self._node("SkipSimplifiedLayerNormalization", inputs, results, domain=DOMAIN, epsilon=1e-5)

    def _node(self, kind: str, inputs: list[str], results: list[str], **attributes: Any) -> None:
        self._nodes.append(helper.make_node(kind, inputs, results, name=f"{kind}:{results[0]}", **attributes))

    def _constant(self, name: str, values: Array) -> str:
        self._weights.append(numpy_helper.from_array(values, name))
        return name

    def _gain(self, name: str) -> str:
        return self._constant(f"{name}.gain", np.ones(self._shape.hidden, np.float32))

    def _matrix(self, name: str, given: str, result: str, outs: int, ins: int) -> None:
        codes = self._random.integers(0, 256, (outs, ins // 2), dtype=np.uint8)
        scales = self._random.random((outs, ins // BLOCK), dtype=np.float32) * 0.01
        node, weights = matrix(name, given, result, codes, scales)
        self._nodes.append(node)
        self._weights += weights


def read_bytes(path: Path) -> int:
    """Bytes of the weights that a token reads: all but the table of embeddings, of which it reads a row."""
    held = onnx.load(path, load_external_data=False).graph.initializer
    kinds = {TensorProto.UINT8: 1, TensorProto.FLOAT: 4}
    return int(sum(np.prod(t.dims) * kinds[t.data_type] for t in held if t.name not in ("embedding", "cos", "sin")))


def decoder(path: Path, shape: Shape, *, prefix: int, threads: int) -> Callable[[int], None]:
    """One token after `prefix` others, which stay as they are: each call writes over the last one's place in the cache."""
    program = session(str(path), threads)
    bound = program.io_binding()
    value = onnxruntime.OrtValue.ortvalue_from_numpy
    ids = value(np.zeros((1, 1), np.int64))
    bound.bind_ortvalue_input("input_ids", ids)
    bound.bind_ortvalue_input("before", value(np.array([prefix], np.int32)))
    bound.bind_ortvalue_input("total", value(np.array(prefix + 1, np.int32)))
    for layer in range(shape.layers):
        for kind in ("key", "value"):
            # Past and present are one buffer, as long as the context.
            cache = value(np.zeros((1, shape.kv_heads, shape.context, shape.head_size), np.float32))
            bound.bind_ortvalue_input(f"past.{kind}.{layer}", cache)
            bound.bind_ortvalue_output(f"present.{kind}.{layer}", cache)
    bound.bind_ortvalue_output("logits", value(np.zeros((1, 1, shape.vocabulary), np.float32)))

    def token(call: int) -> None:
        ids.update_inplace(np.array([[call % shape.vocabulary]], np.int64))
        program.run_with_iobinding(bound)

    return token
