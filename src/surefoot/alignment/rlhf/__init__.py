"""Reinforcement learning from a reward: PPO, GRPO, RLOO and REINFORCE on a language model's own answers, as one loop."""
