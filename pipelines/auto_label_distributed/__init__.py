from .pipeline import (
    auto_label_distributed as auto_label_distributed,
)
