from .pipeline import label_only as label_only
