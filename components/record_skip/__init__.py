from .component import record_skip as record_skip
