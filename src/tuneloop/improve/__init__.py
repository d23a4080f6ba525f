"""What live traffic says, and what follows from it: feedback, monitoring, experiments, retraining."""
