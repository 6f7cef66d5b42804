from .component import export as export
