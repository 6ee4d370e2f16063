"""A trained `charlm` goes on with a text, character by character.

The model sees `sequenceLength` characters. When they are full it looks at the newer half of them again and goes on from
there, so a text may become as long as one likes.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from piton.contract import InputError
from piton_trainer.data.text.sources import DOCUMENT
from piton_trainer.data.text.vocabulary import REPLACEMENT, Vocabulary
from piton_trainer.recipes.charlm.config import CharlmConfig
from piton_trainer.recipes.charlm.memory import Memory
from piton_trainer.recipes.charlm.model import CharGPT
from piton_trainer.serving.text_generator import GenerateRequest
from piton_trainer.serving.trained_model import TrainedModel

_SHOWN = 10
"""Unknown characters that a refusal names."""


class CharlmGenerator:
    """A model that is asked by one request after the other, or by several in turn."""

    def __init__(self, model: CharGPT, vocabulary: Vocabulary) -> None:
        self.model = model.eval()
        self.vocabulary = vocabulary
        self.device = model.wte.weight.device
        self._begin = DOCUMENT if model.config.documents else ""
        """The first character of every text, for the model."""
        unspeakable = torch.zeros(model.lm_head.out_features, dtype=torch.bool)
        unspeakable[0] = True  # the replacement symbol stands for characters that nobody can name
        unspeakable[len(vocabulary) :] = True  # padding
        self._unspeakable = unspeakable

    def check(self, prompt: str) -> None:
        """Refuse a text that the model cannot read.

        Raises:
            ValueError: it has characters that were not in the training text.
        """
        unknown = sorted(set(prompt) - set(self.vocabulary.symbols) | ({REPLACEMENT} & set(prompt)))
        if unknown:
            more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
            raise InputError(
                f"prompt: the model has never seen {', '.join(map(repr, unknown[:_SHOWN]))}{more}; "
                "it knows the characters that GET /health lists"
            )

    def generate(self, generation: GenerateRequest) -> Iterator[str]:
        """The characters that come after the prompt, as they are drawn."""
        rng, length = torch.Generator().manual_seed(generation.seed), self.model.config.sequence_length
        seen = deque(self.vocabulary.encode(self._begin + generation.prompt).tolist(), maxlen=length)
        memories, fresh = self._memories(), list(seen)
        for _ in range(generation.max_tokens):
            if memories[0].is_full:
                memories, fresh = self._memories(), list(seen)[-(length // 2) :]
            number = self._draw(self._logits(fresh, memories), generation, rng)
            symbol = self.vocabulary.symbols[number]
            if self._begin and symbol == self._begin:
                return  # another document would begin
            fresh = [number]
            seen.append(number)
            yield symbol

    def about(self) -> Mapping[str, Any]:
        """Return the characters that it can read, and its device."""
        return {"characters": self.vocabulary.symbols[1:], "device": str(self.device)}

    def _memories(self) -> list[Memory]:
        config, dtype = self.model.config, self.model.wte.weight.dtype
        return [Memory(config, device=self.device, dtype=dtype) for _ in range(config.depth)]

    @torch.inference_mode()
    def _logits(self, ids: Sequence[int], memories: Sequence[Memory]) -> Tensor:
        return self.model.go_on(torch.tensor([list(ids)], device=self.device), memories)[0].cpu()

    def _draw(self, logits: Tensor, generation: GenerateRequest, rng: torch.Generator) -> int:
        """The next character. The dice are the CPU's, so that a seed means the same on every device."""
        logits = logits.masked_fill(self._unspeakable, -torch.inf)
        if generation.temperature == 0:
            return int(logits.argmax())
        if generation.top_k is not None and generation.top_k < len(logits):
            logits = logits.masked_fill(logits < logits.topk(generation.top_k).values[-1], -torch.inf)
        return int(torch.multinomial((logits / generation.temperature).softmax(-1), 1, generator=rng))


def open_model(trained: TrainedModel, device: torch.device) -> CharlmGenerator:
    """The model on a device, in half precision where it was trained so and the device is a GPU.

    Raises:
        ValueError: weights and settings do not fit.
    """
    assert isinstance(trained.settings, CharlmConfig)
    vocabulary = Vocabulary(trained.extras["vocabulary"]["symbols"])
    with device:
        model = CharGPT(trained.settings, symbols=len(vocabulary))
    try:
        model.load_state_dict(dict(trained.weights))
    except RuntimeError as error:
        raise InputError(f"the weights are not those of the settings: {error}") from error
    if device.type == "cuda" and trained.settings.precision == "bf16":
        model.bfloat16()
    return CharlmGenerator(model, vocabulary)
