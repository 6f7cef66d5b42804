from .component import split_boxes as split_boxes
