from .component import snapshot_dataset as snapshot_dataset
