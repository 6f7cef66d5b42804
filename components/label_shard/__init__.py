from .component import label_shard as label_shard
