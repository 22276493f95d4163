"""Language models, experiments, checks and figures: the face of the project, beside `ufm` and `theory`.

Names are imported when they are first used, so that `import sim` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.bridge.generation import Sampling
    from sim.bridge.model import Generated, LanguageModel, load, random_model
    from sim.bridge.sharding import make_mesh
    from sim.bridge.split import Split
    from sim.checks.refute import refute, replay
    from sim.checks.validation import validate
    from sim.checks.verify import verify
    from sim.choosing.choice import Choice
    from sim.choosing.search import choose
    from sim.directions.adapters import read_adapter, write_adapter
    from sim.directions.extraction import make_vector
    from sim.directions.features import best_features, feature_vector, sae_vector
    from sim.directions.files import read_vector, write_vector
    from sim.directions.sae_lens import read_sparse_autoencoder
    from sim.directions.sparse_autoencoder import train_sparse_autoencoder
    from sim.directions.texts import Pair, concept_pairs, read_pairs
    from sim.directions.vector import SteeringVector
    from sim.reproduction import reproduce
    from ufm.directional_interventions import Ablate, Clamp, NormPreservingAdd, Rotate, When
    from ufm.interventions import Add, LoRA, Weight
    from ufm.steering import After, All, Last, Steering, Where

_HOMES = {
    "sim.bridge.generation": ("Sampling",),
    "sim.bridge.model": ("Generated", "LanguageModel", "load", "random_model"),
    "sim.bridge.sharding": ("make_mesh",),
    "sim.bridge.split": ("Split",),
    "sim.checks.refute": ("refute", "replay"),
    "sim.checks.validation": ("validate",),
    "sim.checks.verify": ("verify",),
    "sim.choosing.choice": ("Choice",),
    "sim.choosing.search": ("choose",),
    "sim.directions.extraction": ("make_vector",),
    "sim.directions.texts": ("Pair", "concept_pairs", "read_pairs"),
    "sim.directions.adapters": ("read_adapter", "write_adapter"),
    "sim.directions.features": ("best_features", "feature_vector", "sae_vector"),
    "sim.directions.files": ("read_vector", "write_vector"),
    "sim.directions.sae_lens": ("read_sparse_autoencoder",),
    "sim.directions.sparse_autoencoder": ("train_sparse_autoencoder",),
    "sim.directions.vector": ("SteeringVector",),
    "sim.reproduction": ("reproduce",),
    "ufm.directional_interventions": ("Ablate", "Clamp", "NormPreservingAdd", "Rotate", "When"),
    "ufm.interventions": ("Add", "LoRA", "Weight"),
    "ufm.steering": ("After", "All", "Last", "Steering", "Where"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Ablate",
    "Add",
    "After",
    "All",
    "Choice",
    "Clamp",
    "Generated",
    "LanguageModel",
    "Last",
    "LoRA",
    "NormPreservingAdd",
    "Pair",
    "Rotate",
    "Sampling",
    "Split",
    "Steering",
    "SteeringVector",
    "Weight",
    "When",
    "Where",
    "best_features",
    "choose",
    "concept_pairs",
    "feature_vector",
    "load",
    "make_mesh",
    "make_vector",
    "random_model",
    "read_adapter",
    "read_pairs",
    "read_sparse_autoencoder",
    "read_vector",
    "refute",
    "replay",
    "reproduce",
    "sae_vector",
    "train_sparse_autoencoder",
    "validate",
    "verify",
    "write_adapter",
    "write_vector",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sim' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
