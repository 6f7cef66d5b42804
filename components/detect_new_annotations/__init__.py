from components.detect_new_annotations.component import (
    detect_new_annotations as detect_new_annotations,
)
