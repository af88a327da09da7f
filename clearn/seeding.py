"""One seed drives named, independent random generators."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for `names` under `seed`: the same in every version and on every machine.

    >>> derive_seed(0, "net") == derive_seed(0, "net") != derive_seed(0, "buffer")
    True
    """
    text = "\x1f".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Generators:
    """Named random generators that do not disturb each other.

    A generator is made on first use from the seed and its name, so that, say, drawing once more
    from the buffer leaves the order of the training examples as it was.

    Args:
        seed: The run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._generators: dict[str, torch.Generator] = {}

    def get(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        """The generator called `name`; it lives on the device that first asked for it."""
        if name not in self._generators:
            generator = torch.Generator(device=device)
            self._generators[name] = generator.manual_seed(derive_seed(self.seed, name))
        return self._generators[name]

    def seed_global(self) -> None:
        """Seed torch's global generators, which dropout and third-party modules draw from."""
        torch.manual_seed(derive_seed(self.seed, "global"))

    def state_dict(self) -> dict[str, Tensor]:
        """The states of all named generators and of torch's global ones (CPU and CUDA)."""
        state = {f"named/{name}": g.get_state() for name, g in self._generators.items()}
        state |= {f"device/{name}": _encode(g.device) for name, g in self._generators.items()}
        state["global/cpu"] = torch.get_rng_state()
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            state["global/cuda"] = torch.cuda.get_rng_state()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state_dict` was taken."""
        for key, value in state.items():
            kind, name = key.split("/", 1)
            if kind == "named":
                device = bytes(state[f"device/{name}"].tolist()).decode()
                self.get(name, device).set_state(value.cpu())
        torch.set_rng_state(state["global/cpu"].cpu())
        if "global/cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["global/cuda"].cpu())


def _encode(device: torch.device) -> Tensor:
    return torch.tensor(list(str(device).encode()), dtype=torch.uint8)
