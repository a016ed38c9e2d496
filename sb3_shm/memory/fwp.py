"""The fast weight programmer with the delta rule."""

import torch as th
from torch.nn import functional as F

from sb3_shm.memory.base import State
from sb3_shm.memory.matrix import MatrixMemory, split_chunks

FEATURE_MAPS = ("elu", "dpfp")
CHUNK = 64
"""Steps whose writes one triangular system gives: the loop over chunks is short, the systems stay small."""


def delta_rule(
    query: th.Tensor, key: th.Tensor, value: th.Tensor, rate: th.Tensor, matrix: th.Tensor, episode_start: th.Tensor
) -> tuple[th.Tensor, th.Tensor]:
    """
    A matrix that is corrected where it answers wrongly, for each sequence and t = 1..T::

        W_{t-1} = 0                    where episode_start_t
        u_t = rate_t (value_t - W_{t-1} key_t)
        W_t = W_{t-1} + u_t ⊗ key_t
        h_t = W_t query_t

    In chunks (Yang et al., NeurIPS 2024, arXiv 2406.06484, section 3.2): with W_{t-1} written as the matrix W at the beginning
    of the chunk plus the writes since, the u of a chunk solve a triangular system, in which a step sees the earlier ones of
    its episode only::

        u_t + rate_t Σ_{s < t} (key_s·key_t) u_s = rate_t (value_t - W key_t)

    All systems are solved at once, for the two terms on the right apart; the loop runs over the chunks and only puts W in.

    :param query: (N, T, K)
    :param key: (N, T, K)
    :param value: (N, T, V)
    :param rate: how much of the error is corrected, 0 to 1, (N, T)
    :param matrix: W_0, (N, V, K)
    :param episode_start: (N, T) bool
    :return: h, (N, T, V), and W_T, (N, V, K)
    """
    t = query.shape[1]
    if t == 1:  # acting: as few operations as possible
        matrix = th.where(episode_start[..., None], 0, matrix)
        update = rate.unsqueeze(-1) * (value - key @ matrix.mT)
        matrix = matrix + update.mT @ key
        return query @ matrix.mT, matrix

    query, key, value, rate = (split_chunks(x, min(t, CHUNK)) for x in (query, key, value, rate.unsqueeze(-1)))
    episode = split_chunks(episode_start.long(), min(t, CHUNK)).cumsum(dim=-1)  # 0 as long as the chunk has seen no start
    carried_on = (episode == 0).unsqueeze(-1)
    same = episode.unsqueeze(-1) == episode.unsqueeze(-2)
    overlap = th.where(same.tril(-1), rate * (key @ key.mT), 0)
    right = rate * th.cat([value, th.where(carried_on, key, 0)], dim=-1)
    # u = written - corrected Wᵀ; the diagonal of ones is understood
    wide = th.promote_types(right.dtype, th.float32)  # which alone torch solves in: not those of autocast
    solved = th.linalg.solve_triangular(overlap.to(wide), right.to(wide), upper=False, unitriangular=True).to(right.dtype)
    sizes = [value.shape[-1], key.shape[-1]]
    added, removed = (solved.mT @ th.where(same[..., -1:], key, 0)).split(sizes, dim=-2)

    begins = []
    for i in range(query.shape[1]):
        begins.append(matrix)
        matrix = added[:, i] + th.where(carried_on[:, i, -1:], matrix - matrix @ removed[:, i], 0)
    read, reread = (th.where(same.tril(), query @ key.mT, 0) @ solved).split(sizes, dim=-1)
    h = read + th.where(carried_on, (query - reread) @ th.stack(begins, dim=1).mT, 0)
    return h.flatten(1, 2)[:, :t], matrix


class FWP(MatrixMemory):
    """
    Fast weight programmer with the delta rule (Schlag et al., ICML 2021, arXiv 2102.11174, section 4.2).

    With φ(z) made to sum to 1 and β_t = σ(w_β·x + b)::

        W_t = W_{t-1} + β_t (v_t - W_{t-1} φ(k_t)) ⊗ φ(k_t)
        h_t = W_t φ(q_t)

    so a value replaces the one that was kept under its key. φ is elu + 1, or the paper's own DPFP with ν = 1:
    r = [relu(z), relu(-z)], φ(z)_i = r_i r_{i-1}, twice as long as z. Layers around it:
    :class:`~sb3_shm.memory.matrix.MatrixMemory`.

    State: W, (N, H, H), and (N, H, 2 H) with ``feature_map="dpfp"``.

    :param input_size: D, number of input features
    :param memory_size: H, the size of values, keys and queries
    :param output_size: number of output features, default ``memory_size``
    :param feature_map: φ, "elu" or "dpfp"
    :param layer_norm: normalise the input first
    :param shortcut: add a linear function of the input to what is read
    :raises ValueError: a size below 1, or an unknown feature map
    """

    def __init__(
        self,
        input_size: int,
        memory_size: int = 32,
        output_size: int | None = None,
        feature_map: str = "elu",
        layer_norm: bool = True,
        shortcut: bool = True,
    ) -> None:
        if feature_map not in FEATURE_MAPS:
            raise ValueError(f"Unknown feature_map {feature_map!r}, choose one of {', '.join(map(repr, FEATURE_MAPS))}")
        super().__init__(input_size, memory_size, output_size, layer_norm, shortcut, gates={"rate": 1})
        self.feature_map = feature_map

    def initial_state(self, n: int) -> State:
        columns = self.memory_size * (2 if self.feature_map == "dpfp" else 1)
        return (self.output.weight.new_zeros(n, self.memory_size, columns),)

    def features(self, z: th.Tensor) -> th.Tensor:
        """
        :param z: key or query, (N, T, H)
        :return: φ(z) / (1e-5 + sum of φ(z)), (N, T, H or 2 H)
        """
        if self.feature_map == "dpfp":
            r = F.relu(th.cat([z, -z], dim=-1))
            phi = r * r.roll(1, dims=-1)
        else:
            phi = F.elu(z) + 1
        return phi / (1e-5 + phi.sum(dim=-1, keepdim=True))

    def forward(
        self, x: th.Tensor, state: State, episode_start: th.Tensor, context: th.Tensor | None = None
    ) -> tuple[th.Tensor, State]:
        z = self.project(x)
        rate = th.sigmoid(z["rate"].squeeze(-1))
        query, key = self.features(z["query"]), self.features(z["key"])
        h, matrix = delta_rule(query, key, z["value"], rate, state[0], episode_start)
        return self.read_out(h, z), (matrix,)
