from .pipeline import retrain as retrain
