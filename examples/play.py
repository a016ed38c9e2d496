"""
Film an episode as a GIF: played by a scripted oracle that knows everything, by random actions, or by a trained model.

    python examples/play.py VisualMatch60-v0 --policy oracle --output play.gif
    python examples/play.py KeyToDoor60-v0 --policy random
    python examples/play.py VisualMatch60-v0 --model model.zip --algo shm_ppo
"""

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_shm import SHMPPO, SHMSAC, WithMasks
from sb3_shm.envs import BATCHED_TASKS
from sb3_shm.envs.oracles import Oracle
from sb3_shm.envs.single import make_single

try:
    from PIL import Image
except ImportError as error:
    raise SystemExit('GIFs need Pillow, which comes with matplotlib: pip install "sb3-shm[plots]"') from error

ALGORITHMS = {"shm_ppo": SHMPPO, "shm_sac": SHMSAC, "ppo": PPO}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("env", help="environment id")
parser.add_argument("--policy", default="oracle", choices=["oracle", "random"], help="who plays if there is no --model")
parser.add_argument("--model", type=Path, help="saved model")
parser.add_argument("--algo", default="shm_ppo", choices=ALGORITHMS, help="the model's algorithm")
parser.add_argument("--vec-normalize", type=Path, help="saved VecNormalize of the model's training, if it had one")
parser.add_argument("--output", type=Path, default=Path("play.gif"))
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--fps", type=float, help="pictures per second, the environment's own by default")
parser.add_argument("--frames", type=int, default=2000, help="stop after this many pictures, if the episode is longer")
parser.add_argument("--smoke", action="store_true", help="a few pictures only, to see whether it runs")
args = parser.parse_args()
if args.smoke:
    args.frames = 10


def make_env() -> gym.Env:
    if args.env in BATCHED_TASKS:
        # All of these can draw themselves, also those whose single environment is another's
        task, kwargs = BATCHED_TASKS[args.env]
        return make_single(task, render_mode="rgb_array", **kwargs)
    env = gym.make(args.env, render_mode="rgb_array")
    if env.render_mode != "rgb_array":
        parser.error(f"{args.env} cannot be drawn as a picture")
    return env


try:
    env = make_env()
    oracle = Oracle(args.env) if args.policy == "oracle" and args.model is None else None
    obs, _ = env.reset(seed=args.seed)
    frames = [env.render()]
except (ValueError, gym.error.Error) as error:
    parser.error(str(error))
env.action_space.seed(args.seed)
try:
    model: Any = None if args.model is None else ALGORITHMS[args.algo].load(args.model)
except (OSError, ValueError) as error:
    parser.error(str(error))
if isinstance(model, SHMPPO | SHMSAC):
    model = WithMasks(model, env)
normalize = None
if args.vec_normalize is not None:
    normalize = VecNormalize.load(str(args.vec_normalize), DummyVecEnv([lambda: env]))

state, total, over, info = None, 0.0, False, {}
while not over and len(frames) < args.frames:
    if model is not None:
        seen = obs if normalize is None else normalize.normalize_obs(obs)
        action, state = model.predict(seen, state, episode_start=np.array([state is None]), deterministic=True)
    elif oracle is not None:
        action = oracle.act(env)
    else:
        action = env.action_space.sample()
    obs, reward, terminated, truncated, info = env.step(action)
    total, over = total + float(reward), terminated or truncated
    frames.append(env.render())

# 64 colours are enough for these pictures, and keep the file small
pictures = [Image.fromarray(frame).quantize(64) for frame in frames]
milliseconds = 1000 / (args.fps or env.metadata["render_fps"])
durations = [milliseconds] * (len(pictures) - 1) + [max(milliseconds, 1500)]
args.output.parent.mkdir(parents=True, exist_ok=True)
pictures[0].save(args.output, save_all=True, append_images=pictures[1:], duration=durations, loop=0)
success = f", success: {info['is_success']}" if "is_success" in info else ""
print(f"{args.output}: {len(frames) - 1} steps{'' if over else ' (not to the end)'}, return {total:.2f}{success}")
