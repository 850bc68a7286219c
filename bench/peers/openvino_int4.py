"""OpenVINO as a contestant: a product with int4 weights whose activations it quantises as it runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
from openvino import opset13 as ops


class Product:
    """x [rows, in] times the transpose of int4 weights in groups, both in groups of the same size.

    Args:
        codes: uint8 [out, in], 8 standing for zero.
        scales: float16 [out, in / group].
        x: float32 [rows, in].
        threads: of the processor.
    """

    def __init__(
        self, codes: np.ndarray[Any, Any], scales: np.ndarray[Any, Any], x: np.ndarray[Any, Any], threads: int
    ) -> None:
        outs, ins = codes.shape
        group = ins // scales.shape[1]
        signed = (codes - 8) & 15
        # Tensors share these arrays' memory.
        self._kept = (signed[:, 0::2] | (signed[:, 1::2] << 4), np.ascontiguousarray(scales[..., None]), x)
        shape = openvino.Shape([outs, ins // group, group])
        held = ops.constant(openvino.Tensor(self._kept[0].reshape(-1), shape, openvino.Type.i4))
        levels = ops.multiply(ops.convert(held, "f16"), ops.constant(self._kept[1]))
        weight = ops.convert(ops.reshape(levels, np.array([outs, ins]), False), "f32")
        given = ops.parameter([-1, ins], np.float32)
        model = openvino.Model([ops.matmul(given, weight, False, True)], [given])
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": group,
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
        self._request.set_input_tensor(openvino.Tensor(x, shared_memory=True))

    def run(self) -> None:
        self._request.infer()

    def result(self) -> np.ndarray[Any, Any]:
        """float32 [rows, out] of the last run."""
        return np.array(self._request.get_output_tensor().data)
