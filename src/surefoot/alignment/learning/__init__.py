"""Updates: from given answers, the optimiser's step, the order of things, and numbers that are not finite."""
