from .pipeline import auto_label as auto_label
