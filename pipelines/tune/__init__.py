from pipelines.tune.pipeline import tune as tune
