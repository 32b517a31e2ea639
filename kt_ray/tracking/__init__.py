"""MLflow: runs of zoos, studies and trials, figures, the registry of champions. Nothing else imports MLflow."""
