"""`mal pipelines doctor`: what a cluster lacks for a run, with the command that adds it."""
