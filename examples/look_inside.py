"""
Look into the memory of a trained agent: its matrices M, C and U at each step of an episode beside the environment, and which
past step is read now. Trains an agent first if there is none (some minutes).

    python examples/look_inside.py
    python examples/look_inside.py --model logs/RepeatPreviousEasy-v0_shm_0/model.zip
    python examples/look_inside.py --model trained/shm_ppo/RepeatPreviousEasy-v0_1
    python examples/look_inside.py --env VisualMatch60-v0 --model model.zip --algo shm_sac --film inside.mp4
"""

import argparse
from pathlib import Path

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_shm import SHMPPO, SHMSAC, MemoryDiagnosticsCallback
from sb3_shm.callbacks.episodes import record_episode
from sb3_shm.callbacks.pictures import draw_film, draw_read_out, draw_strip
from sb3_shm.envs import BATCHED_TASKS, make_batched_env
from sb3_shm.envs.single import make_single

ALGORITHMS = {"shm_ppo": SHMPPO, "shm_sac": SHMSAC}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--env", default="RepeatPreviousEasy-v0", help="environment id")
parser.add_argument("--model", type=Path, help="saved model, or an agent's folder, that acts with an SHM")
parser.add_argument("--algo", default="shm_ppo", choices=ALGORITHMS, help="the model's algorithm")
parser.add_argument("--vec-normalize", type=Path, help="saved VecNormalize of the model's training, if it had one")
parser.add_argument("--steps", type=int, default=1_000_000, help="training steps, if there is no --model")
parser.add_argument("--seed", type=int, default=0, help="of the training and of the episode")
parser.add_argument("--max-steps", type=int, default=200, help="steps of the episode to look at")
parser.add_argument("--output", type=Path, default=Path("logs/look_inside"), help="folder for the pictures")
parser.add_argument("--film", default="inside.gif", help="name of the film, .gif or .mp4")
parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see whether it runs")
args = parser.parse_args()
if args.smoke:
    args.steps, args.max_steps = 2048, 8
args.output.mkdir(parents=True, exist_ok=True)

if args.model is not None:
    try:
        if args.model.is_dir():
            from sb3_shm.sharing.folder import load_model_folder  # with `hub` of setup.cfg

            model = load_model_folder(args.model)
        else:
            model = ALGORITHMS[args.algo].load(args.model)
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
else:
    model = SHMPPO(  # as examples/train_popgym.py
        "MlpSHMPolicy",
        (make_batched_env if args.env in BATCHED_TASKS else make_vec_env)(args.env, 64, args.seed),
        learning_rate=lambda remaining: 1e-3 * remaining,
        n_steps=16 if args.smoke else 64,
        gae_lambda=0.5,
        vf_coef=0.1,
        ent_coef=0.01,
        policy_kwargs=dict(position="sine"),
        tensorboard_log=str(args.output / "tensorboard"),
        seed=args.seed,
    )
    print(f"Training on {args.env} for {args.steps:,} steps")
    model.learn(args.steps, callback=MemoryDiagnosticsCallback(), progress_bar=True)
    model.save(args.output / "model")

if args.env in BATCHED_TASKS:
    # All of these can draw themselves, also those whose single environment is another's
    task, kwargs = BATCHED_TASKS[args.env]
    env = make_single(task, render_mode="rgb_array", **kwargs)
else:
    env = gym.make(args.env, render_mode="rgb_array")
normalize = None
if args.vec_normalize is not None:
    normalize = VecNormalize.load(str(args.vec_normalize), DummyVecEnv([lambda: env]))
episode = record_episode(model, env, seed=args.seed, normalize=normalize, max_steps=args.max_steps)
draw_strip(episode, args.output / "strip.png")
draw_read_out(episode, args.output / "read_out.png")
draw_film(episode, args.output / args.film)
print(f"{len(episode)} steps, return {sum(episode.rewards):.2f}; pictures: {args.output}/strip.png, read_out.png, {args.film}")
