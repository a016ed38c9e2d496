"""The last inputs, as they are."""

import torch as th

from sb3_shm.memory.base import Memory, State
from sb3_shm.memory.checks import check_in_range
from sb3_shm.memory.linear import Linear


def last_inputs(x: th.Tensor, past: th.Tensor, episode_start: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    At each step, the inputs of this and the latest steps of the same episode, zeros before its first step.

    :param x: inputs, (N, T, D)
    :param past: the k - 1 inputs before them, latest first, (N, k - 1, D)
    :param episode_start: (N, T) bool
    :return: the last k inputs of each step, latest first, (N, T, k, D), and the past after step T, (N, k - 1, D)
    """
    (n, t), k = episode_start.shape, past.shape[1] + 1
    if t == 1:  # acting: as few operations as possible
        frames = th.cat((x, th.where(episode_start.unsqueeze(-1), 0, past)), dim=1).unsqueeze(1)
        return frames, frames[:, 0, : k - 1]
    inputs = th.cat((past.flip(1), x), dim=1)
    # The input i steps ago is of another episode if one has started since
    no_start = episode_start.new_zeros(n, k - 1)
    starts = th.cat((no_start, episode_start), dim=1)
    is_other = th.zeros_like(episode_start)
    stack = [x]
    for i in range(1, k):
        is_other = is_other | starts[:, k - i : k - i + t]
        stack.append(th.where(is_other.unsqueeze(-1), 0, inputs[:, k - 1 - i : k - 1 - i + t]))
    frames = th.stack(stack, dim=2)
    return frames, frames[:, -1, : k - 1]


class FrameStack(Memory):
    """
    The last inputs of the episode: ``y = tanh(W [x_t, x_{t-1}, ..., x_{t-k+1}] + b)``, zeros before the episode's first step.

    Frame stacking (Mnih et al., 2015) as a memory: what a window alone can do.

    State: the last inputs, latest first, (N, k - 1, D).

    :param input_size: D, number of input features
    :param n_frames: k, number of inputs, this step's among them
    :param output_size: number of output features
    :raises ValueError: a size below 1
    """

    def __init__(self, input_size: int, n_frames: int = 4, output_size: int = 64) -> None:
        super().__init__(input_size, output_size)
        for name, size in (("input_size", input_size), ("n_frames", n_frames), ("output_size", output_size)):
            check_in_range(name, size, low=1, integer=True)
        self.n_frames = n_frames
        self.layer = Linear(n_frames * input_size, output_size)

    def initial_state(self, n: int) -> State:
        return (self.layer.weight.new_zeros(n, self.n_frames - 1, self.input_size),)

    def forward(
        self, x: th.Tensor, state: State, episode_start: th.Tensor, context: th.Tensor | None = None
    ) -> tuple[th.Tensor, State]:
        frames, past = last_inputs(x, state[0], episode_start)
        return th.tanh(self.layer(frames.flatten(2))), (past,)
