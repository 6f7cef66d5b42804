from .component import promote as promote
