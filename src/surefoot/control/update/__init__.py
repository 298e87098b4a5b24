"""The update, for every algorithm: estimate ψ, then improve actor and critic by the steps that the configuration chose.

Given ψ, actor and critic do not touch each other: each has its own network, optimiser and gradient-norm limit, and the two
may run side by side. Everything is a pure function of explicit state.
"""
