"""Soft prompts of a frozen language model: one per task, one for all, and a progression of them.

`PerTaskPrompt` and `SharedPrompt` are prompt tuning (Lester et al. 2021, arXiv 2104.08691), by task
and over all tasks; `ProgressivePrompts` are those of Razdaibiedina et al. 2023 (arXiv 2301.12314).

Shapes: B batch, L tokens, l rows of a prompt, R rows of all that stands before a text, E width of
the embeddings, C classes of the stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from clearn.batch import Batch
from clearn.errors import UserError
from clearn.nets import Net
from clearn.nets.language import FrozenLM
from clearn.prompts import vocabulary_rows
from clearn.seeding import Generators
from clearn.strategy import Strategy
from clearn.stream import Stream, Task

if TYPE_CHECKING:
    from typing_extensions import Self


class PromptStrategy(Strategy):
    """What strategies have in common that train prompts and a head on a language model.

    Adam trains the prompt of l rows and the layer of the task, made afresh for every task; the
    prompt begins as the embeddings of random tokens.

    Args:
        net: A language model (`transformers/<name>`) and a head.
        length: l, >= 1.
        lr: Learning rate of prompts, > 0.
        head_lr: That of the head, > 0.

    Raises:
        UserError: The net takes no prompts, or a number is out of range.
    """

    prompt: nn.Parameter
    truncated: Tensor

    def __init__(
        self, net: Net, *, length: int = 10, lr: float = 0.01, head_lr: float = 0.005
    ) -> None:
        super().__init__(net, lr=lr, optimizer="Adam")
        if not isinstance(net.backbone, FrozenLM):
            raise UserError(
                f"net.name: {type(net.backbone).__name__} takes no prompts; set it to "
                "transformers/<name of a language model>"
            )
        if length < 1:
            raise UserError(f"strategy.length: {length} is not valid: expected a number >= 1")
        if not head_lr > 0:
            raise UserError(f"strategy.head_lr: {head_lr} is not valid: expected a number > 0")
        self.length = length
        self.head_lr = head_lr
        self.prompt = nn.Parameter(torch.zeros(length, self.language_model.embeddings.shape[1]))
        self.register_buffer("truncated", torch.zeros((), dtype=torch.int64))
        self._kept: list[Tensor] = []  # of each task so far, what it needs at test time

    @property
    def language_model(self) -> FrozenLM:
        """The net's."""
        return cast("FrozenLM", self.net.backbone)

    def prepare(self, stream: Stream, generators: Generators) -> None:
        """Meet the stream.

        Raises:
            UserError: It is not in the task scenario, or the rows before a text of its last task
                would leave the text no room in the model's window.
        """
        super().prepare(stream, generators)
        if stream.scenario != "task":
            raise UserError(
                f"stream.scenario: {stream.scenario} is not valid for {type(self).__name__}, which "
                "picks a prompt by the task's id: expected task"
            )
        self.language_model.room(self.most_rows(len(stream)))

    def most_rows(self, tasks: int) -> int:
        """How many rows stand before a text at the most, in a stream of so many tasks."""
        return self.length

    def begin_task(self, task: Task) -> None:
        """Draw a prompt."""
        super().begin_task(task)
        self.prompt.data.copy_(self.draw(self.length))

    def draw(self, count: int) -> Tensor:
        """Embeddings of random tokens `[count, E]`."""
        draws = self.generators.get("prompts", "cpu")
        return vocabulary_rows(self.language_model.embeddings, count, draws)

    def rows(self) -> Tensor:
        """What stands before the texts of the task at hand, `[R, E]`."""
        return self.prompt

    def rows_of(self, task: int) -> Tensor:
        """What stands before the texts of a task that has been learned, `[R, E]`."""
        return self._kept[task]

    def logits(self, batch: Batch) -> Tensor:
        """Logits `[B, C]` after the prompt of the task at hand."""
        rows = self.rows()
        self.truncated += self.language_model.loses(batch.x, len(rows)).sum()
        features = self.language_model(batch.x, rows)
        return cast("Tensor", self.net.head(features, batch.task_id))

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of the batch."""
        return cross_entropy(self.logits(batch), batch.y)

    def end_task(self, task: Task) -> None:
        """Keep the prompt."""
        self._kept.append(self.prompt.detach().clone())

    def predict(self, x: Tensor, task_id: int | None = None) -> Tensor:
        """Logits `[B, C]` after the prompt of a task; of one not begun yet, after the latest.

        Raises:
            UserError: There is no task id.
        """
        if task_id is None:
            raise UserError(
                f"task_id: {type(self).__name__} needs the id of the task, whose prompt it takes; "
                "use the task scenario"
            )
        learned = len(self._kept)
        if task_id < learned:
            rows = self.rows_of(task_id)
        elif learned and self.task.index < learned:  # between two tasks
            rows = self.rows_of(learned - 1)
        else:
            rows = self.rows().detach()
        return cast("Tensor", self.net.head(self.language_model(x, rows.to(x.device)), task_id))

    def configure_optimizers(self) -> Optimizer:
        """Adam over what the task trains."""
        return torch.optim.Adam([*self.groups(), {"params": self._head(), "lr": self.head_lr}])

    def groups(self) -> list[dict[str, Any]]:
        """Parameters besides the head's, with their learning rates."""
        return [{"params": [self.prompt], "lr": self.lr}]

    def _head(self) -> list[nn.Parameter]:
        return [p for p in self.net.head.parameters() if p.requires_grad]

    def get_extra_state(self) -> dict[str, Any]:
        """What is kept of the tasks; shapes differ, and so these are no buffers."""
        return {"kept": list(self._kept)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what `get_extra_state` gave."""
        self._kept = [rows.to(self.device) for rows in state["kept"]]

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Self:
        """Move what is kept of the tasks along."""
        super()._apply(fn, *args, **kwargs)  # type: ignore[no-untyped-call]
        self._kept = [fn(rows) for rows in self._kept]
        return self

    def metrics(self) -> dict[str, float]:
        """`truncated`: how often a training text lost tokens to the prompt."""
        return {"truncated": float(self.truncated)}

    def bytes_stored(self) -> dict[str, int]:
        """The head's parameters, and prompts; not the language model, which all have."""
        return super().bytes_stored() | {"prompts": sum(rows.nbytes for rows in self._kept)}


class PerTaskPrompt(PromptStrategy):
    """A prompt for each task that knows nothing of the others; nothing is forgotten or passed on.

    Args:
        net: A language model (`transformers/<name>`) and a head.
        length: Rows of a prompt, >= 1.
        lr: Learning rate of prompts, > 0.
        head_lr: That of the head, > 0.
    """


class SharedPrompt(PromptStrategy):
    """One prompt that all tasks go on training; it forgets, and takes the bytes of a single one.

    Args:
        net: A language model (`transformers/<name>`) and a head.
        length: Rows of the prompt, >= 1.
        lr: Learning rate of the prompt, > 0.
        head_lr: That of the head, > 0.
    """

    def begin_task(self, task: Task) -> None:
        """Draw the prompt when the first task begins."""
        if task.index:
            Strategy.begin_task(self, task)
        else:
            super().begin_task(task)

    def end_task(self, task: Task) -> None:
        """The prompt goes on, for the tests of all tasks too."""

    def bytes_stored(self) -> dict[str, int]:
        """The head's parameters, and the prompt."""
        return super().bytes_stored() | {"prompts": self.prompt.nbytes}


class ProgressivePrompts(PromptStrategy):
    """A new prompt for each task before the frozen ones of all earlier tasks, newest first.

    So every task reads l rows more than the one before. A task is tested with the prompts there
    were when it was learned, and nothing is forgotten.

    Args:
        net: A language model (`transformers/<name>`) and a head.
        length: Rows of a prompt, >= 1.
        lr: Learning rate of prompts, > 0.
        head_lr: That of the head, > 0.
    """

    def most_rows(self, tasks: int) -> int:
        """A prompt for each."""
        return tasks * self.length

    def rows(self) -> Tensor:
        """The prompts so far, newest first, `[R, E]`."""
        return torch.cat([self.prompt, *reversed(self._kept)])

    def rows_of(self, task: int) -> Tensor:
        """The prompts up to that of the task, newest first, `[R, E]`."""
        return torch.cat(self._kept[task::-1])
