"""
Three ways to act with a trained model: predict() with the state in your own hands, a StatefulPredictor that keeps it, and
evaluate_policy.

    python examples/act_with_memory.py
    python examples/act_with_memory.py --model logs/RepeatPreviousEasy-v0_shm_0/model.zip
"""

import argparse
from pathlib import Path

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_shm import SHMPPO, StatefulPredictor

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--env", default="RepeatPreviousEasy-v0", help="environment id")
parser.add_argument("--model", type=Path, help="saved model; without it an agent is trained for a few seconds")
parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see whether it runs")
args = parser.parse_args()

if args.model is None:
    vec_env = make_vec_env(args.env, n_envs=4, seed=0)
    model = SHMPPO("MlpSHMPolicy", vec_env, seed=0).learn(1024 if args.smoke else 16_384)
else:
    try:
        model = SHMPPO.load(args.model)
    except (OSError, ValueError) as error:
        parser.error(str(error))

# 1. predict() returns the state to hand over in the next call
vec_env = make_vec_env(args.env, n_envs=2, seed=1)
obs, state, done = vec_env.reset(), None, np.ones(2, dtype=bool)
total = np.zeros(2)
for _ in range(100):
    action, state = model.predict(obs, state, episode_start=done, deterministic=True)
    obs, reward, done, _ = vec_env.step(action)
    total += reward
print(f"predict(): rewards of 100 steps in two environments: {total.round(2)}")

# 2. A predictor keeps the state: here in one environment, without a VecEnv
env = gym.make(args.env)
predictor = StatefulPredictor(model)
obs, _ = env.reset(seed=1)
over, episode_return = False, 0.0
while not over:
    obs, reward, terminated, truncated, _ = env.step(predictor.act(obs))
    over, episode_return = terminated or truncated, episode_return + float(reward)
predictor.reset()  # before the next episode; or pass act(obs, done=True) with its first observation
print(f"StatefulPredictor: return of one episode: {episode_return:.2f}")

# 3. SB3's own evaluation carries the state for you
mean, std = evaluate_policy(model, vec_env, n_eval_episodes=10)
print(f"evaluate_policy: mean return of 10 episodes {mean:.2f}, std {std:.2f}")
