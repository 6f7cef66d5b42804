from .component import merge_labels as merge_labels
