"""No memory: the control of every comparison."""

import torch as th

from sb3_shm.memory.base import Memory, State
from sb3_shm.memory.checks import check_in_range
from sb3_shm.memory.linear import Linear


class MLP(Memory):
    """
    No memory: ``y = tanh(W x + b)``, a layer of its own in the place where the others remember.

    A fair control sees the same inputs through as many non-linear layers and has the same heads; a memory that only handed
    its input on would be one layer shallower than the others. It is :class:`~sb3_shm.memory.frame_stack.FrameStack` with one
    frame. State: none, an empty tuple.

    :param input_size: D, number of input features
    :param output_size: number of output features
    :raises ValueError: a size below 1
    """

    def __init__(self, input_size: int, output_size: int = 64) -> None:
        super().__init__(input_size, output_size)
        for name, size in (("input_size", input_size), ("output_size", output_size)):
            check_in_range(name, size, low=1, integer=True)
        self.layer = Linear(input_size, output_size)

    def initial_state(self, n: int) -> State:
        return ()

    def forward(
        self, x: th.Tensor, state: State, episode_start: th.Tensor, context: th.Tensor | None = None
    ) -> tuple[th.Tensor, State]:
        return th.tanh(self.layer(x)), state
