"""How much computing a choice took, in passes: one is the whole model over all prompts and continuations, once."""

import math
from dataclasses import dataclass, field

from sim.bridge.config import Config
from sim.bridge.parameters import shapes
from sim.choosing.rollouts import Rollouts, Writer, keeps_predictions


@dataclass
class Work:
    """Operations counted as they are done, by parameters times tokens; attention's own are left out.

    Attributes:
        config: of the model.
        length: tokens of a text, its continuation included.
        horizon: tokens of a continuation: the positions at which logits are computed.
        count: number of texts.
        passes: done so far.
    """

    config: Config
    length: int
    horizon: int
    count: int
    passes: float = field(default=0.0)

    @classmethod
    def of(cls, config: Config, writer: Writer) -> "Work":
        """Nothing done yet, on the texts of a writer."""
        return cls(config, max(map(len, writer.prompts)) + writer.horizon, writer.horizon, len(writer.prompts))

    def __post_init__(self) -> None:
        sizes = {name: math.prod(shape) for name, shape in shapes(self.config).items()}
        self._blocks = sum(size for name, size in sizes.items() if name.startswith("blocks."))
        self._head = self.config.d_model * self.config.vocab_size

    @property
    def _whole(self) -> int:
        return self.count * (self.length * self._blocks + self.horizon * self._head)

    def _add(self, rollouts: Rollouts, blocks: float, heads: float) -> None:
        tokens, predictions = len(rollouts.prompts) * rollouts.length, rollouts.tokens.size
        self.passes += (tokens * blocks * self._blocks + predictions * heads * self._head) / self._whole

    def wrote(self, rollouts: Rollouts) -> None:
        """Texts were written."""
        self._add(rollouts, 1.0, 1.0)

    def read(self, rollouts: Rollouts) -> None:
        """Texts were read once, unsteered, to the logits."""
        self._add(rollouts, 1.0, 1.0)

    def steered(self, rollouts: Rollouts, layer: int, *, derivative: bool = False, unembedded: bool = True) -> None:
        """Logits were computed at a strength, from the states after a layer; where they are not kept, also those without."""
        after = 1 - (layer + 1) / self.config.num_layers
        again = not keeps_predictions(rollouts, self.config.vocab_size)
        self._add(rollouts, (1 + derivative) * after, unembedded * (1.0 + again + derivative))

    def derived(self, rollouts: Rollouts, layer: int) -> None:
        """The stream after all blocks was differentiated by the strength, from the states after a layer."""
        self._add(rollouts, 2 * (1 - (layer + 1) / self.config.num_layers), 0.0)

    def tilted(self, rollouts: Rollouts, *, kept: bool = False) -> None:
        """Logits were differentiated along the derivative of the stream, those of predictions that are kept alone."""
        self._add(rollouts, 0.0, 1.0 if kept else 2.0)
