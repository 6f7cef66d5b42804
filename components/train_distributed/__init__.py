from .component import train_distributed as train_distributed
