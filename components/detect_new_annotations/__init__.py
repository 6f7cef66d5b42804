from .component import (
    detect_new_annotations as detect_new_annotations,
)
