from components.split_boxes.component import split_boxes as split_boxes
