"""One iteration of training, as programs: collect, then update.

Where the environment is a pure JAX function, the whole iteration is one compiled program, for any number of seeds at
once. Elsewhere it is cut where the environment is: EnvPool's rollout is a small program of its own, because the
pool's address is part of it and it cannot be cached; Python environments are stepped by a loop. The update then runs
as two programs side by side, actor and critic.
"""
