"""`tokenizer.model`, a vocabulary of SentencePiece: a message of protocol buffers, of which a few fields are read."""

from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from sim.bridge.files import reading
from ufm._check import require

PAIRS = 2
"""The kind of SentencePiece models that put pairs together (BPE)."""

_HOW = "save a tokenizer.json with transformers (AutoTokenizer.from_pretrained(...).save_pretrained(...))"

# By message: names of fields, with number, type and default, as SentencePiece's own sentencepiece_model.proto has them.
_FIELDS: dict[str, dict[str, tuple[int, str, str | None]]] = {
    "Piece": {"piece": (1, "STRING", None), "score": (2, "FLOAT", None), "type": (3, "INT32", "1")},
    "Trainer": {
        "model_type": (3, "INT32", "1"),
        "unk_id": (40, "INT32", "0"),
        "bos_id": (41, "INT32", "1"),
        "eos_id": (42, "INT32", "2"),
    },
    "Normalizer": {
        "precompiled_charsmap": (2, "BYTES", None),
        "add_dummy_prefix": (3, "BOOL", "true"),
        "remove_extra_whitespaces": (4, "BOOL", "true"),
    },
}


@cache
def _message() -> Any:
    """The class of the whole message."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="ufm/pieces.proto", package="ufm.pieces", syntax="proto2")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, default) in fields.items():
            entry = message.field.add(name=field, number=number, type=f"TYPE_{kind}", label=kinds.LABEL_OPTIONAL)
            if default is not None:
                entry.default_value = default
    whole = file.message_type.add(name="Model")
    for number, (field, name) in enumerate(
        (("pieces", "Piece"), ("trainer_spec", "Trainer"), ("normalizer_spec", "Normalizer"))
    ):
        label = kinds.LABEL_REPEATED if field == "pieces" else kinds.LABEL_OPTIONAL
        whole.field.add(name=field, number=number + 1, type=kinds.TYPE_MESSAGE, type_name=f".ufm.pieces.{name}", label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("ufm.pieces.Model"))


def read(path: Path) -> Any:
    """The message: `pieces` (each with `piece`, `score` and `type`), `trainer_spec` and `normalizer_spec`.

    Raises:
        ValueError: no such file, or one of a kind whose tokens cannot be made here; the message says what to do.
    """
    with reading(path, f"a vocabulary of SentencePiece; if it is another, {_HOW}", argument="tokenizer.model"):
        model = _message().FromString(path.read_bytes())
        require(len(model.pieces) > 0, "pieces", "at least one", "none")
    kind, changes = model.trainer_spec.model_type, model.normalizer_spec
    require(
        kind == PAIRS, "tokenizer.model", "SentencePiece of pairs (BPE), as Llama and Gemma have it", f"kind {kind}: {_HOW}"
    )
    plain = not changes.precompiled_charsmap and not changes.remove_extra_whitespaces
    require(plain, "tokenizer.model", "SentencePiece that leaves characters as they are", f"one that changes some: {_HOW}")
    return model
