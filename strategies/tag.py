"""TAG: task-based accumulated gradients (Malviya et al. 2022, PMLR 199:366)."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import Tensor
from torch.nn.functional import cross_entropy

from clearn.batch import Batch
from clearn.errors import UserError, unknown_name
from clearn.nets import Net
from clearn.strategy import Strategy

Base = Literal["RMSprop", "Adagrad", "Adam"]


class TAG(Strategy):
    """Train on each task in turn with an optimizer that remembers the gradients of earlier tasks.

    Its learning rate is small for parameters that mattered to tasks whose gradients the current
    ones go against: `clearn.optim` has the equations. Nothing else is kept, and no examples. The
    mean weight of every earlier task in every task is drawn as a heat map.

    Published for the task scenario with one head, whose logits of other tasks' classes are ruled
    out. With another strategy in the place of plain training, it is an option of that strategy:
    `ER: {optimizer: {name: TAGRMSprop, b: 5}}`, and likewise AGEM and EWC.

    Args:
        net: The network to train; its head may not grow.
        base: Which optimizer remembers: RMSprop, Adagrad or Adam.
        b: How much similarity counts, in [0, 50].
        counter: Of Adam's bias correction. fixed: counts the steps of a task. official: those of an
            epoch, as the authors' code.
        lr: Learning rate, > 0.
    """

    def __init__(
        self,
        net: Net,
        *,
        base: Base = "RMSprop",
        b: float = 5.0,
        counter: Literal["fixed", "official"] = "fixed",
        lr: float = 2.5e-4,
    ) -> None:
        if base not in get_args(Base):
            raise unknown_name("strategy.base", base, get_args(Base))
        choice: dict[str, Any] = {"name": f"TAG{base}", "b": b}
        if base == "Adam":
            choice["counter"] = counter
        elif counter != "fixed":
            raise UserError(
                f"strategy.counter: {counter} is not valid with the base {base}, which corrects no "
                "bias; leave it out, or set strategy.base to Adam"
            )
        super().__init__(net, lr=lr, optimizer=choice)

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of the batch."""
        return cross_entropy(self.logits(batch), batch.y)
