"""
A memory of your own: write it, hold it to the contract, train SHMPPO and SHMSAC with it.

    python examples/own_memory.py
    python examples/own_memory.py --steps 100_000
"""

import argparse

import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from torch import nn

from sb3_shm import SHMPPO, SHMSAC
from sb3_shm.memory import Memory, State
from sb3_shm.memory.linear_scan import linear_scan
from sb3_shm.memory.testing import check_memory


class FadingMean(Memory):
    """Running averages of learned features, fast to slow: h_t = f h_{t-1} + (1 - f) W x_t, and y_t = relu(U [h_t, x_t])."""

    def __init__(self, input_size: int, memory_size: int = 32) -> None:
        super().__init__(input_size, output_size=memory_size)
        self.memory_size = memory_size
        self.input = nn.Linear(input_size, memory_size)
        self.output = nn.Linear(memory_size + input_size, memory_size)
        self.fading = nn.Parameter(th.linspace(-1, 5, memory_size))  # f = sigmoid(fading): 0.27 to 0.993

    def initial_state(self, n: int) -> State:
        return (self.fading.new_zeros(n, self.memory_size),)

    def forward(
        self, x: th.Tensor, state: State, episode_start: th.Tensor, context: th.Tensor | None = None
    ) -> tuple[th.Tensor, State]:
        f = th.sigmoid(self.fading)
        # All steps at once; where an episode starts, it starts from zero. A loop over the steps would be as right, but slow.
        h = linear_scan(f.expand(1, 1, -1), (1 - f) * self.input(x), state[0], episode_start)
        return th.relu(self.output(th.cat((h, x), dim=-1))), (h[:, -1],)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPoleNoVel-v0", help="environment id; Box or Discrete actions")
    parser.add_argument("--steps", type=int, default=30_000, help="environment steps of SHMPPO; SHMSAC gets a tenth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see whether it runs")
    args = parser.parse_args()
    steps = 1000 if args.smoke else args.steps

    memory = FadingMean(input_size=5)
    check_memory(memory)  # an AssertionError would say which clause of the contract is broken
    print(f"FadingMean keeps the contract: {memory.state_size()} floats of state, {memory.parameter_count} parameters")

    th.set_num_threads(1)
    env = make_vec_env(args.env, n_envs=8, seed=args.seed)
    eval_env = make_vec_env(args.env, n_envs=8, seed=args.seed + 1000)
    policy_kwargs = dict(memory=FadingMean, memory_kwargs=dict(memory_size=64))  # the class, not an instance
    ppo = SHMPPO(
        "MlpSHMPolicy", env, n_steps=64, batch_size=512, learning_rate=1e-3, policy_kwargs=policy_kwargs, seed=args.seed
    )
    sac = SHMSAC("MlpSHMPolicy", env, seq_len=16, learning_starts=64, policy_kwargs=policy_kwargs, seed=args.seed)
    for name, model, n in (("SHMPPO", ppo, steps), ("SHMSAC", sac, max(steps // 10, 400))):
        model.learn(n)
        mean, std = evaluate_policy(model, eval_env, n_eval_episodes=16)
        print(f"{name}: mean return after {model.num_timesteps:,} steps {mean:.1f} (std {std:.1f})")


if __name__ == "__main__":
    main()
