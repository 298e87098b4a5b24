"""Fine-tuning, reward models and DPO: what each is besides the loop that they share."""
