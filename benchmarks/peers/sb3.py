"""Stable-Baselines3's PPO or A2C, or sb3-contrib's TRPO, on fixed work, one JSON line.

peers-sb3/bin/python benchmarks/peers/sb3.py {ppo,a2c,trpo} ENV --steps N
"""

import argparse
import json
import time

STARTED = time.time()

import torch  # noqa: E402
from sb3_contrib import TRPO  # noqa: E402
from stable_baselines3 import A2C, PPO  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.evaluation import evaluate_policy  # noqa: E402
from stable_baselines3.common.vec_env import VecNormalize  # noqa: E402

parser = argparse.ArgumentParser()
parser.add_argument("algorithm", choices=["ppo", "a2c", "trpo"])
parser.add_argument("env")
parser.add_argument("--steps", type=int, required=True)
parser.add_argument("--rollout", type=int, default=256)
parser.add_argument("--minibatch", type=int, default=256)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--normalize", action="store_true")
parser.add_argument("--zoo", action="store_true", help="rl-zoo3's settings for CartPole-v1, and an evaluation")
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()

torch.set_num_threads(1)  # faster than the default for networks of this size
env = make_vec_env(arguments.env, n_envs=8, seed=arguments.seed)
if arguments.normalize:
    env = VecNormalize(env)
settings = {"n_steps": arguments.rollout, "batch_size": arguments.minibatch, "n_epochs": arguments.epochs}
if arguments.zoo:
    settings = {"n_steps": 32, "batch_size": 256, "n_epochs": 20, "gae_lambda": 0.8, "gamma": 0.98, "ent_coef": 0.0}
    settings |= {"learning_rate": lambda left: left * 1e-3, "clip_range": lambda left: left * 0.2}
if arguments.algorithm == "a2c":
    settings = {"n_steps": arguments.rollout}
elif arguments.algorithm == "trpo":
    settings = {"n_steps": arguments.rollout, "batch_size": arguments.minibatch}
model = {"ppo": PPO, "a2c": A2C, "trpo": TRPO}[arguments.algorithm](
    "MlpPolicy", env, device="cpu", seed=arguments.seed, **settings
)
start = time.perf_counter()
model.learn(arguments.steps)
seconds = time.perf_counter() - start
result = {"steps": model.num_timesteps, "seconds": seconds, "steps_per_second": model.num_timesteps / seconds}
result["seconds_from_start"] = time.time() - STARTED
if arguments.zoo:
    result["mean_return"] = float(evaluate_policy(model, env, n_eval_episodes=100, deterministic=False)[0])
print(json.dumps(result))
