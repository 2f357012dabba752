"""Training: the state, the step, the loop, the optimisers, the checkpoints."""

from jaxdl.train.loop import evaluator, fit, over_batches
from jaxdl.train.state import TrainState
from jaxdl.train.step import Aux, Loss, make_eval_step, make_train_step

__all__ = [
    "Aux",
    "Loss",
    "TrainState",
    "evaluator",
    "fit",
    "make_eval_step",
    "make_train_step",
    "over_batches",
]
