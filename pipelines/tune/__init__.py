from .pipeline import tune as tune
