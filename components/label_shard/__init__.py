from components.label_shard.component import label_shard as label_shard
