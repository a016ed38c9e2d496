"""Sequence memories: what remembers. They know torch and nothing of reinforcement learning."""

import inspect
from typing import Any

from sb3_shm.memory.backends.inputs import HadamardInputs
from sb3_shm.memory.base import Memory, State
from sb3_shm.memory.ffm import FFM
from sb3_shm.memory.frame_stack import FrameStack
from sb3_shm.memory.fwp import FWP
from sb3_shm.memory.gpt import GPT
from sb3_shm.memory.gtrxl import GTrXL
from sb3_shm.memory.hadamard import hadamard_recurrence
from sb3_shm.memory.linear_attention import LinearAttention
from sb3_shm.memory.lru import LRU
from sb3_shm.memory.mlp import MLP
from sb3_shm.memory.mlstm import MLSTM
from sb3_shm.memory.recurrent import GRU, LSTM
from sb3_shm.memory.s6 import S6
from sb3_shm.memory.shm import SHM, PaperSHM

MEMORIES: dict[str, type[Memory]] = {
    "shm": SHM,
    "shm_paper": PaperSHM,
    "gru": GRU,
    "lstm": LSTM,
    "mlp": MLP,
    "frame_stack": FrameStack,
    "ffm": FFM,
    "lru": LRU,
    "s6": S6,
    "linear_attention": LinearAttention,
    "fwp": FWP,
    "mlstm": MLSTM,
    "gpt": GPT,
    "gtrxl": GTrXL,
}


def memories_with(argument: str) -> list[str]:
    """
    :param argument: name of an argument
    :return: the names of the memories that have it beside their first, ``input_size``
    """
    return [name for name, memory in MEMORIES.items() if argument in list(inspect.signature(memory).parameters)[1:]]


def make_memory(memory: str | type[Memory], input_size: int, memory_kwargs: dict[str, Any] | None = None) -> Memory:
    """
    :param memory: a name, one of ``MEMORIES``, or a subclass of :class:`Memory`
    :param input_size: number of input features
    :param memory_kwargs: further arguments of the memory's class
    :return: the memory
    :raises ValueError: unknown name, or an argument that this memory does not have
    """
    if isinstance(memory, str):
        if memory not in MEMORIES:
            near = f", did you mean {memory.lower()!r}" if memory.lower() in MEMORIES else ""
            raise ValueError(
                f"Unknown memory {memory!r}{near}, choose one of {', '.join(map(repr, MEMORIES))} or a Memory class"
            )
        memory_class = MEMORIES[memory]
    elif isinstance(memory, type) and issubclass(memory, Memory):
        memory_class = memory
    else:
        raise ValueError(f"memory must be one of {', '.join(map(repr, MEMORIES))} or a Memory class, got {memory!r}")
    if not isinstance(memory_kwargs, dict | None):
        raise ValueError(f"memory_kwargs must be a dict, got {memory_kwargs!r}")
    parameters = inspect.signature(memory_class).parameters
    legal = [name for name in parameters if name != "input_size"]
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in memory_kwargs or {}:
        if name not in legal and not takes_any:
            others = memories_with(name)
            hint = f"; {name} is one of {', '.join(map(repr, others))}" if others else ""
            raise ValueError(f"{memory_class.__name__} has no argument {name!r}, its arguments are {', '.join(legal)}{hint}")
    return memory_class(input_size, **(memory_kwargs or {}))


__all__ = [
    "FFM",
    "FWP",
    "GPT",
    "GRU",
    "LRU",
    "LSTM",
    "MEMORIES",
    "MLP",
    "MLSTM",
    "S6",
    "SHM",
    "FrameStack",
    "GTrXL",
    "HadamardInputs",
    "LinearAttention",
    "Memory",
    "PaperSHM",
    "State",
    "hadamard_recurrence",
    "make_memory",
    "memories_with",
]
