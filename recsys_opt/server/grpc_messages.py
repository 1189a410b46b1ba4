"""The messages of predict.proto, made without generated code: that would hold for one version of protobuf."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "recsys_opt.v1"
SERVICE = f"{PACKAGE}.Predictor"
METHOD = f"/{SERVICE}/Predict"


def describe() -> descriptor_pb2.FileDescriptorProto:
    """What `protoc` makes of predict.proto."""
    file = descriptor_pb2.FileDescriptorProto(name="predict.proto", package=PACKAGE, syntax="proto3")
    for name, field in (("PredictRequest", "query"), ("PredictReply", "answer")):
        message = file.message_type.add(name=name)
        message.field.add(
            name=field,
            json_name=field,
            number=1,
            type=descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
            label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
        )
    service = file.service.add(name="Predictor")
    service.method.add(
        name="Predict",
        input_type=f".{PACKAGE}.PredictRequest",
        output_type=f".{PACKAGE}.PredictReply",
    )
    return file


_pool = descriptor_pool.DescriptorPool()
_pool.Add(describe())
_messages: dict[str, Any] = message_factory.GetMessageClassesForFiles(["predict.proto"], _pool)
PredictRequest = _messages[f"{PACKAGE}.PredictRequest"]
PredictReply = _messages[f"{PACKAGE}.PredictReply"]
