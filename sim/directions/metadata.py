"""The metadata of a steering vector as one JSON text: its name, model, site, extraction, diagnosis and scales.

The same text is kept in the metadata of safetensors and GGUF files and in NumPy archives, so that a vector comes back from
any of them as it was.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sim.directions.vector import Diagnosis, ModelTag, SteeringVector, length_of
from ufm._check import require, shown
from ufm.steering import RESIDUAL

FORMAT = 1
"""The number of the format that is written; files of later ones are refused."""


@dataclass(frozen=True)
class Facts:
    """Everything of a `SteeringVector` but its directions and sinks.

    Attributes:
        format: number of the format of the text.
        name, site, model, extraction, diagnosis, scales: as there.
    """

    format: int
    name: str = ""
    site: str = RESIDUAL
    model: ModelTag | None = None
    extraction: dict[str, Any] = field(default_factory=dict)
    diagnosis: dict[int, Diagnosis] = field(default_factory=dict)
    scales: dict[int, float] = field(default_factory=dict)


_FACTS = TypeAdapter(Facts)


def as_text(vector: SteeringVector) -> str:
    """The facts of a vector as JSON."""
    v = vector
    facts = Facts(FORMAT, v.name, v.site, v.model, dict(v.extraction), dict(v.diagnosis), dict(v.scales))
    return json.dumps(asdict(facts), allow_nan=False)


def as_json(vector: SteeringVector) -> dict[str, Any]:
    """The facts of a vector with the lengths of its directions and the warnings, for a report."""
    lengths = {layer: length_of(v) for layer, v in vector.directions.items()}
    return {**json.loads(as_text(vector)), "width": vector.d_model, "lengths": lengths, "warnings": vector.warnings}


def as_lines(vector: SteeringVector) -> str:
    """What a vector is, how it was made and its diagnosis, as lines of text."""
    lines = [repr(vector)]
    lines += [f"  {key}: {value}" for key, value in vector.extraction.items()]
    lines += [] if vector.site == RESIDUAL else [f"  site: {vector.site}"]
    texts = vector.extraction.get("texts")
    alone = isinstance(texts, list) and 1 in texts
    lines += ["  one text on a side: no diagnosis of halves and of held-out texts"] if alone else []
    lines += [] if vector.diagnosis else ["  no diagnosis: the file does not have one"]
    return "\n".join([*lines, vector.table()])


def of_text(text: str) -> Facts:
    """The facts that a file holds.

    Raises:
        ValueError: no JSON, facts of another form, a later format.
    """
    try:
        number = json.loads(text)["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        detail = f"{shown(text)}: {type(error).__name__}"
        raise ValueError(f"vector: expected its facts as JSON, with the number of their format, got {detail}") from error
    known = isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= FORMAT
    later = " (a later version of this package wrote it: update the package)"
    got = f"format {shown(number)}{later if isinstance(number, int) and number > FORMAT else ''}"
    require(known, "vector", f"a file of format {FORMAT}", got)
    try:
        return _FACTS.validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ValueError(f"vector: expected facts of format {FORMAT}, got {where}: {problem['msg']}") from error
