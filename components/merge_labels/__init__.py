from components.merge_labels.component import merge_labels as merge_labels
