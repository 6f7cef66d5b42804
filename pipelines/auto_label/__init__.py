from pipelines.auto_label.pipeline import auto_label as auto_label
