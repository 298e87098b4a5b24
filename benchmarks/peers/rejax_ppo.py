"""rejax's PPO on its pure-JAX CartPole, the whole run in one program: peers-rejax/bin/python
benchmarks/peers/rejax_ppo.py --steps N"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
from rejax import PPO

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, required=True)
arguments = parser.parse_args()

algorithm = PPO.create(
    env="CartPole-v1", num_envs=64, num_steps=32, num_epochs=4, num_minibatches=4, learning_rate=2e-3,
    total_timesteps=arguments.steps, eval_freq=arguments.steps,
)  # fmt: skip
algorithm = algorithm.replace(eval_callback=lambda *_: jnp.zeros(1))  # evaluation stays out of the timed run
train = jax.jit(algorithm.train)
jax.block_until_ready(train(jax.random.PRNGKey(0)))  # compiles; not timed
start = time.perf_counter()
jax.block_until_ready(train(jax.random.PRNGKey(1)))
seconds = time.perf_counter() - start
print(json.dumps({"steps": arguments.steps, "seconds": seconds, "steps_per_second": arguments.steps / seconds}))
