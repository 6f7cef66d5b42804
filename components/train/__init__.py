from .component import train as train
