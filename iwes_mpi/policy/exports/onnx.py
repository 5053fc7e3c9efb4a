"""An ONNX graph from observations, float64 (n, obs_size), to actions: float32 (n, action_size) or int64 (n,)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.policy.policy import Policy

SUFFIX, NEEDS, EXTRA = ".onnx", ("onnx", "onnxruntime"), "onnx"
_OPSET, _IR = 17, 8  # of 2022: what reads graphs today reads these


def write(policy: Policy, path: Path) -> None:
    """Write the graph."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    constants: list[Any] = []
    last = "observation"

    def then(operator: str, *values: NDArray[Any], **attributes: Any) -> None:
        """Apply an operator to what there is so far and to constants."""
        nonlocal last
        names = [f"constant{len(constants) + i}" for i in range(len(values))]
        constants.extend(numpy_helper.from_array(np.asarray(v), name) for v, name in zip(values, names, strict=True))
        nodes.append(helper.make_node(operator, [last, *names], [f"value{len(nodes)}"], **attributes))
        last = f"value{len(nodes) - 1}"

    mean, rest = policy.normalizer[0], policy.normalizer[1:]
    then("Sub", mean)
    if len(rest) == 1:
        then("Mul", rest[0])
    else:
        then("MatMul", rest)
    if np.isfinite(policy.obs_clip):
        then("Clip", np.array(-policy.obs_clip), np.array(policy.obs_clip))
    then("Cast", to=TensorProto.FLOAT)
    layers = policy.layers()
    for number, (weights, bias) in enumerate(layers):
        then("MatMul", weights)
        if bias is not None:
            then("Add", bias)
        if number < len(layers) - 1:
            then("Relu" if policy.layout.relu else "Tanh")
    if policy.actions.start is None:
        then("Max", policy.actions.low)
        then("Min", policy.actions.high)
        shape, kind = ["n", policy.layout.action_size], TensorProto.FLOAT
    else:
        then("ArgMax", axis=1, keepdims=0)
        then("Add", np.array(policy.actions.start, dtype=np.int64))
        shape, kind = ["n"], TensorProto.INT64
    nodes.append(helper.make_node("Identity", [last], ["action"]))
    graph = helper.make_graph(
        nodes, "policy",
        [helper.make_tensor_value_info("observation", TensorProto.DOUBLE, ["n", policy.layout.obs_size])],
        [helper.make_tensor_value_info("action", kind, shape)], constants, doc_string=policy.about,
    )  # fmt: skip
    model = helper.make_model(
        graph, producer_name="iwes_mpi", opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR
    )
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def reader(path: Path) -> Callable[..., Any]:
    """What acts from the file, by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda obs: session.run(["action"], {"observation": obs})[0]
