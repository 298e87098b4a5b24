"""SBX's PPO on fixed work, one JSON line: peers-sbx/bin/python benchmarks/peers/sbx_ppo.py ENV --steps N"""

import argparse
import json
import time

from sbx import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

parser = argparse.ArgumentParser()
parser.add_argument("env")
parser.add_argument("--steps", type=int, required=True)
parser.add_argument("--rollout", type=int, default=256)
parser.add_argument("--minibatch", type=int, default=256)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--normalize", action="store_true")
arguments = parser.parse_args()

env = make_vec_env(arguments.env, n_envs=8, seed=0)
if arguments.normalize:
    env = VecNormalize(env)
model = PPO("MlpPolicy", env, n_steps=arguments.rollout, batch_size=arguments.minibatch, n_epochs=arguments.epochs, seed=0)
model.learn(2 * 8 * arguments.rollout)  # compiles; not timed
start = time.perf_counter()
model.learn(arguments.steps)
seconds = time.perf_counter() - start
steps = -(-arguments.steps // (8 * arguments.rollout)) * 8 * arguments.rollout
print(json.dumps({"steps": steps, "seconds": seconds, "steps_per_second": steps / seconds}))
