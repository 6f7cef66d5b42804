from pipelines.retrain.pipeline import retrain as retrain
