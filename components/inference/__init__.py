from .component import inference as inference
