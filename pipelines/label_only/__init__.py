from pipelines.label_only.pipeline import label_only as label_only
